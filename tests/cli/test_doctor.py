import json
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
