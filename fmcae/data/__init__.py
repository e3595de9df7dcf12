"""Image data sets as uint8 arrays: Fashion-MNIST, other IDX sets of its layout, and folders of images by class.

``load_dataset`` finds a set, checks it and splits it. The first of these places that is given or exists is used:

1. ``--data DIR`` (the argument ``data``),
2. the environment variable ``FMCAE_DATA``,
3. the user's cache (``$XDG_CACHE_HOME/fmcae``, by default ``~/.cache/fmcae``),
4. ``/usr/share/datasets/fashion-mnist`` (Debian's package ``dataset-fashion-mnist``),
5. a download into the cache.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import gettempdir

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fmcae.data import idx
from fmcae.data.download import download as download_fashion_mnist
from fmcae.data.split import split_by_class, split_val
from fmcae.errors import INSTALL_TRAIN, DataError, ImageError, UsageError
from fmcae.files import is_utf8
from fmcae.images import HEIC_SUFFIXES, IMAGE_SUFFIXES, heic_not_read, read_image
from fmcae.preprocess import SIZE, to_uint8
from fmcae.shape import check_shape

ENVIRONMENT_VARIABLE = "FMCAE_DATA"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES_FILE = "class_names.txt"
UNKNOWN = "unknown"  # what pictures of no class are called where a model is evaluated
SPLIT_FOLDERS = ("train", "val", "test")
LEAST_COLOUR = 2  # of 255, by which mean colours must differ to be told apart by eye
TELLING = 0.25  # the share of images by which colours must do better than the largest class, to be said to tell classes

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


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8, (N, S, S) or in colour (N, S, S, 3), and their class indices (N,) uint8."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in its three splits; a class index points into ``class_names``.

    ``notes`` are sentences about it that whoever trains on it should read.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, NDArray[np.int64]]:
        """How many images of each class (K,) each split has."""
        return {
            name: np.bincount(getattr(self, name).labels, minlength=len(self.class_names)) for name in SPLIT_FOLDERS
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every image and label in order: two runs with the same one saw the same data."""
        digest = sha256("\n".join(self.class_names).encode())
        for split in (self.train, self.val, self.test):
            digest.update(split.images.tobytes())
            digest.update(split.labels.tobytes())
        return digest.hexdigest()


def load_dataset(data: str | os.PathLike[str] | None = None, channels: int = 1, size: int = SIZE) -> Dataset:
    """Find, check and split a data set.

    Args:
        data: a folder that holds four IDX files (gzipped or plain), or one folder of images for each class, or such
            folders in ``train``, ``val`` and ``test``; None looks through the places that this module's docstring lists.
        channels, size: the form of the images, as for :func:`fmcae.preprocess.preprocess`.

    Raises:
        UsageError: ``data`` or FMCAE_DATA names a place without a data set, there is no such form, or the images of IDX
            files have another size than one that is not the default.
        DataError: a file is damaged, or no place has Fashion-MNIST.
        ImageError: a picture in a folder of images cannot be read.
    """
    check_shape(channels, size)
    if data is not None:
        return _load_folder(data, "data", channels, size)
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return _load_folder(named, ENVIRONMENT_VARIABLE, channels, size)
    cache = cache_folder()
    found = _find_idx(cache, ignore_incomplete=True) or _find_idx(DEBIAN_FOLDER, ignore_incomplete=True)
    if not found:
        reason = download_fashion_mnist(cache)
        found = _find_idx(cache, ignore_incomplete=True)
    if found:
        return _load_idx(found, channels, size, must_be_fashion_mnist=True)
    raise DataError(
        f"no data set found. Tried: --data (not given), ${ENVIRONMENT_VARIABLE} (not set), {cache} (not all four "
        f"IDX files), {DEBIAN_FOLDER} (not all four IDX files), a download ({reason}). To get Fashion-MNIST: "
        "`apt-get install dataset-fashion-mnist` (Debian, Ubuntu); or connect to the network and run again with "
        f"pooch installed ({INSTALL_TRAIN}); or put the four .gz files of https://github.com/zalandoresearch/fashion-mnist "
        f"into a folder and name it with --data or ${ENVIRONMENT_VARIABLE}"
    )


def cache_folder() -> Path:
    """The user's cache for data sets, without a home the temporary folder's; it need not exist."""
    home = os.path.expanduser("~")
    return Path(os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home != "~" else gettempdir()), "fmcae")


