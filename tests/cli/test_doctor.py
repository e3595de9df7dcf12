import json
import re
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from fmcae.precision import PROVIDERS
from fmcae.runtime import doctor
from fmcae.runtime.doctor import Probe

if TYPE_CHECKING:
    from tests.conftest import Cli


def test_a_good_installation(cli: "Cli") -> None:
    result = cli("doctor")
    assert result.exit_code == 0
    assert "works: CPUExecutionProvider gives the golden output" in result.stdout
    assert result.stdout.count("sealed as shipped") == 10
    assert "no problem found" in result.stdout
    (dml,) = (line for line in result.stdout.splitlines() if line.startswith("dml "))
    assert dml.endswith("to get it, on Windows, run  pip install onnxruntime-directml (not tried by us)")
    assert "\x1b" not in result.stdout and result.stderr == ""


def test_json_for_machines(cli: "Cli") -> None:
    result = cli("doctor", "--json")
    values = json.loads(result.stdout)
    assert (result.exit_code, values["schema_version"], values["usable"]) == (0, 1, True)
    assert [probe["provider"] for probe in values["probes"]] == list(PROVIDERS)
    assert values["onnxruntime_distributions"] and values["problems"] == []


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_broken_cpu_runtime_exits_1_and_names_the_command(
    cli: "Cli", monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    broken = Probe("cpu", False, "its process crashed (exit code -11): no message")
    monkeypatch.setattr(doctor, "probe_provider", lambda provider: broken)
    result = cli("doctor", *options)
    assert result.exit_code == 1
    assert "its process crashed (exit code -11)" in result.stdout
    assert "pip install --force-reinstall" in result.stdout


def test_every_extra_for_users_is_listed(cli: "Cli") -> None:
    """Against what the installed package requires, which is what pyproject.toml says."""
    found: dict[str, set[str]] = {extra: set() for extra in doctor.EXTRAS}
    for requirement in metadata.requires("fmcae") or ():
        name, extra = re.match(r"[\w-]+", requirement), re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if name and extra and extra[1] in found | {"plot": ()} and name[0] != "fmcae":
            found["train" if extra[1] == "plot" else extra[1]].add(name[0])
    found["tensorboard"] -= found["train"]  # which it includes
    assert found == {extra: set(names) for extra, names in doctor.EXTRAS.items()}
    result = cli("doctor")
    assert all(f"[{extra}]" in result.stdout for extra in doctor.EXTRAS)
