import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.train


def test_an_export_leaves_nothing_on_stderr(trained_run: Path, sample: Path, tmp_path: Path) -> None:
    """Libraries that PyTorch loads print what is not freed when the process ends, unless its memory is left to them."""
    command = [sys.executable, "-m", "fmcae", "export", str(trained_run), "--data", str(sample)]
    command += ["--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "parity holds on 400 images" in result.stdout and "next: fmcae verify" in result.stdout
