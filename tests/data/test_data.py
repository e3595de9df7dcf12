import gzip
import os
import shutil
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import fmcae.data
from fmcae.data import FASHION_MNIST_CLASSES, IDX_NAMES, _colours_that_tell, check_outside, idx, load_dataset
from fmcae.errors import DataError, ImageError, UsageError


def test_the_sample_loads_with_its_class_names(sample: Path) -> None:
    dataset = load_dataset(sample)
    assert dataset.class_names == FASHION_MNIST_CLASSES
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [1000, 200, 400]
    assert dataset.test.images.shape == (400, 28, 28)
    assert dataset.test.images.dtype == np.uint8
    assert np.bincount(dataset.test.labels).tolist() == [40] * 10


def test_plain_files_and_torchvisions_layout_give_the_same_data(sample: Path, tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in IDX_NAMES:
        (raw / name).write_bytes(gzip.decompress((sample / f"{name}.gz").read_bytes()))
    shutil.copy(sample / "class_names.txt", raw)
    assert load_dataset(tmp_path).fingerprint == load_dataset(sample).fingerprint


def test_the_environment_variable_is_used_and_the_argument_wins(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMCAE_DATA", str(sample))
    assert load_dataset().name == "fashion-mnist-sample"
    with pytest.raises(UsageError, match=r"data \(=.*\) must be an existing folder"):
        load_dataset(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"data \(=\) must be an existing folder"):  # and not the current one
        load_dataset("")
    monkeypatch.setenv("FMCAE_DATA", str(tmp_path / "missing"))
    with pytest.raises(UsageError, match=r"FMCAE_DATA \(=.*missing\) must be an existing folder"):
        load_dataset()


def test_without_a_home_the_cache_is_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user id that the system does not know
    monkeypatch.setattr("fmcae.data.gettempdir", lambda: str(tmp_path))
    assert fmcae.data.cache_folder() == tmp_path / "fmcae"
    with pytest.raises(UsageError, match=r"data \(=~nobody\) must be an existing folder"):
        load_dataset("~nobody")


def test_nothing_anywhere_names_every_place_and_every_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fmcae.data, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fmcae.data, "download_fashion_mnist", lambda cache: "failed: no route to host")
    with pytest.raises(DataError) as error:
        load_dataset()
    for words in (
        "--data",
        "$FMCAE_DATA",
        "fmcae",
        "debian",
        "no route to host",
        "apt-get install dataset-fashion-mnist",
    ):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_the_cache_comes_before_debians_files(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fmcae.data, "DEBIAN_FOLDER", shutil.copytree(sample, tmp_path / "debian"))
    cache = shutil.copytree(sample, fmcae.data.cache_folder())
    with pytest.raises(DataError, match=rf"^{cache}.* is damaged: its SHA-256 is not that of Fashion-MNIST's"):
        load_dataset()  # a place for Fashion-MNIST must hold Fashion-MNIST


def test_one_changed_byte_where_fashion_mnist_must_be_is_found(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(sample, fmcae.data.cache_folder())
    contents = {name: idx.read_bytes(sample / f"{name}.gz") for name in IDX_NAMES}
    digests = {name: sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(fmcae.data, "FASHION_MNIST_SHA256", digests)
    assert load_dataset().name == "Fashion-MNIST"
    damaged = bytearray(contents["train-images-idx3-ubyte"])
    damaged[5000] ^= 1
    (fmcae.data.cache_folder() / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(damaged)))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: is damaged"):
        load_dataset()


def test_an_incomplete_folder_names_what_is_missing(sample: Path, tmp_path: Path) -> None:
    shutil.copy(sample / f"{IDX_NAMES[0]}.gz", tmp_path)
    with pytest.raises(DataError, match="is incomplete: train-labels-idx1-ubyte, t10k"):
        load_dataset(tmp_path)


def test_an_empty_folder_says_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must hold the four IDX files .* or one folder of images per class"):
        load_dataset(tmp_path)


def _write_set(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    for part in ("train", "t10k"):
        idx.write(folder / f"{part}-images-idx3-ubyte.gz", images)
        idx.write(folder / f"{part}-labels-idx1-ubyte.gz", labels)


def test_another_idx_set_gets_numbers_for_names_and_28_pixels(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (12, 40, 32), dtype=np.uint8)
    _write_set(tmp_path, images, np.arange(12, dtype=np.uint8) % 3)
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("0", "1", "2")
    assert (
        dataset.notes[0] == f"{tmp_path}: its classes go by numbers; a class_names.txt there, a name a line, names them"
    )
    assert dataset.train.images.shape == (10, 28, 28)
    assert "has images of another size than 28×28: they are brought to it as photographs are" in dataset.notes[1]


def test_labels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    images = np.zeros((12, 28, 28), np.uint8)
    _write_set(tmp_path, images, np.zeros(12, np.uint8))
    idx.write(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(11, np.uint8))
    with pytest.raises(DataError, match=r"images \(12, 28, 28\) do not fit labels \(11,\)"):
        load_dataset(tmp_path)
    _write_set(tmp_path, images, np.full(12, 3, np.uint8))
    (tmp_path / "class_names.txt").write_text("a\nb\n")
    wrong = r"train-labels-idx1-ubyte\.gz: has the label 3, but .*class_names\.txt names 2 classes"
    with pytest.raises(DataError, match=wrong):
        load_dataset(tmp_path)
    idx.write(tmp_path / "train-labels-idx1-ubyte.gz", np.ones(12, np.uint8))
    with pytest.raises(DataError, match=wrong.replace("train", "t10k")):
        load_dataset(tmp_path)


def test_class_names_of_an_editor_that_marks_utf8(tmp_path: Path) -> None:
    _write_set(tmp_path, np.zeros((12, 28, 28), np.uint8), np.arange(12, dtype=np.uint8) % 2)
    (tmp_path / "class_names.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert load_dataset(tmp_path).class_names == ("one", "two")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\na\n", "must name different classes, one a line; 1 repeated"),
        (b"a\n\xff\n", "is not text in UTF-8"),
        (b"a\n\nb\n", "must name a class on every line; line 2 is empty"),
        (b"".join(b"%d\n" % index for index in range(257)), "must name at most 256 classes, one a line; it has 257"),
    ],
)
def test_class_names_that_are_not_names_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    _write_set(tmp_path, np.zeros((12, 28, 28), np.uint8), np.zeros(12, np.uint8))
    (tmp_path / "class_names.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"class_names\.txt: {message}"):
        load_dataset(tmp_path)


def test_nothing_is_written_where_it_would_be_a_class(
    sample: Path, image_folders: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for out in (image_folders / "run", image_folders, image_folders / "runs" / "1", image_folders / "coat" / "run"):
        with pytest.raises(UsageError, match=r"out \(=.*\) must not be in .*, where its pictures would be read next"):
            check_outside(out, image_folders)
    monkeypatch.chdir(image_folders)
    with pytest.raises(UsageError, match=r"out \(=runs\) must not be in \., "):
        check_outside(Path("runs"), ".")
    monkeypatch.setenv("FMCAE_DATA", str(image_folders))
    with pytest.raises(UsageError, match=r"out \(=runs\)"):
        check_outside(Path("runs"), None)
    splits = elsewhere / "splits"
    for name in ("train", "test"):
        shutil.copytree(image_folders, splits / name)
    for out in (splits / "test" / "run", splits / "val"):
        with pytest.raises(UsageError, match="must not be in"):
            check_outside(out, splits)
    check_outside(splits / "runs", splits)
    check_outside(elsewhere / "run", image_folders)
    check_outside(image_folders / ".runs" / "1", image_folders)
    check_outside(sample / "run", sample)


def test_folders_of_images_of_any_size_and_colour(tmp_path: Path, test_images: NDArray[np.uint8]) -> None:
    for name, mode, size in (("boot", "RGB", (60, 40)), ("coat", "L", (28, 28)), ("bag", "RGBA", (10, 90))):
        (tmp_path / name).mkdir()
        for number in range(7):
            image = Image.fromarray(255 - test_images[number]).resize(size).convert(mode)
            image.save(tmp_path / name / f"{number}.png")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("bag", "boot", "coat")
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [15, 3, 3]
    assert dataset.fingerprint == load_dataset(tmp_path).fingerprint


@pytest.fixture
def image_folders(tmp_path: Path) -> Path:
    """A set of two classes, coat and bag."""
    for name in ("coat", "bag"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("L", (28, 28), number).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_a_class_folder_without_images_is_named(image_folders: Path) -> None:
    for ignored in (".cache", "__MACOSX"):
        (image_folders / ignored).mkdir()
    assert load_dataset(image_folders).class_names == ("bag", "coat")
    (image_folders / "boot" / "more").mkdir(parents=True)
    (image_folders / "bag" / "0.png").rename(image_folders / "boot" / "more" / "0.png")
    with pytest.raises(DataError, match=r"boot: must hold images, .* it holds none directly"):
        load_dataset(image_folders)


def test_what_is_no_picture_of_a_class_is_left_out(image_folders: Path) -> None:
    expected = load_dataset(image_folders)
    (image_folders / "bag" / "._0.png").write_bytes(b"\0\5\x16\7")  # as macOS leaves it
    (image_folders / "bag" / "folder.png").mkdir()
    shutil.copy(image_folders / "bag" / "0.png", image_folders / "bag" / "folder.png")
    (image_folders / "bag" / "IMG_1.HEIC").write_bytes(b"of a phone")
    shutil.copy(image_folders / "bag" / "0.png", image_folders / "beside.png")
    shutil.copy(image_folders / "bag" / "0.png", image_folders / "bag" / "0.png.bak")
    (image_folders / "bag" / "Thumbs.db").touch()
    dataset = load_dataset(image_folders)
    assert dataset.fingerprint == expected.fingerprint
    beside = f"{image_folders}: what lies beside the class folders is left out: 1 of the pictures"
    named = f"{image_folders}: files whose names do not end as a picture's are left out: 1, such as 0.png.bak"
    left_out = f"{image_folders}: what lies in folders within the class folders is left out: 1 of the pictures"
    not_read = f"{image_folders}: its HEIC files (1) are not read: save them as JPEG"
    assert dataset.notes == (beside, named, left_out, not_read, *expected.notes)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_beside_the_splits_that_cannot_be_read_is_none_of_them(image_folders: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        shutil.copytree(image_folders, tmp_path / "set" / name)
    (tmp_path / "set" / "lost+found").mkdir(mode=0)
    load_dataset(tmp_path / "set")


def test_all_pictures_that_cannot_be_read_are_named(image_folders: Path) -> None:
    for index in range(7):
        (image_folders / "bag" / f"broken{index}.png").write_bytes(b"x")
    with pytest.raises(ImageError, match=r"broken0\.png: .*; .*broken4\.png: .*; and 2 more$"):
        load_dataset(image_folders)


def test_classes_of_nothing_but_a_phones_pictures_are_said_to_be_that(image_folders: Path) -> None:
    (image_folders / "boot").mkdir()
    (image_folders / "boot" / "IMG_1.HEIC").touch()
    with pytest.raises(DataError, match=r"boot: its HEIC files \(1\) are not read: save them as JPEG"):
        load_dataset(image_folders)
    for name in ("bag", "coat"):
        shutil.rmtree(image_folders / name)
    with pytest.raises(DataError, match=r"its HEIC files \(1\) are not read"):
        load_dataset(image_folders)
    (image_folders / "train").mkdir()
    (image_folders / "boot").rename(image_folders / "train" / "boot")
    with pytest.raises(DataError, match=r"train: its HEIC files \(1\) are not read"):
        load_dataset(image_folders)


def test_a_class_called_unknown_is_said(image_folders: Path) -> None:
    (image_folders / "coat").rename(image_folders / "Unknown")
    assert any(note.startswith("Unknown is a class like any other here") for note in load_dataset(image_folders).notes)


def test_train_alone_is_said_to_lack_val_and_test(image_folders: Path) -> None:
    (image_folders / "train").mkdir()
    for name in ("bag", "coat"):
        (image_folders / name).rename(image_folders / "train" / name)
    with pytest.raises(DataError, match=r"has train, but neither val nor test; to have them drawn, name .*train$"):
        load_dataset(image_folders)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems allow no such name")
def test_a_class_folder_whose_name_is_not_utf8_is_refused(image_folders: Path) -> None:
    (image_folders / "coat").rename(image_folders / os.fsdecode(b"manteau-d\xe9t\xe9"))
    with pytest.raises(DataError, match="manteau-d.*: must have a name in UTF-8"):
        load_dataset(image_folders)


def test_an_unreadable_image_in_a_folder_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.png").write_bytes(b"not a picture")
    with pytest.raises(fmcae.ImageError, match=r"a/0\.png"):
        load_dataset(tmp_path)


def _save(images: NDArray[np.uint8], folder: Path, first: int = 0, suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, first):
        Image.fromarray(image).save(folder / f"{number:03}{suffix}")


def test_folders_for_the_splits_are_kept_apart(tmp_path: Path, test_images: NDArray[np.uint8]) -> None:
    for split, first, count in (("train", 0, 6), ("val", 20, 2), ("test", 30, 3)):
        _save(test_images[first : first + count], tmp_path / split / "boot", suffix=".webp")
        _save(test_images[first + 100 : first + 100 + count], tmp_path / split / "coat", suffix=".jpg")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("boot", "coat") and dataset.notes == ()
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [12, 4, 6]
    assert dataset.test.labels.tolist() == [0, 0, 0, 1, 1, 1]

    _save(test_images[:2], tmp_path / "val" / "bag")
    with pytest.raises(DataError, match=r"val/bag: must be a class of .*train: boot, coat"):
        load_dataset(tmp_path)


def test_a_split_without_a_folder_is_drawn_and_said(tmp_path: Path, test_images: NDArray[np.uint8]) -> None:
    for split, first, count in (("train", 0, 12), ("val", 40, 4)):
        _save(test_images[first : first + count], tmp_path / split / "boot")
        _save(test_images[first + 100 : first + 100 + count], tmp_path / split / "coat")
    dataset = load_dataset(tmp_path)
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [24, 4, 4]
    assert dataset.test.labels.tolist() == dataset.val.labels.tolist() == [0, 0, 1, 1]
    assert dataset.notes == (f"{tmp_path}: has no test: half of val is taken for it",)

    (tmp_path / "val").rename(tmp_path / "test")
    dataset = load_dataset(tmp_path)
    assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [20, 4, 8]
    assert dataset.notes == (f"{tmp_path}: has no val: a sixth of train is taken for it",)


def test_a_small_class_is_in_every_split(tmp_path: Path, test_images: NDArray[np.uint8]) -> None:
    _save(test_images[:98], tmp_path / "boot")
    _save(test_images[100:107], tmp_path / "coat")
    dataset = load_dataset(tmp_path)
    assert [np.bincount(s.labels).tolist() for s in (dataset.train, dataset.val, dataset.test)] == [
        [70, 5],
        [14, 1],
        [14, 1],
    ]


def test_images_in_two_splits_are_said(tmp_path: Path, test_images: NDArray[np.uint8]) -> None:
    for name in ("boot", "coat"):
        _save(test_images[:7], tmp_path / name)  # the same pictures under two names
    (note,) = load_dataset(tmp_path).notes[:1]
    assert "are in train too, so they prove little" in note


@pytest.mark.parametrize("count", [5, 40])
def test_colours_that_tell_the_classes_are_said(tmp_path: Path, test_images: NDArray[np.uint8], count: int) -> None:
    generator = np.random.default_rng(0)
    for name, colour in (("blue", (20, 60, 220)), ("green", (20, 200, 60)), ("red", (220, 40, 30))):
        discs = np.full((count, 60, 60, 3), 255, np.uint8)
        y, x = np.mgrid[:60, :60]
        for disc in discs:
            radius = generator.integers(15, 28)
            disc[(y - 30) ** 2 + (x - 30) ** 2 < radius**2] = colour
        _save(discs, tmp_path / "discs" / name)
        _save(generator.choice(test_images, count), tmp_path / "grey" / name)
        light = np.full((count, 60, 60), len(name) * 40, np.uint8)
        _save(light, tmp_path / "light" / name)
    (note,) = (
        note for note in load_dataset(tmp_path / "discs").notes if "the mean colour of an image alone tells" in note
    )
    assert "--channels 3" in note
    coloured = load_dataset(tmp_path / "discs", 3, 64)
    assert coloured.train.images.shape[1:] == (64, 64, 3) and not any("the mean colour" in n for n in coloured.notes)
    centre = coloured.test.images[:, 32, 32].argmax(axis=1)  # the strongest of red, green and blue
    assert [coloured.class_names[label] for label in coloured.test.labels] == [
        ("red", "green", "blue")[i] for i in centre
    ]
    for name in ("grey", "light"):
        assert not any("the mean colour" in note for note in load_dataset(tmp_path / name).notes)


def test_colours_of_idx_files_that_tell_the_classes_are_said(tmp_path: Path) -> None:
    labels = np.arange(30, dtype=np.uint8) % 3
    images = np.zeros((30, 28, 28, 3), np.uint8)
    images[np.arange(30), 5:20, 5:20, labels] = 200
    _write_set(tmp_path, images, labels)
    (note,) = (note for note in load_dataset(tmp_path).notes if "the mean colour" in note)
    assert "tells 100% of the classes" in note
    assert not any("the mean colour" in note for note in load_dataset(tmp_path, 3).notes)


def test_what_rounding_leaves_of_grey_is_no_colour() -> None:
    labels = np.repeat(np.arange(4, dtype=np.uint8), 10)
    assert _colours_that_tell(np.repeat(np.array([0.1, 0.2, 0.3, 0.7])[labels, None], 3, axis=1), labels) == ()


@pytest.mark.parametrize(("channels", "size"), [(1, 56), (3, 56), (3, 28)])
def test_idx_files_fit_a_size_or_are_named(sample: Path, tmp_path: Path, channels: int, size: int) -> None:
    for name in IDX_NAMES:
        array = idx.parse(idx.read_bytes(sample / f"{name}.gz"), name)[:60]
        idx.write(tmp_path / name, array.repeat(size // 28, 1).repeat(size // 28, 2) if array.ndim == 3 else array)
    images = load_dataset(tmp_path, channels, size).test.images
    assert images.shape == (60, size, size) + (3,) * (channels == 3)
    raw = idx.parse(idx.read_bytes(tmp_path / IDX_NAMES[2]), "images")
    assert np.array_equal(images if channels == 1 else images[..., 2], raw)
    rule = rf"must be that of the images of {tmp_path.name}, which have {size}×{size} pixels"
    with pytest.raises(UsageError, match=rf"size \(=64\) {rule}"):
        load_dataset(tmp_path, channels, 64)


def test_a_light_background_that_is_taken_as_it_is_is_said(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        _save(generator.integers(200, 256, (10, 64, 64, 3), np.uint8), tmp_path / name)
    (note,) = (note for note in load_dataset(tmp_path, 3, 64).notes if "taken as they are" in note)
    assert note.startswith("20 pictures of 64×64 pixels are taken as they are, and their background is light")
    assert not any("taken as they are" in note for note in load_dataset(tmp_path, 3, 56).notes)


def test_fashion_mnist_with_own_labels_is_a_set_of_its_own(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "relabelled"
    shutil.copytree(sample, folder)
    (folder / "class_names.txt").unlink()
    contents = {name: idx.read_bytes(sample / f"{name}.gz") for name in IDX_NAMES}
    digests = {name: sha256(content).hexdigest() for name, content in contents.items()}
    monkeypatch.setattr(fmcae.data, "FASHION_MNIST_SHA256", digests)
    labels = idx.parse(contents[IDX_NAMES[1]], "labels").copy()
    labels[:10] = 0
    idx.write(folder / f"{IDX_NAMES[1]}.gz", labels)
    dataset = load_dataset(folder)
    assert (dataset.name, dataset.class_names) == ("relabelled", FASHION_MNIST_CLASSES)
    expected = "is Fashion-MNIST but for train-labels-idx1-ubyte.gz: it is used as a set of its own, called relabelled"
    assert expected in dataset.notes[0]
    idx.write(folder / f"{IDX_NAMES[1]}.gz", np.minimum(labels, 4))
    idx.write(folder / f"{IDX_NAMES[3]}.gz", np.minimum(idx.parse(contents[IDX_NAMES[3]], "labels"), 4))
    dataset = load_dataset(folder)
    assert dataset.class_names == ("0", "1", "2", "3", "4")
    assert any("its classes go by numbers; a class_names.txt there" in note for note in dataset.notes)