def _load_folder(named: str | os.PathLike[str], name: str, channels: int, size: int) -> Dataset:
    parameter, folder = f"{name} (={os.fspath(named)})", Path(os.path.expanduser(named))
    if not os.fspath(named) or not os.path.isdir(folder):  # Path("") is the current folder
        raise UsageError(f"{parameter} must be an existing folder")
    try:
        found = _find_idx(folder)
        dataset = _load_idx(found, channels, size) if found else _load_image_folders(folder, channels, size)
    except PermissionError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if dataset is None:
        rule = f"the four IDX files ({', '.join(IDX_NAMES)}, plain or .gz) or one folder of images per class"
        rule += ", which may lie in train, val and test"
        raise UsageError(f"{parameter} must hold {rule}")
    return dataset


def check_outside(out: Path, data: str | os.PathLike[str] | None) -> None:
    """Check that ``out`` is not among the folders of images that :func:`load_dataset` took.

    Args:
        out: a folder that is to be made.
        data: as for :func:`load_dataset`.

    Raises:
        UsageError: it is.
    """
    named = data or os.environ.get(ENVIRONMENT_VARIABLE)
    if not named or holds_idx(folder := Path(os.path.expanduser(named)).resolve()):
        return
    is_split = bool(_split_folders(folder))
    for place in [folder / name for name in SPLIT_FOLDERS] if is_split else [folder]:
        if out.resolve().is_relative_to(place):
            first = next(iter(out.resolve().relative_to(place).parts), "")
            if not _is_ignored(first):
                raise UsageError(f"out (={out}) must not be in {named}, where its pictures would be read next time")


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


def _load_idx(files: dict[str, Path], channels: int, size: int, *, must_be_fashion_mnist: bool = False) -> Dataset:
    contents = {name: idx.read_bytes(path) for name, path in files.items()}
    wrong = [name for name, digest in FASHION_MNIST_SHA256.items() if sha256(contents[name]).hexdigest() != digest]
    if wrong and must_be_fashion_mnist:
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
    name, class_names, notes = "Fashion-MNIST", FASHION_MNIST_CLASSES, tuple[str, ...]()
    if wrong:
        name = folder.resolve().name
        class_names = _class_names(folder, {files[IDX_NAMES[1]]: train_labels, files[IDX_NAMES[3]]: test_labels})
        if len(class_names) < 2:
            raise DataError(f"{folder}: holds images of 1 class; at least 2 are needed")
        is_named = (folder / CLASS_NAMES_FILE).is_file()
        if len(wrong) < len(files):  # with own changes, or damaged
            own = ", ".join(files[name].name for name in wrong)
            notes = (f"{folder}: is Fashion-MNIST but for {own}: it is used as a set of its own, called {name}",)
            if not is_named and len(class_names) == len(FASHION_MNIST_CLASSES):  # with others they would be wrong
                class_names, is_named = FASHION_MNIST_CLASSES, True
        if not is_named:
            notes += (f"{folder}: its classes go by numbers; a {CLASS_NAMES_FILE} there, a name a line, names them",)
    for images in (train_images, test_images):
        if (channels, size) != (1, SIZE) and images.shape[1:3] != (size, size):
            height, width = images.shape[1:3]
            rule = f"must be that of the images of {name}, which have {width}×{height} pixels"
            raise UsageError(f"size (={size}) {rule}; only folders of pictures are brought to another size")
    if {images.shape[1:3] for images in (train_images, test_images)} != {(size, size)}:
        notes += (f"{name} has images of another size than {size}×{size}: they are brought to it as photographs are",)
    if channels == 3 and train_images.ndim == 3:
        notes += (f"{name} is grey: three channels say no more than one",)
    if channels == 1 and train_images.shape[3:] == test_images.shape[3:] == (3,):
        colours = np.concatenate([images.mean((1, 2)) for images in (train_images, test_images)])
        notes += _colours_that_tell(colours, np.concatenate([train_labels, test_labels]))
    train_images, test_images = (_prepared(images, channels, size) for images in (train_images, test_images))
    test = Split(test_images, test_labels)
    train, val = (Split(train_images[part], train_labels[part]) for part in split_val(len(train_labels)))
    if wrong:
        notes += _duplicates(train, val, test)
    return Dataset(name, class_names, train, val, test, notes)


