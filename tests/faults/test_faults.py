"""A seeded sample of each attack of ``bench/faults.py``, which runs them for hours."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"
COUNTS = {"pictures": 2_000, "models": 300, "idx": 500, "runs": 300, "results": 60, "threads": 3, "kills": 8}
UNHARMED = {"pictures": "read", "models": "passed", "idx": "read", "runs": "read", "results": "read"}


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return import_module("faults")


@pytest.mark.parametrize("kind", ["pictures", "models", "idx", "threads"])
def test_an_attack_finds_nothing(faults: ModuleType, kind: str) -> None:
    check(faults, kind)


@pytest.mark.train
@pytest.mark.parametrize("kind", ["runs", "results"])
def test_an_attack_on_training_finds_nothing(faults: ModuleType, kind: str) -> None:
    check(faults, kind)


def test_a_run_that_is_stopped_keeps_the_kinds_that_are_done(
    faults: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attack(kind: str, *_: object) -> object:
        if kind == "idx":
            raise KeyboardInterrupt
        return faults.Tally(tried=7)

    file = tmp_path / "faults.json"
    monkeypatch.setattr(faults, "attack_in_processes", attack)
    monkeypatch.setattr(sys, "argv", ["faults.py", "--kind", "pictures", "idx", "--out", str(file)])
    with pytest.raises(KeyboardInterrupt):
        faults.main()
    kinds = json.loads(file.read_text())["tried"]["newest"]["kinds"]
    assert list(kinds) == ["pictures"] and kinds["pictures"]["tried"] == 7


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--jobs", "0"], "jobs (=0) must be at least 1"),
        (["--count", "0"], "count (=0) must be at least 1"),
        (["--minutes", "-1"], "minutes (=-1.0) must be at least 0"),
        (["--minuts=5"], "unrecognized arguments: --minuts=5"),
    ],
)
def test_a_bad_option_is_named(
    faults: ModuleType,
    option: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["faults.py", *option])
    with pytest.raises(SystemExit) as ended:
        faults.main()
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.train
def test_kills_cost_nothing() -> None:
    # a process of its own: one that has threads, as pytest's may, must not be forked
    command = [sys.executable, str(BENCH / "faults.py"), "--kind", "kills", "--count", str(COUNTS["kills"])]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout.removeprefix("kills "))["tried"] == COUNTS["kills"]


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
