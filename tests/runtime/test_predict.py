import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fmcae import Model
from fmcae.errors import ImageError, UsageError
from fmcae.preprocess import preprocess, scale, to_uint8
from fmcae.runtime import predict
from fmcae.runtime.predict import find_images, predict_images, read_input


@pytest.fixture
def folder(tmp_path: Path, test_images: NDArray[np.uint8]) -> Path:
    for name in ("b.png", "a.PNG", "sub/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(test_images[0]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def _paths(*names: str) -> list[str]:
    found = list(find_images(names))
    assert all(error is None for _, error in found)
    return [path for path, _ in found]


def test_folders_globs_and_files_are_found_in_order(folder: Path) -> None:
    (folder / "sub" / "._c.jpg").touch()
    everything = [str(folder / name) for name in ("a.PNG", "b.png", "sub/c.jpg")]
    assert _paths(str(folder)) == everything
    assert _paths(str(folder / "*.png"), str(folder / "**" / "*.jpg")) == everything[1:]
    assert _paths("-", "missing.png") == ["-", "missing.png"]


def test_two_stars_find_each_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for link, target in (("self", "."), ("again", "."), ("sub/up", "..")):
        (folder / link).symlink_to(target)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "d.png").touch()
    os.mkfifo(folder / "sub" / "pipe.jpg")
    everything = ["a.PNG", "b.png", "notes.txt", "sub/c.jpg"]
    assert _paths(f"{folder}/**", f"{folder}/sub/**/*.jpg") == [
        f"{folder}/{name}" for name in (*everything, "sub/c.jpg")
    ]
    monkeypatch.chdir(folder)
    assert _paths("**") == _paths("**/**/*") == everything
    assert _paths("./**/c.*", "su*/**/*", "**/sub/**") == ["./sub/c.jpg", "sub/c.jpg", "sub/c.jpg"]
    assert _paths("*") == everything[:3], "a folder is no file"


def test_a_file_whose_name_looks_like_a_glob_is_a_file(folder: Path) -> None:
    odd = folder / "a[1].png"
    (folder / "b.png").rename(odd)
    assert _paths(str(odd)) == [str(odd)]


def test_every_format_that_is_read_is_found_in_a_folder(tmp_path: Path) -> None:
    names = ["a.avif", "b.JFIF", "c.jp2", "d.ppm", "e.ico", "f.apng"]
    for name in (*names, "g.eps", "h.txt"):
        (tmp_path / name).touch()
    assert _paths(str(tmp_path)) == [str(tmp_path / name) for name in names]


def test_what_stands_for_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / "empty"), str(tmp_path / "*.png")]
    (first, folder_error), (second, glob_error) = find_images(names)
    assert [first, second] == names
    assert isinstance(folder_error, ImageError) and "is a folder without images" in str(folder_error)
    assert isinstance(glob_error, ImageError) and "matches no file" in str(glob_error)


def test_what_a_folder_has_in_a_format_that_is_not_read_is_named_once(folder: Path) -> None:
    (folder / "IMG_1.HEIC").touch()
    (folder / "sub" / "img_2.heif").touch()
    (path, error), *rest = find_images([str(folder)])
    assert path == str(folder) and "its HEIC files (2) are not read" in str(error)
    assert [name for name, _ in rest] == [str(folder / name) for name in ("a.PNG", "b.png", "sub/c.jpg")]