def _class_names(folder: Path, labels: dict[Path, NDArray[np.uint8]]) -> tuple[str, ...]:
    """Return the lines of class_names.txt, or numbers; ``labels`` has the content of each labels file."""
    path = folder / CLASS_NAMES_FILE
    highest = {labels_path: int(values.max()) for labels_path, values in labels.items()}
    if not path.is_file():
        return tuple(str(index) for index in range(max(highest.values()) + 1))
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8: {error.reason} at byte {error.start}") from error
    names = tuple(line.strip() for line in lines)
    if "" in names:
        raise DataError(f"{path}: must name a class on every line; line {names.index('') + 1} is empty")
    if len(names) > 256:
        raise DataError(f"{path}: must name at most 256 classes, one a line; it has {len(names)}")
    if repeated := len(names) - len(set(names)):
        raise DataError(f"{path}: must name different classes, one a line; {repeated} repeated")
    for labels_path, label in highest.items():
        if label >= len(names):
            raise DataError(
                f"{labels_path}: has the label {label}, but {path} names {len(names)} classes, "
                f"one a line for labels from 0: one of the two files is wrong"
            )
    return names


def _prepared(images: NDArray[np.uint8], channels: int, size: int) -> NDArray[np.uint8]:
    if images.shape[1:] == ((size, size) if channels == 1 else (size, size, 3)):
        return images
    return np.stack([to_uint8(image, channels, size) for image in images])


def _load_image_folders(folder: Path, channels: int, size: int) -> Dataset | None:
    """Load one folder of images per class, None if there is none, in an order that does not depend on the file system.

    Where ``train`` and ``val`` or ``test`` hold the class folders, they are the splits. One that is missing is drawn: val is
    a sixth of train, and test is half of val.
    """
    if splits := _split_folders(folder):
        return _load_split_folders(folder, splits, channels, size)
    places = _places(folder)
    classes = _pictures_by_class(folder)
    if not any(classes.values()):
        if places == [folder / "train"] and any(_pictures_by_class(places[0]).values()):
            raise DataError(f"{folder}: has train, but neither val nor test; to have them drawn, name {places[0]}")
        for place in (folder, *places):
            if count := _count_heic(place, _pictures_by_class(place)):
                raise DataError(heic_not_read(place, count))
        return None
    _check_classes(folder, classes)
    count = sum(map(len, classes.values()))
    if count < 7:
        raise DataError(f"{folder}: holds {count} images; at least 7 are needed to split 5 : 1 : 1")
    pictures = _read(classes, tuple(classes), channels, size)
    parts = [pictures.part(i) for i in split_by_class(pictures.labels, 7, 2)]
    return _from_pictures(folder, tuple(classes), parts, _left_out(folder, classes))


def _places(folder: Path) -> list[Path]:
    """The folders of that very name, in lower case, that train, val and test are."""
    names = os.listdir(folder)
    return [folder / name for name in SPLIT_FOLDERS if name in names and (folder / name).is_dir()]


