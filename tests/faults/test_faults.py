"""A seeded sample of each attack of ``bench/faults.py``, which runs them for hours."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "faults.py"
COUNTS = {"pictures": 2_000, "models": 300, "idx": 500, "runs": 300, "results": 60, "threads": 3, "kills": 12}
UNHARMED = {"pictures": "read", "models": "passed", "idx": "read", "runs": "read", "results": "read"}


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faults", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # where dataclasses look their types up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["pictures", "models", "idx", "threads"])
def test_an_attack_finds_nothing(faults: ModuleType, kind: str) -> None:
    check(faults, kind)


@pytest.mark.train
@pytest.mark.parametrize("kind", ["runs", "results", "kills"])
def test_an_attack_on_training_finds_nothing(faults: ModuleType, kind: str) -> None:
    check(faults, kind)


def check(faults: ModuleType, kind: str) -> None:
    tally = faults.attack(kind, iter(range(COUNTS[kind])))
    assert tally.defects == [] and tally.tried == COUNTS[kind]
    if kind in UNHARMED:  # else the attack's own files would not be what it thinks
        assert tally.outcomes["refused"] > 0 and tally.outcomes[UNHARMED[kind]] > 0


def test_an_attack_counts_what_is_not_withstood(faults: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: bytes) -> None:
        raise KeyError("x")

    monkeypatch.setattr(faults, "to_uint8", fail)
    tally = faults.attack("pictures", iter(range(3)))
    assert tally.outcomes["defect"] == 3 and tally.defects[0] == "pictures 0: KeyError: 'x'"
