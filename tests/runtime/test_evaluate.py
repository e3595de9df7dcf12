import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fmcae import Model, Prediction, metrics
from fmcae.data import ENVIRONMENT_VARIABLE, FASHION_MNIST_CLASSES, UNKNOWN, idx, load_dataset
from fmcae.errors import DataError, FmcaeError, UsageError
from fmcae.preprocess import scale
from fmcae.runtime.evaluate import NO_CLASS, Scores, class_index, evaluate, find_pictures, measure, read_truth
from fmcae.runtime.predict import Outcome

CLASSES = FASHION_MNIST_CLASSES


@pytest.fixture
def folder(tmp_path: Path, shipped: Path) -> Path:
    """Two classes, one picture that the model takes for another, noise as unknown, a broken file and a note."""
    samples = shipped.parent / "samples"
    for place, sample in (
        ("Bag/b.png", "bag"),
        ("ankle-boot/a.png", "ankle-boot"),
        ("ankle-boot/sub/t.png", "trouser"),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes((samples / f"{sample}.png").read_bytes())
    (tmp_path / "Bag" / "broken.png").write_bytes(b"")
    (tmp_path / "Unknown").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 200, 200, 3), np.uint8)
    for index, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / "Unknown" / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_an_idx_set_gives_the_numbers_of_the_metrics(model: Model, sample: Path) -> None:
    pictures = find_pictures(sample, model.class_names)
    evaluation = evaluate(model, pictures)
    test = load_dataset(sample).test
    logits = model.classify(scale(test.images))
    probabilities = metrics.softmax(logits, model.artefacts["classifier"].card.temperature)
    scores = evaluation.scores
    assert (pictures.split, scores.images_known, scores.images_unknown) == ("test", 400, 0)
    assert scores.accuracy == metrics.accuracy(logits, test.labels)
    assert scores.confusion == metrics.confusion(logits, test.labels).tolist()
    assert scores.accuracy_wilson_interval_95 == metrics.wilson_interval(scores.images_right, 400)
    assert scores.expected_calibration_error == pytest.approx(
        metrics.expected_calibration_error(probabilities, test.labels), abs=1e-6
    )
    assert scores.known_kept == pytest.approx((metrics.known_score(logits) >= model.threshold).mean())
    assert scores.unknown_refused is scores.auroc_known_score is None
    assert [row.label for row in scores.classes] == list(CLASSES) and {row.images for row in scores.classes} == {40}
    assert len(evaluation.mistakes) == 400 - scores.images_right and not evaluation.unreadable
    for mistake in evaluation.mistakes:
        assert mistake.truth == CLASSES[test.labels[mistake.index]] != mistake.prediction.label


def test_other_splits_of_an_idx_set(sample: Path) -> None:
    dataset = load_dataset(sample)
    for split, part in (("train", dataset.train), ("val", dataset.val)):
        pictures = find_pictures(sample, CLASSES, split)
        assert pictures.images is not None and np.array_equal(pictures.images, part.images)
        assert pictures.split == split and pictures.truth.tolist() == part.labels.tolist()
    with pytest.raises(UsageError, match=r"split \(=all\) must be one of test, val, train"):
        find_pictures(sample, CLASSES, "all")


def test_no_data_is_that_of_training(sample: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(folder))
    assert find_pictures(None, CLASSES).data == str(folder)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "nowhere")
    with pytest.raises(UsageError, match=r"FMCAE_DATA \(=nowhere\) must be an existing folder"):
        find_pictures(None, CLASSES)
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    monkeypatch.setattr("fmcae.runtime.evaluate.load_dataset", lambda *_: load_dataset(sample))
    assert len(find_pictures(None, CLASSES)) == 400


