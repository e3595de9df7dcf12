"""How fast fmcae trains on this machine, beside the plain PyTorch recipe and Keras.

    pip install '.[train]' tensorflow-cpu     # Keras is left out where TensorFlow is not installed
    python bench/train_speed.py --rounds 21 --out bench/results/train_speed_cpu.json --plot bench/results/train_speed_cpu.png

The plain recipe is what a PyTorch user would write: ``torchvision.datasets.FashionMNIST`` with ``ToTensor``, a
``DataLoader`` (0 and 2 workers, each a row of its own), the networks as they are defined in ``fmcae.train.networks``,
Adam, one loop. Keras gets the same layers, and ``fit`` on arrays. All train on the same 50,000 images in batches of 100,
with the same number of threads and the same reading of dropout. Every round times a slice of an epoch of each, one after
the other, so that a busy moment of the machine meets them all; a ratio is taken within a round, and reported as the
median and the range over the rounds. On a GPU fmcae trains as it does for users, repeatably and in full float32; the plain
recipe has PyTorch's defaults.
"""

import argparse
import gzip
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import torch
from bars import Bar, draw
from reports import write_report
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FashionMNIST
from torchvision.transforms import ToTensor

from fmcae.cli.progress import Lines
from fmcae.data import FASHION_MNIST_SHA256, load_dataset
from fmcae.runtime.machine import available_cpus, describe_machine, gpu_facts
from fmcae.train.backend import backend_for, optimizer_for
from fmcae.train.config import DropoutPosition, NetworkConfig
from fmcae.train.loop import _deterministic, step_for, train_epoch
from fmcae.train.measure import DeviceSplit
from fmcae.train.networks import Autoencoder, Classifier
from fmcae.train.progress import Progress

BATCH = 100  # images
Timed = Callable[[int], float]  # number of batches -> seconds
CASES: list[tuple[str, DropoutPosition]] = [
    ("autoencoder", "after-pooling"),
    ("autoencoder", "before-pooling"),
    ("classifier", "after-pooling"),
]


