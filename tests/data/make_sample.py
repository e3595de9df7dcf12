"""Make the tests' sample: the first images of each class of Fashion-MNIST, in the set's order.

python tests/data/make_sample.py
"""

from pathlib import Path

import numpy as np

from fmcae.data import DEBIAN_FOLDER, FASHION_MNIST_CLASSES, IDX_NAMES, idx

FOLDER = Path(__file__).parent / "fashion-mnist-sample"
PER_CLASS = {"train": 120, "t10k": 40}

for part, per_class in PER_CLASS.items():
    images_name, labels_name = (name for name in IDX_NAMES if name.startswith(part))
    images, labels = (
        idx.parse(idx.read_bytes(DEBIAN_FOLDER / f"{name}.gz"), name) for name in (images_name, labels_name)
    )
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == index)[:per_class] for index in range(10)]))
    idx.write(FOLDER / f"{images_name}.gz", images[chosen])
    idx.write(FOLDER / f"{labels_name}.gz", labels[chosen])
(FOLDER / "class_names.txt").write_text("\n".join(FASHION_MNIST_CLASSES) + "\n")