def test_where_no_data_were_named_an_error_says_what_was_taken(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr("fmcae.runtime.evaluate.load_dataset", lambda *_: load_dataset(sample))
    with pytest.raises(UsageError, match=r"T-shirt/top is none of: bolt, screw; without a folder it is Fashion-MNIST"):
        find_pictures(None, ("bolt", "screw"))


def test_folders_of_classes(model: Model, folder: Path) -> None:
    seen: list[Outcome] = []
    evaluation = evaluate(model, find_pictures(folder, model.class_names), seen.append)
    scores = evaluation.scores
    assert (scores.images_known, scores.images_unknown, scores.images_right) == (3, 2, 2)
    assert (scores.unknown_refused, scores.auroc_known_score) == (1, 1)
    assert sum(scores.unknown_confusion) == 2
    images = {row.label: row.images for row in scores.classes if row.images}
    assert images == {"Bag": 1, "Ankle boot": 2}
    (mistake,) = evaluation.mistakes
    assert mistake.path == str(folder / "ankle-boot" / "sub" / "t.png")
    assert (mistake.truth, mistake.prediction.label) == ("Ankle boot", "Trouser")
    (unreadable,) = evaluation.unreadable
    assert unreadable.path == str(folder / "Bag" / "broken.png")
    assert [outcome.path for outcome in seen if outcome.error] == [unreadable.path] and len(seen) == 6


def test_an_unknown_picture_that_is_kept_is_a_mistake(folder: Path) -> None:
    from fmcae import load

    evaluation = evaluate(load(only="classifier", threshold=0), find_pictures(folder, CLASSES))
    assert (evaluation.scores.known_kept, evaluation.scores.unknown_refused) == (1, 0)
    assert sorted(mistake.truth for mistake in evaluation.mistakes) == ["Ankle boot", UNKNOWN, UNKNOWN]
    probabilities = [mistake.prediction.probability for mistake in evaluation.mistakes]
    assert probabilities == sorted(probabilities, reverse=True)


def test_of_unknown_pictures_alone_there_is_no_accuracy(model: Model, folder: Path) -> None:
    (folder / "only").mkdir()
    (folder / "Unknown").rename(folder / "only" / UNKNOWN)
    scores = evaluate(model, find_pictures(folder / "only", model.class_names)).scores
    assert (
        scores.accuracy is None
        and scores.accuracy_wilson_interval_95 is None
        and scores.expected_calibration_error is None
    )
    assert (scores.known_kept, scores.unknown_refused, scores.reliability) == (None, 1, [])


def test_nothing_that_can_be_read_is_an_error(model: Model, tmp_path: Path) -> None:
    (tmp_path / "Bag").mkdir()
    (tmp_path / "Bag" / "a.png").touch()
    with pytest.raises(DataError, match="holds no picture that can be read"):
        evaluate(model, find_pictures(tmp_path, model.class_names))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("T-shirt/top", 0), ("t-shirt_top", 0), ("T shirt top", 0), ("Ankle boot", 9), ("ankle-boot", 9), ("BAG ", 8),
        ("unknown", NO_CLASS), ("Unknown", NO_CLASS), ("Tshirt", None), ("Boot", None), ("", None), ("--", None),
    ],
)  # fmt: skip
def test_labels_are_matched_but_for_case_and_separators(label: str, expected: int | None) -> None:
    assert class_index(label, CLASSES) == expected


def test_what_two_classes_could_be_is_neither() -> None:
    names = ("a b", "A-B", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "unknown", "-")
    assert [class_index(name, names) for name in names] == [0, 1, 2, 3, 4]
    assert class_index("a_b", names) is None
    assert class_index("cafe\N{COMBINING ACUTE ACCENT}", names) == 2  # as macOS writes the folder's name
    assert class_index("Unknown", names) == 3
    assert class_index("C#", ("C++", "C")) is None


