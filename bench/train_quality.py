"""Whether the fast training step learns what the plain one learns: test metrics of both over seeds.

    python bench/train_quality.py --out bench/results/train_quality_cpu.json

Each seed trains the default configuration, autoencoder and classifier, twice: with the fused step that a CPU gets, and
with PyTorch's own operators and Adam (``fmcae.train.backend.PlainBackend``). Both start from the same weights; dropout's
random numbers differ, so they part from the first step on, and only averages over seeds can agree. The report has each
metric's mean and standard deviation, and the mean of the paired differences with its 95% interval (Student's t).
"""

import argparse
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from reports import write_report
from scipy import stats

from fmcae.data import Dataset, load_dataset
from fmcae.runtime.machine import available_cpus, describe_machine
from fmcae.train import backend
from fmcae.train.config import TrainConfig
from fmcae.train.loop import train
from fmcae.train.run import create_run

METRICS = {"autoencoder": ("mse",), "classifier": ("accuracy", "cross_entropy")}
# how fmcae chooses between them: a network with other layers than the paper's goes to PyTorch
OTHER_LAYERS = patch.object(backend, "_has_papers_layers", return_value=False)
STEPS: dict[str, AbstractContextManager[Any]] = {"fused": nullcontext(), "plain": OTHER_LAYERS}


def train_once(step: str, seed: int, epochs: int, threads: int, dataset: Dataset) -> dict[str, Any]:
    config = TrainConfig(seed=seed, epochs=epochs, threads=threads, device="cpu")
    with tempfile.TemporaryDirectory() as folder, STEPS[step]:
        run = create_run(Path(folder) / "run", config, dataset)
        train(run, dataset)
        records = run.metrics()
    result: dict[str, Any] = {"step": step, "seed": seed}
    for stage, names in METRICS.items():
        test = next(record for record in records if record["stage"] == stage and record.get("split") == "test")
        result |= {f"{stage}_test_{name}": test[f"test_{name}"] for name in names}
    print(result, flush=True)
    return result


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    by_step = {step: [run for run in runs if run["step"] == step] for step in STEPS}
    summary = {}
    for stage, names in METRICS.items():
        for name in names:
            key = f"{stage}_test_{name}"
            values = {step: np.array([run[key] for run in step_runs]) for step, step_runs in by_step.items()}
            difference = values["fused"] - values["plain"]
            half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / np.sqrt(len(difference))
            summary[key] = {
                **{
                    step: {"mean": float(array.mean()), "std": float(array.std(ddof=1))}
                    for step, array in values.items()
                },
                "fused_minus_plain": {
                    "mean": float(difference.mean()),
                    "interval_95": [float(difference.mean() - half), float(difference.mean() + half)],
                },
            }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="gzipped IDX files of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, default=10, help="at least 2")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    dataset = load_dataset(options.data)
    runs = [
        train_once(step, seed, options.epochs, options.threads, dataset)
        for seed in range(options.seeds)
        for step in STEPS
    ]
    summary = summarize(runs)
    for key, row in summary.items():
        means = "  ".join(f"{step} {row[step]['mean']:.4f} ± {row[step]['std']:.4f}" for step in STEPS)
        low, high = row["fused_minus_plain"]["interval_95"]
        print(f"{key:32}{means}  difference {row['fused_minus_plain']['mean']:+.4f} ({low:+.4f} to {high:+.4f})")
    write_report(
        options.out,
        "test metrics of the fused and the plain training step, the default configuration",
        epochs=options.epochs,
        threads=options.threads,
        summary=summary,
        runs=runs,
        machine=describe_machine(),
    )


if __name__ == "__main__":
    main()
