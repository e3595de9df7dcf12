"""Make the two samples of Fashion-MNIST that the repository holds: the tests' and the pictures in exports/samples.

python tests/data/make_samples.py

The tests' sample is the first images of each class, in the set's order. The pictures are, of each class, the first test
image that the shipped classifier recognizes.
"""

from pathlib import Path

import numpy as np
from PIL import Image

import fmcae
from fmcae.data import DEBIAN_FOLDER, FASHION_MNIST_CLASSES, IDX_NAMES, idx

ROOT = Path(__file__).parents[2]
PER_CLASS = {"train": 120, "t10k": 40}


def write_test_sample(folder: Path) -> None:
    for part, per_class in PER_CLASS.items():
        images_name, labels_name = (name for name in IDX_NAMES if name.startswith(part))
        images, labels = read(images_name), read(labels_name)
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == index)[:per_class] for index in range(10)]))
        idx.write(folder / f"{images_name}.gz", images[chosen])
        idx.write(folder / f"{labels_name}.gz", labels[chosen])
    (folder / "class_names.txt").write_text("\n".join(FASHION_MNIST_CLASSES) + "\n")


def write_pictures(folder: Path) -> None:
    images, labels = read("t10k-images-idx3-ubyte"), read("t10k-labels-idx1-ubyte")
    folder.mkdir(exist_ok=True)
    predicted = np.array([prediction.index for prediction in fmcae.load().predict(list(images))])
    for index, name in enumerate(FASHION_MNIST_CLASSES):
        first = np.flatnonzero((labels == index) & (predicted == index))[0]
        stem = name.lower().replace("/", "-").replace(" ", "-")
        Image.fromarray(images[first]).save(folder / f"{stem}.png", optimize=True)


def read(name: str) -> np.ndarray:
    return idx.parse(idx.read_bytes(DEBIAN_FOLDER / f"{name}.gz"), name)


if __name__ == "__main__":
    write_test_sample(ROOT / "tests" / "data" / "fashion-mnist-sample")
    write_pictures(ROOT / "exports" / "samples")
