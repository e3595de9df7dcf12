"""Compare scores that may tell known pictures from unknown ones.

    python bench/known_scores.py --pictures DIR --out bench/results/known_scores.json

For each ``--model`` (a folder with encoder, decoder and classifier), the area under the ROC curve of four scores:

- ``known score``: the energy of the logits. In the robust recipe it is the extra class, whose logit is fixed at 0: both
  order pictures in the same way (``fmcae.metrics.known_score``).
- ``largest probability``, of the softmax.
- ``distance in z``: to the nearest class's mean, by the covariance that the classes share (Lee et al. 2018,
  arXiv:1807.03888, on the encoder's z).
- ``reconstruction error``, the autoencoder's own.

Known are the validation images and the pictures of a class in DIR; unknown are drawn negatives whose seed no training
uses, and the other pictures in DIR. It needs matplotlib, which brings the negatives' fonts, beside the light install.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pictures import name_of, read_pictures
from preprocess_roundtrip import versions
from reports import write_report

import fmcae
from fmcae.data import UNKNOWN, Split, load_dataset
from fmcae.metrics import auroc, known_score, softmax
from fmcae.preprocess import scale
from fmcae.runtime.model import FloatArray, Model
from fmcae.train.negatives import negatives

NEGATIVES, SEED = 3_000, 2**31  # a seed beyond those that people give a training
Score = Callable[[FloatArray], NDArray[np.floating]]  # x (N, 1, 28, 28) -> (N,), higher for more familiar


def scores_of(model: Model, train: Split) -> dict[str, Score]:
    z = model.encode(scale(train.images))
    means = np.stack([z[train.labels == label].mean(axis=0) for label in range(len(model.class_names))])
    inverse = np.linalg.pinv(np.cov((z - means[train.labels]).T))

    def distance(x: FloatArray) -> NDArray[np.floating]:
        difference = model.encode(x)[:, np.newaxis] - means  # (N, K, n)
        nearest: NDArray[np.floating] = (np.matmul(difference, inverse) * difference).sum(axis=2).min(axis=1)
        return -nearest

    return {
        "known score": lambda x: known_score(model.classify(x)),
        "largest probability": lambda x: softmax(model.classify(x)).max(axis=1),
        "distance in z": distance,
        "reconstruction error": lambda x: -np.square(x - model.reconstruct(x)).mean(axis=(1, 2, 3)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pictures", type=Path, required=True, help="folder with pictures and truth.csv")
    parser.add_argument("--model", nargs="+", default=["fashion-mnist", "fashion-mnist-paper"])
    parser.add_argument("--data", type=Path, help="gzipped IDX files of Fashion-MNIST")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    dataset = load_dataset(options.data)
    pictures = read_pictures(options.pictures)
    drawn = negatives(dataset.val.images, NEGATIVES, SEED)
    pairs = {  # known and unknown images (N, 28, 28)
        "validation images from drawn negatives": (dataset.val.images, drawn),
        "pictures of a class from other pictures": (
            np.stack([picture.pixels for picture in pictures if picture.truth != UNKNOWN]),
            np.stack([picture.pixels for picture in pictures if picture.truth == UNKNOWN]),
        ),
    }
    few = Split(dataset.train.images[:10_000], dataset.train.labels[:10_000])
    results: dict[str, dict[str, dict[str, float]]] = {}
    for path in options.model:
        results[name_of(path)] = rows = {}
        for name, score in scores_of(fmcae.load(path), few).items():
            rows[name] = {
                pair: round(auroc(*(score(scale(side)) for side in sides)), 4) for pair, sides in pairs.items()
            }
            print(f"{name_of(path):22}{name:22}" + "".join(f"{value:8.4f}" for value in rows[name].values()))
    write_report(
        options.out,
        "area under the ROC curve, known from unknown, by score",
        n={pair: [len(side) for side in sides] for pair, sides in pairs.items()},
        models=results,
        versions={"fmcae": fmcae.__version__, **versions()},
    )


if __name__ == "__main__":
    main()
