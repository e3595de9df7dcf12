import pytest
from PIL import Image

from fmcae.errors import ImageError
from fmcae.runtime.predict import find_images, predict_images


@pytest.fixture
def folder(tmp_path, test_images):
    for name in ("b.png", "a.PNG", "sub/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(test_images[0]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def _paths(*names):
    found = list(find_images(names))
    assert all(error is None for _, error in found)
    return [path for path, _ in found]


def test_folders_globs_and_files_are_found_in_order(folder):
    everything = [str(folder / name) for name in ("a.PNG", "b.png", "sub/c.jpg")]
    assert _paths(str(folder)) == everything
    assert _paths(str(folder / "*.png"), str(folder / "**" / "*.jpg")) == everything[1:]
    assert _paths("-", "missing.png") == ["-", "missing.png"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(folder):
    odd = folder / "a[1].png"
    (folder / "b.png").rename(odd)
    assert _paths(str(odd)) == [str(odd)]


def test_what_stands_for_nothing_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    names = [str(tmp_path / "empty"), str(tmp_path / "*.png")]
    (first, folder_error), (second, glob_error) = find_images(names)
    assert [first, second] == names
    assert isinstance(folder_error, ImageError) and "is a folder without images" in str(folder_error)
    assert isinstance(glob_error, ImageError) and "matches no file" in str(glob_error)


def test_one_bad_image_does_not_stop_the_rest(model, folder):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    names = [str(folder / "b.png"), str(folder / "broken.png"), str(folder / "nothing*"), str(folder / "sub")]
    outcomes = list(predict_images(model, names))
    assert [outcome.prediction is not None for outcome in outcomes] == [True, False, False, True]
    assert "broken.png" in str(outcomes[1].error)
    assert outcomes[2].path == str(folder / "nothing*")


def test_stdin(model, folder):
    content = (folder / "b.png").read_bytes()
    (from_stdin,), (from_file,) = (
        list(predict_images(model, [name], content)) for name in ("-", str(folder / "b.png"))
    )
    assert from_stdin.prediction.label == from_file.prediction.label
    assert from_stdin.path == "-"


def test_more_images_than_one_batch(model, tmp_path, test_images):
    for number in range(150):
        Image.fromarray(test_images[number]).save(tmp_path / f"{number:03}.png")
    outcomes = list(predict_images(model, [str(tmp_path)]))
    assert [outcome.path for outcome in outcomes] == sorted(str(path) for path in tmp_path.iterdir())
    expected = [prediction.index for prediction in model.predict(test_images[:150])]
    assert [outcome.prediction.index for outcome in outcomes] == expected
