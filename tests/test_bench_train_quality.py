"""``bench/train_quality.py`` trains with both steps, on the sample."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")
ROOT = Path(__file__).parents[1]


def test_both_steps_learn_and_each_is_another_one(tmp_path: Path) -> None:
    data, out = ROOT / "tests" / "data" / "fashion-mnist-sample", tmp_path / "out.json"
    options: list[str | Path] = ["--data", data, "--seeds", "2", "--epochs", "1", "--threads", "1", "--out", out]
    subprocess.run([sys.executable, ROOT / "bench" / "train_quality.py", *options], check=True, cwd=tmp_path)
    said = json.loads(out.read_text())
    errors = {(run["step"], run["seed"]): run["autoencoder_test_mse"] for run in said["runs"]}
    for seed in (0, 1):
        fused, plain = errors["fused", seed], errors["plain", seed]
        assert fused != plain  # equal bits would mean that one step stands for both
        assert fused == pytest.approx(plain, abs=0.01)
    assert said["summary"]["autoencoder_test_mse"]["plain"]["mean"] == pytest.approx(
        sum(errors["plain", seed] for seed in (0, 1)) / 2
    )