def _split_folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` that are train, val and test, where they hold class folders; empty where they do not."""
    places = _places(folder)
    has_splits = folder / "train" in places and len(places) > 1
    return places if has_splits and any(_pictures_by_class(folder / "train").values()) else []


def _load_split_folders(folder: Path, places: list[Path], channels: int, size: int) -> Dataset:
    found = {place.name: _pictures_by_class(place) for place in places}
    names = tuple(found["train"])
    for name, classes in found.items():
        _check_classes(folder / name, classes, fewest=2 if name == "train" else 1)
        if strange := sorted(set(classes) - set(names)):
            raise DataError(f"{folder / name / strange[0]}: must be a class of {folder / 'train'}: {', '.join(names)}")
    splits = {name: _read(classes, names, channels, size) for name, classes in found.items()}
    notes = [note for name, classes in found.items() for note in _left_out(folder / name, classes)]
    for place in class_folders(folder):
        with suppress(OSError):  # it may be anything, such as a volume's lost+found
            if place.name not in found and any(map(_is_picture, place.iterdir())):
                notes.append(f"{place}: is beside train, and is left out")
    if "val" not in splits:
        splits["train"], splits["val"] = (splits["train"].part(i) for i in split_by_class(splits["train"].labels, 6, 1))
        notes.append(f"{folder}: has no val: a sixth of train is taken for it")
    if "test" not in splits:
        splits["val"], splits["test"] = (
            splits["val"].part(i) for i in split_by_class(splits["val"].labels, 2, 1, False)
        )
        notes.append(f"{folder}: has no test: half of val is taken for it")
    return _from_pictures(folder, names, [splits[name] for name in SPLIT_FOLDERS], tuple(notes))


@dataclass(frozen=True)
class _Pictures:
    """Pictures of classes: images and labels (N,) uint8, the mean colours (N, 3) of the files, and which are lit (N,).

    A lit one is taken as it is, and has light corners.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    colours: NDArray[np.float64]
    lit: NDArray[np.bool_]

    def part(self, indices: NDArray[np.int64]) -> "_Pictures":
        return _Pictures(self.images[indices], self.labels[indices], self.colours[indices], self.lit[indices])


def class_folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` that may each be named after a class, sorted by name."""
    return sorted((path for path in folder.iterdir() if not _is_ignored(path.name) and path.is_dir()), key=_name)


def _is_ignored(name: str) -> bool:
    """Whether a folder of that name is no class."""
    return name.startswith(".") or name == "__MACOSX"  # which macOS's zip leaves


def _pictures_by_class(folder: Path) -> dict[str, list[Path]]:
    """The images in each folder in ``folder``, by the folder's name, both sorted."""
    return {
        child.name: sorted((path for path in child.iterdir() if _is_picture(path)), key=_name)
        for child in class_folders(folder)
    }


def _name(path: Path) -> str:
    return path.name  # paths themselves are sorted without regard to case on Windows