def lay_out_for_torchvision(data: Path, folder: Path) -> None:
    """The four files in ``folder`` as torchvision wants them, unzipped."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FASHION_MNIST_SHA256:
        (raw / name).write_bytes(gzip.decompress((data / f"{name}.gz").read_bytes()))


def new_network(stage: str, config: NetworkConfig) -> Autoencoder | Classifier:
    return Autoencoder(config) if stage == "autoencoder" else Classifier(config)


def plain(stage: str, config: NetworkConfig, threads: int, folder: Path, workers: int, device: torch.device) -> Timed:
    network = new_network(stage, config).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    whole = FashionMNIST(str(folder), train=True, transform=ToTensor())
    dataset = Subset(whole, range(min(50_000, len(whole))))
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def endless() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def run(count: int) -> float:
        torch.set_num_threads(threads)
        network.train()
        started = time.perf_counter()
        for x, labels in islice(batches, count):
            x, labels = x.to(device), labels.to(device)
            output = network(x)
            loss = F.mse_loss(output, x) if stage == "autoencoder" else F.cross_entropy(output, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return run


def ours(stage: str, config: NetworkConfig, threads: int, split: DeviceSplit, device: torch.device) -> Timed:
    network = new_network(stage, config).to(device)

    def run(count: int) -> float:
        part = DeviceSplit(split.images[: BATCH * count], split.labels[: BATCH * count])
        with _deterministic(device), backend_for(network, device, threads) as backend:  # as fmcae train does
            step = step_for(backend, optimizer_for(backend, 1e-3), part, BATCH, Lines())
            started = time.perf_counter()
            train_epoch(step, network, part, BATCH, Progress())
            return time.perf_counter() - started

    return run


def keras(stage: str, config: NetworkConfig, threads: int, images: np.ndarray, labels: np.ndarray) -> Timed | None:
    try:
        tf = import_module("tensorflow")
    except ImportError:
        return None
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    layers, p = tf.keras.layers, config.dropout

    def block() -> list[object]:
        drop, pool = layers.Dropout(p), layers.MaxPooling2D(2)
        return [drop, pool] if config.dropout_position == "before-pooling" else [pool, drop]

    encoder = [
        layers.Conv2D(16, 3, activation="relu"), *block(), layers.Conv2D(32, 3, activation="relu"), *block(),
        layers.Flatten(), layers.Dense(config.latent_dim, activation="relu"), layers.Dropout(p),
    ]  # fmt: skip
    decoder = [
        layers.Dense(800, activation="relu"), layers.Dropout(p), layers.Reshape((5, 5, 32)),
        layers.Conv2DTranspose(16, 4, strides=2, output_padding=1, activation="relu"), layers.Dropout(p),
        layers.Conv2DTranspose(1, 3, strides=2, output_padding=1, activation="sigmoid"),
    ]  # fmt: skip
    head = decoder if stage == "autoencoder" else [layers.Dense(10)]
    network = tf.keras.Sequential([layers.Input((28, 28, 1)), *encoder, *head])
    loss = "mse" if stage == "autoencoder" else tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer=tf.keras.optimizers.Adam(1e-3), loss=loss)
    x = images[..., None]

    def run(count: int) -> float:
        part = x[: BATCH * count]
        target = part if stage == "autoencoder" else labels[: BATCH * count]
        started = time.perf_counter()
        network.fit(part, target, batch_size=BATCH, verbose=0)
        return time.perf_counter() - started

    return run


def measure(ways: dict[str, Timed], rounds: int, batches: int) -> dict[str, dict[str, Any]]:
    """Seconds an epoch of each way, and how many times faster fmcae is, within each round."""
    for run in ways.values():
        run(max(20, batches // 4))  # compile, fill caches, start workers
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            seconds[name].append(run(batches) * 500 / batches)
    result = {}
    for name, values in seconds.items():
        ratios = np.divide(values, seconds["fmcae"])
        result[name] = {
            "epoch_s": {"median": float(np.median(values)), "min": min(values), "max": max(values)},
            "fmcae_is_faster": {"median": float(np.median(ratios)), "min": ratios.min(), "max": ratios.max()},
            "rounds_epoch_s": values,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="gzipped IDX files"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=100, help="batches of 100 images that one timing takes")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    parser.add_argument("--plot", type=Path, help="draw the result here as PNG")
    options = parser.parse_args()
    device = torch.device(options.device)
    dataset = load_dataset(options.data)
    split = DeviceSplit.from_split(dataset.train, device)
    arrays = dataset.train.images.astype(np.float32) / 255, dataset.train.labels
    temporary = tempfile.TemporaryDirectory()  # removed when the process ends
    folder = Path(temporary.name)
    lay_out_for_torchvision(options.data, folder)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for stage, position in CASES:
        config = NetworkConfig(dropout_position=position)
        ways: dict[str, Timed | None] = {
            "fmcae": ours(stage, config, options.threads, split, device),
            "plain PyTorch, 0 workers": plain(stage, config, options.threads, folder, 0, device),
            "plain PyTorch, 2 workers": plain(stage, config, options.threads, folder, 2, device),
            "Keras": keras(stage, config, options.threads, *arrays),
        }
        present = {name: run for name, run in ways.items() if run is not None}
        results[f"{stage}, dropout {position}"] = rows = measure(present, options.rounds, options.batches)
        print(f"{stage}, dropout {position}")
        print_rows(rows)
    if options.plot:
        plot(results, options.plot)
    gpu = gpu_facts() if device.type == "cuda" else None
    write_report(
        options.out,
        "seconds of one epoch of training (50,000 images, batches of 100), and ratios within each round",
        threads=options.threads,
        rounds=options.rounds,
        batches_a_timing=options.batches,
        results=results,
        machine=describe_machine() | {"device": options.device, "gpu": gpu},
    )


def print_rows(rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        epoch, ratio = row["epoch_s"], row["fmcae_is_faster"]
        spread = f"{epoch['min']:.1f}-{epoch['max']:.1f}"
        faster = f"{ratio['median']:.2f}x ({ratio['min']:.2f}-{ratio['max']:.2f})"
        print(f"  {name:26}{epoch['median']:7.2f} s an epoch ({spread})  {faster}", flush=True)


def plot(results: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    def bar(name: str, row: dict[str, Any]) -> Bar:
        epoch, ratio = row["epoch_s"], row["fmcae_is_faster"]["median"]
        return Bar(epoch["median"], epoch["min"], epoch["max"], f"{ratio:.1f}×", name == "fmcae")

    panels = {title: {name: bar(name, row) for name, row in rows.items()} for title, rows in results.items()}
    draw(panels, 1, "seconds an epoch (median and range of rounds); beside the bars: fmcae is faster by", path)


if __name__ == "__main__":
    main()
