"""Measure how well models label pictures of one's own, and whether they say "unknown" where no class fits.

    python bench/pictures.py --pictures DIR --jobs 2 --out bench/results/pictures.json --page bench/results/pictures.png

Three parts, for each ``--model``:

1. Pictures: a folder whose ``truth.csv`` (columns file, label) says what each picture shows, or ``unknown`` where it is
   none of the classes. A model says its label, or unknown below its threshold; a picture is right if that is the truth.
   The accuracy leaves the threshold out. Its group's label is what a shirt taken for a coat still gets.
2. Changes: images of a split mirrored, turned, narrowed, widened, and undone in the ways of ``preprocess_roundtrip.py``;
   each goes through ``fmcae.preprocess`` again. Unlike there, the label must be the true one. A recipe is chosen on
   ``--split val``; ``test`` is for the one number at the end.
3. Unknown by construction: pages of noise, of one colour and of text, beside the split's images.

AUROC is the chance that a known picture scores higher than an unknown one. It needs numpy, Pillow and ONNX Runtime.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from preprocess_roundtrip import BLACK, WAYS, WHITE, Bytes, Way, enlarged, inked, padded, some_size, versions
from reports import write_report

import fmcae
from fmcae.data import FASHION_MNIST_CLASSES, UNKNOWN, Split, load_dataset
from fmcae.images import ImageSource
from fmcae.metrics import accuracy, auroc, known_score
from fmcae.preprocess import scale, to_uint8
from fmcae.runtime.contact_sheet import MAX_TILES, contact_sheet, tile
from fmcae.runtime.evaluate import TRUTH_FILE, class_index, measure, read_truth
from fmcae.runtime.model import Model, Prediction

GROUPS = {
    "top": ("T-shirt/top", "Pullover", "Coat", "Shirt"),
    "trouser": ("Trouser",),
    "dress": ("Dress",),
    "shoe": ("Sandal", "Sneaker", "Ankle boot"),
    "bag": ("Bag",),
}
GROUP_OF = {label: group for group, labels in GROUPS.items() for label in labels}
SYNTHETIC_COUNT = 100  # pictures of each kind
RIGHT, WRONG = (0, 140, 60), (205, 30, 30)  # frames on the page


# --- changes of a split's images, and pictures of nothing ----------------------------------------------------------


def turned(raw: Bytes, rng: np.random.Generator, degrees: float) -> Image.Image:
    v = enlarged(raw, some_size(rng)).rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    return padded(inked(v, WHITE, BLACK), WHITE, rng)


def stretched(raw: Bytes, rng: np.random.Generator, aspect: float) -> Image.Image:
    size = some_size(rng)
    v = enlarged(raw, size).resize((round(size * aspect), size), Image.Resampling.BICUBIC)
    return padded(inked(v, WHITE, BLACK), WHITE, rng)


def noise(rng: np.random.Generator) -> Bytes:
    shape = (28, 28) if rng.random() < 0.5 else (300, 300, 3)
    return rng.integers(0, 256, shape, np.uint8)


def blank(rng: np.random.Generator) -> Bytes:
    return np.full((300, 300, 3), rng.integers(0, 256, 3), np.uint8)


def text(rng: np.random.Generator) -> Image.Image:
    """A page full of words of random letters."""
    words = ("".join(rng.choice(list(ascii_lowercase), rng.integers(2, 11))) for _ in range(1000))
    lines = ["".join(f"{next(words)} " for _ in range(20)) for _ in range(50)]
    page = Image.new("L", (600, 800), 255)
    inside = Image.new("L", (500, 700), 255)
    font = ImageFont.load_default(int(rng.integers(16, 49)))
    ImageDraw.Draw(inside).multiline_text((0, 0), "\n".join(lines), 0, font)
    page.paste(inside, (50, 50))
    return page


# The ways come first: an image's seed, which has the way's place in it, is then the one of preprocess_roundtrip.py.
CHANGES: dict[str, Way] = {
    **WAYS,
    "plain": lambda raw, rng: raw,
    "mirrored": lambda raw, rng: raw[:, ::-1],
    "turned by -15°": lambda raw, rng: turned(raw, rng, -15),
    "turned by +15°": lambda raw, rng: turned(raw, rng, 15),
    "aspect 0.8": lambda raw, rng: stretched(raw, rng, 0.8),
    "aspect 1.2": lambda raw, rng: stretched(raw, rng, 1.2),
}
SYNTHETIC: dict[str, Callable[[np.random.Generator], ImageSource]] = {"noise": noise, "blank": blank, "text": text}


def changed(job: tuple[str, int, Bytes]) -> Bytes:
    """One raw image (28, 28) uint8, changed the named way and preprocessed again."""
    change, index, raw = job
    return to_uint8(CHANGES[change](raw, np.random.default_rng([list(CHANGES).index(change), index])))


# --- measuring -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    path: Path
    truth: str
    pixels: Bytes  # (28, 28), what a model sees


def read_pictures(folder: Path) -> list[Picture]:
    rows = read_truth(folder)
    if wrong := {label for _, label in rows} - {*GROUP_OF, UNKNOWN}:
        raise SystemExit(f"{folder / TRUTH_FILE}: no such label: {', '.join(sorted(wrong))}")
    return [Picture(folder / file, label, to_uint8(folder / file)) for file, label in rows]


def answer(prediction: Prediction) -> str:
    return prediction.label if prediction.known else UNKNOWN


def share(flags: list[bool]) -> float | None:
    """The share of true ones; None of none."""
    return round(sum(flags) / len(flags), 4) if flags else None


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def measure_pictures(model: Model, pictures: list[Picture], predictions: list[Prediction]) -> dict[str, Any]:
    pairs = list(zip(pictures, predictions, strict=True))
    known = [(picture, prediction) for picture, prediction in pairs if picture.truth != UNKNOWN]
    unknown = [prediction for picture, prediction in pairs if picture.truth == UNKNOWN]
    truth = [class_index(picture.truth, model.class_names) for picture in pictures]
    scores = measure(predictions, np.array(truth), model.class_names, model.threshold)
    probabilities = [np.array([p.probability for p in side]) for side in ([p for _, p in known], unknown)]

    def of(group: tuple[str, ...]) -> dict[str, Any]:
        members = [(picture.truth, p.label) for picture, p in known if picture.truth in group]
        return {
            "n": len(members),
            "accuracy": share([truth == label for truth, label in members]),
            "group_accuracy": share([GROUP_OF[truth] == GROUP_OF[label] for truth, label in members]),
        }

    return {
        "n_known": scores.images_known,
        "n_unknown": scores.images_unknown,
        "accuracy": rounded(scores.accuracy),
        "group_accuracy": of(FASHION_MNIST_CLASSES)["group_accuracy"],
        "groups": {name: of(labels) for name, labels in GROUPS.items()},
        "auroc_known_score": rounded(scores.auroc_known_score),
        "auroc_probability": rounded(auroc(*probabilities)) if known and unknown else None,
        "known_kept": rounded(scores.known_kept),
        "unknown_refused": rounded(scores.unknown_refused),
        "right": share([answer(prediction) == picture.truth for picture, prediction in pairs]),
        "rows": [
            {
                "file": picture.path.name,
                "truth": picture.truth,
                "label": prediction.label,
                "probability": round(prediction.probability, 4),
                "known_score": round(prediction.known_score, 6),
                "known": prediction.known,
                "right": answer(prediction) == picture.truth,
            }
            for picture, prediction in pairs
        ],
    }


def measure_changes(models: Mapping[str, Model], split: Split, jobs: int) -> dict[str, dict[str, Any]]:
    """Return each model's accuracy on the split's images after each change."""
    accuracies: dict[str, dict[str, float]] = {name: {} for name in models}
    with ProcessPoolExecutor(jobs) as pool:
        for change in CHANGES:
            work = [(change, index, raw) for index, raw in enumerate(split.images)]
            x = scale(np.stack(list(pool.map(changed, work, chunksize=25))))
            for name, model in models.items():
                accuracies[name][change] = accuracy(model.classify(x), split.labels)
            print(f"{change} done", file=sys.stderr)
    return {name: summary_of_changes(values) for name, values in accuracies.items()}


def summary_of_changes(accuracies: Mapping[str, float]) -> dict[str, Any]:
    plain = accuracies["plain"]
    rows = {
        change: {"accuracy": round(value, 4), "points_to_plain": round(100 * (value - plain), 2)}
        for change, value in accuracies.items()
    }
    worst = min(WAYS, key=lambda way: accuracies[way])
    return {
        "plain": round(plain, 4),
        "mirrored": rows["mirrored"]["accuracy"],
        "turned_mean": round((accuracies["turned by -15°"] + accuracies["turned by +15°"]) / 2, 4),
        "aspect_mean": round((accuracies["aspect 0.8"] + accuracies["aspect 1.2"]) / 2, 4),
        "worst_way": {"way": worst, **rows[worst]},
        "rows": rows,
    }


def measure_synthetic(models: Mapping[str, Model], split: Split) -> dict[str, dict[str, Any]]:
    """Return what each model refuses of pictures that show nothing, and keeps of the whole split."""
    generators = {kind: np.random.default_rng(index) for index, kind in enumerate(SYNTHETIC)}
    inputs = {
        kind: scale(np.stack([to_uint8(SYNTHETIC[kind](rng)) for _ in range(SYNTHETIC_COUNT)]))
        for kind, rng in generators.items()
    }
    results = {}
    for name, model in models.items():
        logits = np.concatenate([model.classify(scale(part)) for part in np.array_split(split.images, 10)])
        known = known_score(logits)
        scores = {kind: known_score(model.classify(x)) for kind, x in inputs.items()}
        results[name] = {
            "split_accuracy": round(accuracy(logits, split.labels), 4),
            "split_kept": share((known >= model.threshold).tolist()),
            **{
                kind: {
                    "n": len(score),
                    "refused": share((score < model.threshold).tolist()),
                    "auroc_known_score": round(auroc(known, score), 4),
                }
                for kind, score in scores.items()
            },
        }
    return results


# --- showing -------------------------------------------------------------------------------------------------------


def draw_page(pictures: list[Picture], predictions: list[Prediction], path: Path) -> None:
    """Write a contact sheet as PNG: framed in green what is right, in red what is wrong."""
    tiles = []
    for picture, prediction in list(zip(pictures, predictions, strict=True))[:MAX_TILES]:
        drawn = tile(picture.path, picture.pixels, prediction, f"truth: {picture.truth}")
        colour = RIGHT if answer(prediction) == picture.truth else WRONG
        tiles.append(ImageOps.expand(drawn, 4, colour))
    path.write_bytes(contact_sheet(tiles))


def print_result(name: str, result: Mapping[str, Any]) -> None:
    pictures, changes, synthetic = result["pictures"], result["changes"], result["synthetic"]
    print(f"\n{name} (threshold {result['threshold']:.4f})")
    for row in pictures["rows"]:
        said = f"{row['label']:12}{row['probability']:8.4f}{row['known_score']:9.4f}"
        marks = f"{'' if row['known'] else UNKNOWN:9}{'' if row['right'] else 'wrong'}"
        print(f"  {row['file']:36}{row['truth']:13}{said}  {marks}".rstrip())
    for group, row in {**pictures["groups"], "all classes": {**pictures, "n": pictures["n_known"]}}.items():
        accuracies = f"accuracy {percent(row['accuracy'])}  group's {percent(row['group_accuracy'])}"
        print(f"  {group:33}n {row['n']:3}  {accuracies}")
    kept, refused = percent(pictures["known_kept"]), percent(pictures["unknown_refused"])
    print(f"  known kept {kept}, unknown refused {refused}")
    print(f"  AUROC by known score {pictures['auroc_known_score']}, by probability {pictures['auroc_probability']}")
    for change, row in changes["rows"].items():
        print(f"  {change:36}{percent(row['accuracy'])}{row['points_to_plain']:+8.2f} points")
    worst = changes["worst_way"]
    print(f"  turned, mean {percent(changes['turned_mean'])}; aspect, mean {percent(changes['aspect_mean'])}")
    print(f"  worst way: {worst['way']}, {worst['points_to_plain']:+.2f} points")
    print(f"  whole split: accuracy {percent(synthetic['split_accuracy'])}, kept {percent(synthetic['split_kept'])}")
    for kind in SYNTHETIC:
        print(f"  {kind:36}refused {percent(synthetic[kind]['refused'])}  AUROC {synthetic[kind]['auroc_known_score']}")


def percent(value: float | None) -> str:
    return "none" if value is None else f"{value:7.2%}"


def name_of(model: str) -> str:
    """What a model is called in the result: its folder's name."""
    path = Path(model).resolve()
    return path.parent.name if path.suffix == ".onnx" else path.name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=Path, required=True, help="folder with pictures and truth.csv")
    parser.add_argument(
        "--model", nargs="+", action="extend", help="what ships (default: fashion-mnist), or folders or files"
    )
    parser.add_argument("--data", type=Path, help="gzipped IDX files of Fashion-MNIST")
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--limit", type=int, default=1000, help="number of images of the split to change")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    parser.add_argument("--page", type=Path, help="draw the pictures here as PNG; several models get a page each")
    options = parser.parse_args()
    paths = options.model or ["fashion-mnist"]
    models = {name_of(path): fmcae.load(path, only="classifier") for path in paths}
    if len(models) < len(paths):
        parser.error("--model: two models have one folder name")
    if any(model.class_names != FASHION_MNIST_CLASSES for model in models.values()):
        parser.error("--model: must have Fashion-MNIST's classes")

    dataset = load_dataset(options.data)
    split = dataset.val if options.split == "val" else dataset.test
    part = Split(split.images[: options.limit], split.labels[: options.limit])
    pictures = read_pictures(options.pictures)
    x = scale(np.stack([picture.pixels for picture in pictures]))
    predictions = {name: model.predict_inputs(x) for name, model in models.items()}
    changes, synthetic = measure_changes(models, part, options.jobs), measure_synthetic(models, split)
    results = {
        name: {
            "threshold": model.threshold,
            "pictures": measure_pictures(model, pictures, predictions[name]),
            "changes": changes[name],
            "synthetic": synthetic[name],
        }
        for name, model in models.items()
    }
    for name, result in results.items():
        print_result(name, result)
        if options.page:
            page = options.page if len(models) == 1 else options.page.with_stem(f"{options.page.stem}-{name}")
            draw_page(pictures, predictions[name], page)
    write_report(
        options.out,
        "labels of pictures, of changed images of a split and of pictures that show nothing, by true label",
        split=options.split,
        n={"pictures": len(pictures), "changes": len(part), "split": len(split), "synthetic": SYNTHETIC_COUNT},
        models=results,
        versions={"fmcae": fmcae.__version__, **versions()},
    )


if __name__ == "__main__":
    main()