def _is_picture(path: Path) -> bool:
    """Whether a name is that of a picture that is not hidden, such as macOS's ._a.jpg beside a.jpg, and of no folder."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _left_out(folder: Path, class_names: Iterable[str]) -> tuple[str, ...]:
    """Notes on pictures that are not read: beside or within the class folders, or by the names of files."""
    notes = []
    if count := sum(map(_is_picture, folder.iterdir())):
        notes.append(f"{folder}: what lies beside the class folders is left out: {count:,} of the pictures")
    files = [path for name in class_names for path in (folder / name).iterdir() if _may_be_picture(path.name)]
    if others := sorted(path for path in files if path.is_file()):
        notes.append(
            f"{folder}: files whose names do not end as a picture's are left out: {len(others):,}, such as {others[0].name}"
        )
    within = [inner for name in class_names for inner in class_folders(folder / name)]
    found = (path for inner in within for path in inner.rglob("*") if not _is_hidden(path.relative_to(inner)))
    if count := sum(map(_is_picture, found)):
        notes.append(f"{folder}: what lies in folders within the class folders is left out: {count:,} of the pictures")
    if count := _count_heic(folder, class_names):
        notes.append(heic_not_read(folder, count))
    return tuple(notes)


def _may_be_picture(name: str) -> bool:
    """Whether a file that no suffix says to be a picture may be one: not what systems leave beside pictures."""
    others = (*IMAGE_SUFFIXES, *HEIC_SUFFIXES, ".db", ".ini", ".txt", ".csv", ".json")
    return not name.startswith(".") and not name.lower().endswith(others)


def _count_heic(folder: Path, class_names: Iterable[str]) -> int:
    files = (path.name for name in class_names for path in (folder / name).iterdir())
    return sum(name.lower().endswith(HEIC_SUFFIXES) and not name.startswith(".") for name in files)


def _check_classes(folder: Path, classes: dict[str, list[Path]], fewest: int = 2) -> None:
    for name, paths in classes.items():
        if not paths:
            if count := _count_heic(folder, [name]):
                raise DataError(heic_not_read(folder / name, count))
            raise DataError(
                f"{folder / name}: must hold images, as every class folder beside it; it holds none directly"
            )
        if not is_utf8(name):
            raise DataError(f"{folder / name}: must have a name in UTF-8, because it is the name of a class")
    if not fewest <= len(classes) <= 256:
        raise DataError(f"{folder}: must hold {fewest} to 256 class folders with images; it holds {len(classes)}")


def _read(classes: dict[str, list[Path]], names: tuple[str, ...], channels: int, size: int) -> _Pictures:
    images, labels, colours, lit = [], [], [], []
    unreadable: list[str] = []
    for name, paths in classes.items():
        for path in paths:
            try:
                picture = read_image(path)
            except ImageError as error:  # all are named at once, of a data set that may take long to read
                unreadable.append(str(error))
                continue
            images.append(to_uint8(picture, channels, size))
            lit.append(picture.size == (size, size) and images[-1][[0, 0, -1, -1], [0, -1, 0, -1]].min() > 127)
            labels.append(names.index(name))
            colours.append(np.asarray(picture.convert("RGB").resize((1, 1), Image.Resampling.BOX), np.float64)[0, 0])
    if unreadable:
        more = f"; and {len(unreadable) - 5:,} more" if len(unreadable) > 5 else ""
        raise ImageError("; ".join(unreadable[:5]) + more)
    return _Pictures(np.stack(images), np.array(labels, np.uint8), np.stack(colours), np.array(lit))


def _from_pictures(
    folder: Path, class_names: tuple[str, ...], parts: list[_Pictures], notes: tuple[str, ...] = ()
) -> Dataset:
    train, val, test = (Split(part.images, part.labels) for part in parts)
    if not (len(val) and len(test)):
        raise DataError(f"{folder}: holds too few images to take val and test from them")
    notes += tuple(
        f"{name} is a class like any other here; without it a model calls unknown what its threshold refuses"
        for name in class_names
        if name.casefold() == UNKNOWN
    )
    notes += _duplicates(train, val, test) + _light_backgrounds(parts)
    if train.images.ndim == 3:
        colours, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("colours", "labels"))
        notes += _colours_that_tell(colours, labels)
    return Dataset(folder.resolve().name, class_names, train, val, test, notes)


def _duplicates(train: Split, val: Split, test: Split) -> tuple[str, ...]:
    """A note on images of val and test that are in another split too, pixel for pixel."""
    notes, seen = [], {image.tobytes() for image in train.images}
    for name, split, before in (("val", val, "train"), ("test", test, "train or val")):
        own = [image.tobytes() for image in split.images]
        if count := sum(image in seen for image in own):
            notes.append(f"{count:,} of {len(own):,} images of {name} are in {before} too, so they prove little")
        seen.update(own)
    return tuple(notes)


def _light_backgrounds(parts: list[_Pictures]) -> tuple[str, ...]:
    """A note if many pictures are taken as they are and have a light background: other pictures get a dark one."""
    count, size = sum(int(part.lit.sum()) for part in parts), parts[0].images.shape[1]
    if count <= sum(len(part.lit) for part in parts) / 10:
        return ()
    return (
        f"{count:,} pictures of {size}×{size} pixels are taken as they are, and their background is light: "
        "pictures of other sizes get a dark one, so that the model would see them otherwise",
    )


def _colours_that_tell(colours: NDArray[np.float64], labels: NDArray[np.uint8]) -> tuple[str, ...]:
    """A note if the class with the nearest mean colour of its other images is mostly right: preprocessing drops colours.

    Args:
        colours: (N, 3), the mean colours of images.
    """
    # How light an image is says how much of it is covered; what rounding leaves of a grey one is no colour.
    colours = np.round(colours - colours.mean(1, keepdims=True), 6)
    counts = np.bincount(labels)
    present = np.flatnonzero(counts > 1)
    chosen = counts[labels] > 1
    colours, labels, counts = colours[chosen], labels[chosen], counts[present]
    if not len(labels):
        return ()
    means = np.stack([colours[labels == label].mean(0) for label in present])
    if np.ptp(means, axis=0).max() < LEAST_COLOUR:  # the tint of a grey picture, by how much an item covers of it
        return ()
    own = labels[:, np.newaxis] == present
    distances = np.stack([((colours - mean) ** 2).sum(1) for mean in means], axis=1)
    distances[own] *= np.square(counts / (counts - 1))[own.argmax(1)]  # from the mean without the image itself
    told, chance = float(own[np.arange(len(labels)), distances.argmin(1)].mean()), float(counts.max() / len(labels))
    if told < chance + max(TELLING, 1.5 / np.sqrt(len(labels))):  # three standard deviations of a share, at most
        return ()
    return (
        f"the mean colour of an image alone tells {told:.0%} of the classes: fmcae drops colour, and sees shape and shading "
        "only, but for a model that is trained with --channels 3",
    )
