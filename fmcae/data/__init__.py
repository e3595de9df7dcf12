"""Image data sets as uint8 arrays: Fashion-MNIST, other IDX sets of its layout, and folders of images.

``load_dataset`` finds a set, checks it and splits it. The first of these places that is given or exists is used:

1. ``--data DIR`` (the argument ``data``),
2. the environment variable ``FMCAE_DATA``,
3. the user's cache (``$XDG_CACHE_HOME/fmcae``, by default ``~/.cache/fmcae``),
4. ``/usr/share/datasets/fashion-mnist`` (Debian's package ``dataset-fashion-mnist``),
5. a download into the cache.
"""

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmcae.data import idx
from fmcae.data.download import download as download_fashion_mnist
from fmcae.data.split import split_val, split_val_test
from fmcae.errors import INSTALL_TRAIN, DataError, UsageError
from fmcae.images import IMAGE_SUFFIXES
from fmcae.preprocess import to_uint8

ENVIRONMENT_VARIABLE = "FMCAE_DATA"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES_FILE = "class_names.txt"

FASHION_MNIST_CLASSES: tuple[str, ...] = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# SHA-256 of the unzipped files, so that every mirror's gzip of them is recognized.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
IDX_NAMES = tuple(FASHION_MNIST_SHA256)


@dataclass(frozen=True)
class Split:
    """Images (N, 28, 28) uint8 and their class indices (N,) uint8."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set in its three splits; a class index points into ``class_names``."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every image and label in order: two runs with the same one saw the same data."""
        digest = sha256("\n".join(self.class_names).encode())
        for split in (self.train, self.val, self.test):
            digest.update(split.images.tobytes())
            digest.update(split.labels.tobytes())
        return digest.hexdigest()


def load_dataset(data: str | os.PathLike[str] | None = None) -> Dataset:
    """Find, check and split a data set.

    Args:
        data: a folder that holds four IDX files (gzipped or plain) or one folder of images per class; None looks
            through the places that this module's docstring lists.

    Raises:
        UsageError: ``data`` or FMCAE_DATA names a place without a data set.
        DataError: a file is damaged, or no place has Fashion-MNIST.
    """
    if data is not None:
        return _load_folder(Path(data).expanduser(), f"data (={os.fspath(data)})")
    if environment := os.environ.get(ENVIRONMENT_VARIABLE):
        return _load_folder(Path(environment).expanduser(), f"{ENVIRONMENT_VARIABLE} (={environment})")
    cache = cache_folder()
    found = _find_idx(cache, ignore_incomplete=True) or _find_idx(DEBIAN_FOLDER, ignore_incomplete=True)
    if not found:
        reason = download_fashion_mnist(cache)
        found = _find_idx(cache, ignore_incomplete=True)
    if found:
        return _load_idx(found, must_be_fashion_mnist=True)
    raise DataError(
        f"no data set found. Tried: --data (not given), ${ENVIRONMENT_VARIABLE} (not set), {cache} (not all four "
        f"IDX files), {DEBIAN_FOLDER} (not all four IDX files), a download ({reason}). To get Fashion-MNIST: "
        "`apt-get install dataset-fashion-mnist` (Debian, Ubuntu); or connect to the network and run again with "
        f"pooch installed ({INSTALL_TRAIN}); or put the four .gz files of https://github.com/zalandoresearch/fashion-mnist "
        f"into a folder and name it with --data or ${ENVIRONMENT_VARIABLE}"
    )