@pytest.fixture
def splits(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("splits")
    for split in ("train", "val", "test"):
        (parent / split / "Bag").mkdir(parents=True)
        (parent / split / "Bag" / f"{split}.png").write_bytes((folder / "Bag" / "b.png").read_bytes())
    return parent


def test_test_is_taken_or_else_val_or_what_is_asked_for(splits: Path) -> None:
    def found(split: str | None = None) -> list[str]:
        pictures = find_pictures(splits, CLASSES, split)
        assert pictures.data == str(splits) and pictures.split in (split, "test", "val")
        return [os.path.basename(path) for path, _ in pictures.found]

    assert [found(), found("val"), found("train")] == [["test.png"], ["val.png"], ["train.png"]]
    (splits / "test").rename(splits / ".test")
    assert found() == ["val.png"]
    with pytest.raises(UsageError, match=r"split \(=test\) must be val or train, which data \(=.*\) has"):
        found("test")
    (splits / "val").rename(splits / ".val")
    with pytest.raises(UsageError, match=r"split \(=None\) must be train, because data \(=.*\) has no other"):
        found()
    assert find_pictures(splits / "train", ("Bag",)).split is None


def test_a_class_may_be_called_as_a_split_is(splits: Path) -> None:
    pictures = find_pictures(splits / "test", ("Bag", "test"))
    assert (pictures.split, len(pictures)) == (None, 1)
    (splits / "train").rename(splits / ".train")
    with pytest.raises(UsageError, match="in val must hold the model's classes or unknown; Bag is none of: test"):
        find_pictures(splits, ("test",))


@pytest.fixture
def truth(folder: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        (folder / "truth.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder

    return write


def test_a_truth_file_names_pictures_and_labels(truth: Callable[[str | bytes], Path]) -> None:
    rows = "Bag/b.png,bag,1\r\nUnknown/0.png,unknown,\r\n\r\nUnknown/1.png,Spaceship,\r\nmissing.png,Coat\r\n"
    folder = truth("\ufefffile,label,comment\r\n" + rows)
    pictures = find_pictures(folder, CLASSES)
    assert [path for path, _ in pictures.found] == [
        str(folder / name) for name in ("Bag/b.png", "Unknown/0.png", "Unknown/1.png", "missing.png")
    ]
    assert pictures.truth.tolist() == [8, NO_CLASS, NO_CLASS, 4]
    assert pictures.notes == ("counted as unknown, because the model has no such class: Spaceship",)


def test_a_picture_of_a_truth_file_that_is_missing_or_none_is_one_that_cannot_be_read(
    model: Model, truth: Callable[[str | bytes], Path]
) -> None:
    names = ("Bag/b.png", "[ab]*.png", "-", "Bag")
    pictures = find_pictures(truth("file,label\n" + "".join(f'"{name}",Bag\n' for name in names)), CLASSES)
    evaluation = evaluate(model, pictures)
    assert evaluation.scores.images_known == 1
    assert [os.path.basename(outcome.path) for outcome in evaluation.unreadable] == list(names[1:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must begin with the columns file and label; it lacks file and label"),
        ("file,class\na.png,Bag\n", "must begin with the columns file and label; it lacks label"),
        ("file,label\n", "must name at least one picture"),
        ("file,label\na.png,Bag\nb.png,\n", "must have a file and a label in every line; line 3 lacks one"),
        ("file,label\na.png\n", "must have a file and a label in every line; line 2 lacks one"),
        ("file,label\na.png,Bag,Coat\n", "must have a value for each column; line 2 has more"),
        ("file,label\na.png,Bag\na.png,Bag\na.png,Coat\n", "must have one label for a.png; line 4 has another"),
        (b"file,label\n\xff.png,Bag\n", "is not text in UTF-8: invalid start byte at byte 11"),
        ('file,label\n"a.png,Bag\n', "is not CSV: unexpected end of data"),
    ],
)
def test_a_damaged_truth_file_is_named(
    truth: Callable[[str | bytes], Path], content: str | bytes, message: str
) -> None:
    folder = truth(content)
    with pytest.raises(DataError, match="truth.csv: ") as error:
        read_truth(folder)
    assert message in str(error.value)


@given(st.one_of(st.binary(max_size=60), st.text('file,label"\n\r\0x', max_size=60).map(str.encode)))
def test_any_truth_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "truth.csv"
    path.write_bytes(content)
    with suppress(DataError):
        assert all(file and label for file, label in read_truth(path.parent))


def test_a_truth_file_that_is_too_long_is_named(
    truth: Callable[[str | bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmcae.runtime.evaluate.MAX_TRUTH_BYTES", 2**20)
    with pytest.raises(DataError, match="truth.csv: cannot be read: it has more than 1 MiB"):
        read_truth(truth(bytes(2**20 + 1)))


def test_what_is_no_data_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    (empty / "Bag").mkdir()
    (folder / "Spaceship").mkdir()
    cases: list[tuple[Any, type[FmcaeError], str]] = [
        ("", UsageError, r"data \(=\) must be an existing folder"),
        (folder / "notes.txt", UsageError, r"data \(=.*notes.txt\) must be an existing folder"),
        (folder / "Bag", UsageError, "must hold a folder of pictures for each class, truth.csv, or the four IDX files"),
        (empty, UsageError, "must hold a folder of pictures for each class, truth.csv, or the four IDX files"),
        (folder, UsageError, "must hold the model's classes or unknown; Spaceship is none of: T-shirt/top, Trouser, "),
    ]
    for data, kind, message in cases:
        with pytest.raises(kind, match=message):
            find_pictures(data, CLASSES)
    with pytest.raises(UsageError, match=r"split \(=val\) must not be given: .* has no folders train, val or test"):
        find_pictures(folder, CLASSES, "val")


def test_an_idx_set_of_other_classes_or_in_part_is_refused(sample: Path, tmp_path: Path) -> None:
    for path in sample.glob("*.gz"):
        idx.write(tmp_path / path.name, idx.parse(idx.read_bytes(path), path.name))
    with pytest.raises(
        UsageError, match="or unknown; 0 is none of: T-shirt/top, .*; a class_names.txt beside IDX files"
    ):
        find_pictures(tmp_path, CLASSES)  # its labels are numbers
    with pytest.raises(UsageError, match=r"^the model's size, 64, must be that of the images of .*, which have 28×28"):
        find_pictures(tmp_path, CLASSES, size=64)
    names = [*CLASSES[:-1], UNKNOWN]
    (tmp_path / "class_names.txt").write_text("\n".join(names))
    assert (find_pictures(tmp_path, CLASSES).truth == NO_CLASS).sum() == 40
    next(tmp_path.glob("t10k-labels*")).unlink()
    with pytest.raises(DataError, match="is incomplete: t10k-labels-idx1-ubyte missing"):
        find_pictures(tmp_path, CLASSES)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_named(folder: Path) -> None:
    folder.chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be read: Permission denied"):
            find_pictures(folder, CLASSES)
    finally:
        folder.chmod(0o700)


PICTURES = st.lists(
    st.tuples(st.integers(-1, 2), st.integers(0, 2), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])),
    min_size=1,
    max_size=12,
)


def scores_of(pictures: list[tuple[int, int, float]]) -> Scores:
    """The scores of pictures (true index, predicted index, known score) of three classes at the threshold 0.5."""
    rows: NDArray[np.float32] = np.full((3, 3), 0.2, np.float32) + np.eye(3, dtype=np.float32) * 0.4
    predictions = [
        Prediction("abc"[said], said, float(rows[said, said]), rows[said], score >= 0.5, score)
        for _, said, score in pictures
    ]
    return measure(predictions, np.array([true for true, _, _ in pictures]), "abc", 0.5)


@given(PICTURES)
def test_scores_are_what_counting_gives(pictures: list[tuple[int, int, float]]) -> None:
    known = [picture for picture in pictures if picture[0] != NO_CLASS]
    unknown = [picture for picture in pictures if picture[0] == NO_CLASS]
    scores = scores_of(pictures)
    assert (scores.images_known, scores.images_unknown) == (len(known), len(unknown))
    assert scores.images_right == sum(true == said for true, said, _ in known)
    assert scores.accuracy == (scores.images_right / len(known) if known else None)
    assert scores.known_kept == (sum(score >= 0.5 for *_, score in known) / len(known) if known else None)
    assert scores.unknown_refused == (sum(score < 0.5 for *_, score in unknown) / len(unknown) if unknown else None)
    pairs = [(a > b) + (a == b) / 2 for *_, a in known for *_, b in unknown]
    assert scores.auroc_known_score == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)
    for index, row in enumerate(scores.classes):
        of_class = [picture for picture in known if picture[0] == index]
        assert (row.images, row.images_refused) == (len(of_class), sum(score < 0.5 for *_, score in of_class))
        assert scores.unknown_confusion[index] == sum(said == index for _, said, _ in unknown)
    if known:
        error = abs(np.float64(np.float32(0.6)) - scores.images_right / len(known))  # all are of one confidence
        assert scores.expected_calibration_error == pytest.approx(error)
