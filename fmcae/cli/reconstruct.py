"""``fmcae reconstruct``: an image as the networks see it, beside the autoencoder's reconstruction."""

from pathlib import Path
from typing import Annotated

import typer

from fmcae.cli.options import (
    ModelOption,
    ProviderOption,
    ThreadsOption,
    check_is_no_input,
    check_out,
    echo,
    printable,
    read_stdin,
)
from fmcae.errors import UsageError

EDGE = 280  # pixels of the picture for each edge of an image, about
GAP = 1  # pixels between image and reconstruction


def reconstruct(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image file, or - for stdin.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture to write, such as out.png.")],
    model: ModelOption = None,
    provider: ProviderOption = "cpu",
    threads: ThreadsOption = None,
) -> None:
    """Write an image and its reconstruction side by side.

    --model must name a folder with encoder.onnx and decoder.onnx.
    """
    import io

    import numpy as np
    from PIL import Image

    from fmcae.files import write_atomic
    from fmcae.metrics import mse
    from fmcae.preprocess import as_bytes
    from fmcae.runtime.model import load
    from fmcae.runtime.predict import read_input

    Image.init()
    picture_format = Image.EXTENSION.get(out.suffix.lower())
    if picture_format not in Image.SAVE:
        raise UsageError(f"out (={out}) must end in a picture format's suffix, such as .png")
    check_out(out)
    check_is_no_input(out, [image])
    loaded = load(model, provider=provider, threads=threads)
    x = read_input(loaded, image, read_stdin([image]))
    x_hat = loaded.reconstruct(x)
    gap, zoom = np.ones((*x.shape[:2], GAP), np.float32), EDGE // x.shape[1]
    pixels = as_bytes(np.concatenate([x, gap, x_hat], axis=2)).repeat(zoom, axis=0).repeat(zoom, axis=1)
    buffer = io.BytesIO()
    try:
        Image.fromarray(pixels).save(buffer, picture_format)
    except (OSError, ValueError) as error:  # a format that Pillow does not write, or not in grey
        raise UsageError(f"out (={out}) must end in another picture format's suffix, such as .png: {error}") from error
    write_atomic(out, buffer.getvalue())
    echo(f"{printable(str(out))}: input and reconstruction, mean squared error {mse(x[None], x_hat[None]):.4f}")