def cache_folder() -> Path:
    """The user's cache for data sets; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fmcae"


def _load_folder(folder: Path, parameter: str) -> Dataset:
    if not folder.is_dir():
        raise UsageError(f"{parameter} must be an existing folder")
    try:
        found = _find_idx(folder)
        dataset = _load_idx(found) if found else _load_image_folders(folder)
    except PermissionError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if dataset is None:
        rule = f"the four IDX files ({', '.join(IDX_NAMES)}, plain or .gz) or one folder of images per class"
        raise UsageError(f"{parameter} must hold {rule}")
    return dataset


def holds_idx(folder: Path) -> bool:
    """Whether the four IDX files lie in ``folder``; raise DataError if only some of them do."""
    return bool(_find_idx(folder))


def _find_idx(folder: Path, *, ignore_incomplete: bool = False) -> dict[str, Path]:
    """Return the four IDX files in ``folder``, or where torchvision puts them below it; empty if there are none.

    An interrupted download leaves some of them; with ``ignore_incomplete`` that counts as none.
    """
    for place in (folder, folder / "FashionMNIST" / "raw", folder / "raw"):
        found = {}
        for name in IDX_NAMES:
            # some mirrors of MNIST write train-images.idx3-ubyte
            for candidate in (name, name.replace("-idx", ".idx")):
                for path in (place / f"{candidate}.gz", place / candidate):
                    if name not in found and path.is_file():
                        found[name] = path
        missing = [name for name in IDX_NAMES if name not in found]
        if not missing:
            return found
        if found and not ignore_incomplete:
            raise DataError(f"{place}: is incomplete: {', '.join(missing)} missing (plain or .gz)")
    return {}


def _load_idx(files: dict[str, Path], *, must_be_fashion_mnist: bool = False) -> Dataset:
    contents = {name: idx.read_bytes(path) for name, path in files.items()}
    wrong = [name for name, digest in FASHION_MNIST_SHA256.items() if sha256(contents[name]).hexdigest() != digest]
    if wrong and (must_be_fashion_mnist or len(wrong) < len(files)):  # if some are its files, the others are damaged
        raise DataError(f"{files[wrong[0]]}: is damaged: its SHA-256 is not that of Fashion-MNIST's {wrong[0]}")
    parsed = (idx.parse(contents[name], str(files[name])) for name in IDX_NAMES)
    train_images, train_labels, test_images, test_labels = parsed
    pairs = [(train_images, train_labels, IDX_NAMES[0]), (test_images, test_labels, IDX_NAMES[2])]
    for images, labels, name in pairs:
        if images.ndim not in (3, 4) or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"{files[name]}: images {images.shape} do not fit labels {labels.shape}: "
                "they must be (N, height, width) or (N, height, width, 3) and (N,)"
            )
    folder = files[IDX_NAMES[0]].parent
    if len(train_labels) < 6 or len(test_labels) < 1:
        counts = f"{len(train_labels)} training and {len(test_labels)} test images"
        raise DataError(f"{folder}: holds {counts}; at least 6 and 1 are needed")
    name, class_names = "Fashion-MNIST", FASHION_MNIST_CLASSES
    if wrong:
        name = folder.resolve().name
        class_names = _class_names(folder, {files[IDX_NAMES[1]]: train_labels, files[IDX_NAMES[3]]: test_labels})
    train_images, test = _as_28(train_images), Split(_as_28(test_images), test_labels)
    train, val = (Split(train_images[part], train_labels[part]) for part in split_val(len(train_labels)))
    return Dataset(name, class_names, train, val, test)


def _class_names(folder: Path, labels: dict[Path, NDArray[np.uint8]]) -> tuple[str, ...]:
    """Return the lines of class_names.txt, or numbers; ``labels`` has the content of each labels file."""
    path = folder / CLASS_NAMES_FILE
    highest = {labels_path: int(values.max()) for labels_path, values in labels.items()}
    if not path.is_file():
        return tuple(str(index) for index in range(max(highest.values()) + 1))
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8: {error.reason} at byte {error.start}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if repeated := len(names) - len(set(names)):
        raise DataError(f"{path}: must name different classes, one a line; {repeated} repeated")
    for labels_path, label in highest.items():
        if label >= len(names):
            raise DataError(
                f"{labels_path}: has the label {label}, but {path} names {len(names)} classes, "
                f"one a line for labels from 0: one of the two files is wrong"
            )
    return names


def _as_28(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images if images.shape[1:] == (28, 28) else np.stack([to_uint8(image) for image in images])


def class_folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` that may each be named after a class, sorted."""
    ignored = "__MACOSX"  # macOS's zip leaves it
    folders = (child for child in folder.iterdir() if not child.name.startswith(".") and child.name != ignored)
    return sorted(child for child in folders if child.is_dir())


def _load_image_folders(folder: Path) -> Dataset | None:
    """Load one folder of images per class, None if there is none, in an order that does not depend on the file system."""
    classes = {
        child.name: sorted(path for path in child.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        for child in class_folders(folder)
    }
    if not any(classes.values()):
        return None
    for name, paths in classes.items():
        if not paths:
            raise DataError(
                f"{folder / name}: must hold images, as every class folder beside it; it holds none directly"
            )
        if name != name.encode(errors="replace").decode():  # a byte that is not UTF-8 is a lone surrogate
            raise DataError(f"{folder / name}: must have a name in UTF-8, because it is the name of a class")
    if not 2 <= len(classes) <= 256:
        raise DataError(f"{folder}: must hold 2 to 256 class folders with images; it holds {len(classes)}")
    count = sum(map(len, classes.values()))
    if count < 7:
        raise DataError(f"{folder}: holds {count} images; at least 7 are needed to split 5 : 1 : 1")
    images = np.stack([to_uint8(path) for paths in classes.values() for path in paths])
    labels = np.repeat(np.arange(len(classes), dtype=np.uint8), [len(paths) for paths in classes.values()])
    train, val, test = (Split(images[part], labels[part]) for part in split_val_test(count))
    return Dataset(folder.resolve().name, tuple(classes), train, val, test)
