"""The download of Fashion-MNIST, with its checksums."""

import sys
from pathlib import Path

from fmcae.errors import INSTALL_TRAIN

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"  # the authors' own, which torchvision uses too
TIMEOUT_S = 10  # without an answer
# SHA-256 of the authors' files, whose MD5 their README lists; other mirrors zip the same contents differently
SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


def download(cache: Path) -> str:
    """Download Fashion-MNIST's four files into ``cache``, with a progress bar on a terminal.

    Returns:
        "done", or in one line why it failed; a file that is not whole is not left behind.
    """
    try:
        import pooch
    except ImportError:
        return f"pooch is not installed: {INSTALL_TRAIN}"
    pooch.get_logger().setLevel("ERROR")
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT_S)
    try:
        for name, digest in SHA256.items():
            pooch.retrieve(URL + name, digest, name, cache, downloader=downloader)
    except Exception as error:  # whatever went wrong, the user reads the one error that lists every way
        return f"failed: {' '.join(str(error).split()) or type(error).__name__}"
    return "done"