def test_one_bad_image_does_not_stop_the_rest(model: Model, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    names = [str(folder / "b.png"), str(folder / "broken.png"), str(folder / "nothing*"), str(folder / "sub")]
    outcomes = list(predict_images(model, names))
    assert [outcome.prediction is not None for outcome in outcomes] == [True, False, False, True]
    assert "broken.png" in str(outcomes[1].error)
    assert [outcome.pixels is not None for outcome in outcomes] == [True, False, False, True]
    assert np.array_equal(outcomes[3].pixels, to_uint8(folder / "sub" / "c.jpg"))  # type: ignore[arg-type]
    assert outcomes[2].path == str(folder / "nothing*")


def test_a_picture_that_comes_from_elsewhere_is_named_as_asked_and_may_have_fewer_pixels(
    model: Model, folder: Path
) -> None:
    content = (folder / "a.PNG").read_bytes()
    outcome = predict.predict_content(model, "path", content, "name")
    expected = model.predict(content)
    assert outcome.path == "path" and outcome.prediction is not None and outcome.pixels is not None
    assert np.array_equal(outcome.prediction.probabilities, expected.probabilities)
    for odd, limit, error in (
        (content, 783, "name: has 28×28 pixels; 1 to 783 are read"),
        (b"", 784, "name: is empty"),
        (str(folder / "a.PNG").encode(), 784, "name: is not an image in a format that is read"),
    ):
        outcome = predict.predict_content(model, "path", odd, "name", limit)
        assert outcome.prediction is None and str(outcome.error).startswith(error)


def test_nor_does_one_that_breaks_preprocessing(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, *_: int) -> NDArray[np.float32]:
        if source == str(folder / "a.PNG"):
            raise ZeroDivisionError("division by zero")
        return preprocess(source)

    monkeypatch.setattr("fmcae.runtime.model.preprocess", fail)
    first, second, third = predict_images(model, [str(folder)])
    assert isinstance(first.error, ImageError) and second.prediction is not None and third.prediction is not None
    assert str(first.error) == f"{folder}/a.PNG: cannot be preprocessed: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_many_pictures_keep_their_order_on_any_number_of_threads(
    model: Model, encoded: Callable[..., bytes], tmp_path: Path, jobs: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    for index, image in enumerate(pixels):
        (tmp_path / f"{index:03}.png").write_bytes(b"" if index == 50 else encoded(Image.fromarray(image)))
    threads = set(threading.enumerate())
    outcomes = list(predict_images(model, [str(tmp_path)], jobs=jobs))
    assert [Path(outcome.path).name for outcome in outcomes] == [f"{index:03}.png" for index in range(100)]
    seen = [outcome.pixels for outcome in outcomes if outcome.pixels is not None]
    assert np.array_equal(seen, np.delete(pixels, 50, 0)) and str(outcomes[50].error).endswith("is empty")
    found = [outcome.prediction.index for outcome in outcomes if outcome.prediction]
    assert found == model.classify(scale(np.array(seen))).argmax(axis=1).tolist()
    assert set(threading.enumerate()) <= threads
    first = predict_images(model, [str(tmp_path)], jobs=jobs)
    next(first)
    del first  # as where the output breaks off
    assert set(threading.enumerate()) <= threads


def test_jobs_are_at_least_1(model: Model) -> None:
    with pytest.raises(UsageError, match=r"jobs \(=0\) must be at least 1"):
        list(predict_images(model, [], jobs=0))


def test_memory_that_is_gone_stops_it(model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("fmcae.runtime.model.preprocess", fail)
    with pytest.raises(MemoryError):
        list(predict_images(model, [str(folder)]))


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """``unreadable(path)``: from now on that folder cannot be listed, as for a user without the right."""
    scandir = os.scandir

    def deny(denied: Path) -> None:
        def scan(path: Path) -> Any:
            if os.fspath(path) == str(denied):
                raise PermissionError(13, "Permission denied", str(denied))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", scan)

    return deny


def test_a_folder_that_cannot_be_read_is_named_in_its_place(folder: Path, unreadable: Callable[[Path], None]) -> None:
    (folder / "z").mkdir()
    Image.new("L", (28, 28)).save(folder / "z" / "d.png")
    unreadable(folder / "sub")
    found = list(find_images([str(folder)]))
    assert [path for path, _ in found] == [str(folder / name) for name in ("a.PNG", "b.png", "sub", "z/d.png")]
    assert [None if error is None else str(error) for _, error in found] == [
        None, None, f"{folder}/sub: cannot be read: Permission denied", None,
    ]  # fmt: skip
    found = list(find_images([str(folder / "**" / "*.png")]))
    assert [path for path, error in found if error] == [str(folder / "sub")]
    unreadable(folder)
    ((path, error),) = find_images([str(folder)])
    assert (path, str(error)) == (str(folder), f"{folder}: cannot be read: Permission denied")


def test_what_is_no_file_is_left_out_and_a_broken_link_is_not(folder: Path) -> None:
    os.mkfifo(folder / "sub" / "pipe.png")
    (folder / "sub" / "link.png").symlink_to("nowhere")
    assert _paths(str(folder / "sub")) == [str(folder / "sub" / name) for name in ("c.jpg", "link.png")]


def test_stdin_is_named(model: Model) -> None:
    with pytest.raises(ImageError, match="^stdin: is empty$"):
        read_input(model, "-", b"")
    with pytest.raises(ImageError, match="^stdin: is not an image"):
        read_input(model, "-", b"hello")
