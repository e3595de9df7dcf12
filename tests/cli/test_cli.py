import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import fmcae
from fmcae.cli import VERBS
from fmcae.cli.options import print_json
from fmcae.precision import PROVIDERS

if TYPE_CHECKING:
    from tests.conftest import Cli


def test_version(cli: "Cli") -> None:
    assert cli("--version").stdout == f"fmcae {fmcae.__version__}\n"


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_verb_explains_itself(cli: "Cli", verb: str) -> None:
    result = cli(*filter(None, [verb, "--help"]))
    assert result.exit_code == 0
    assert "Usage:" in result.stdout and "--help" in result.stdout


def test_a_verb_imports_no_other(cli: "Cli") -> None:
    code = "import sys; sys.argv = ['fmcae', 'info', '--help']; from fmcae.cli import main\n"
    code += "try: main()\nfinally: print(sorted(n for n in sys.modules if n.startswith('fmcae.cli.')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == str(["fmcae.cli.info", "fmcae.cli.options"])


@pytest.mark.parametrize("of", [(), ("study",)])
def test_every_summary_is_whole(cli: "Cli", of: tuple[Any, ...]) -> None:
    assert "..." not in cli(*of, "--help").stdout.partition("Commands:")[2]


@pytest.mark.parametrize("of", [(), ("study",)])
def test_no_arguments_print_the_help(cli: "Cli", of: tuple[Any, ...]) -> None:
    result = cli(*of)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.rstrip("\n") == cli(*of, "--help").stdout.rstrip("\n")


def test_debug_behind_two_dashes_is_a_file(cli: "Cli") -> None:
    result = cli("predict", "--", "--debug")
    assert (result.exit_code, result.stderr) == (1, "error: --debug: cannot be read: No such file or directory\n")


def test_the_shell_completes_verbs_and_providers() -> None:
    def completions(words: str) -> list[str]:
        environment = {
            **os.environ, "_FMCAE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")),
        }  # fmt: skip
        result = subprocess.run([sys.executable, "-m", "fmcae"], capture_output=True, text=True, env=environment)
        return result.stdout.split()

    assert completions("fmcae re") == ["reconstruct"]
    assert completions("fmcae predict --provider ") == list(PROVIDERS)


def test_debug_shows_the_traceback_on_either_side_of_the_verb() -> None:
    for arguments in (["--debug", "info", "missing.onnx"], ["info", "missing.onnx", "--debug"]):
        result = subprocess.run([sys.executable, "-m", "fmcae", *arguments], capture_output=True, text=True)
        assert "Traceback" in result.stderr and "ArtefactError" in result.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['fmcae', '--help']\n"
        "from fmcae.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([n for n in ('numpy', 'onnxruntime', 'PIL', 'torch', 'matplotlib') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'."),
        (["predict"], "Missing argument 'PATH'."),
        (["encode", "x.png"], "Missing option '--out' / '-o'."),
        (["predict", "x.png", "--top-k", "abc"], "Invalid value for '--top-k': 'abc' is not a valid"),
        (["predict", "x.png", "--top-k", "0"], "Invalid value for '--top-k': 0 is not in the range x>=1."),
        (["bench", "--provider", "gpu"], "Invalid value for '--provider': 'gpu' is not one of 'cpu', 'cuda', "),
        (["predict", "x.png", "--threads", "0"], "Invalid value for '--threads': 0 is not in the range 1<=x<=1024."),
        (["predict", "x.png", "--wings"], "No such option: --wings"),
        (["predict", "-lead.png"], "No such option: -l"),
        (["predict", "x.png", "--top-k"], "Option '--top-k' requires an argument."),
        (["info", "a.onnx", "b.onnx"], "Got unexpected extra argument"),
    ],
)
def test_wrong_usage_is_explained_and_exits_2(cli: "Cli", arguments: list[str], message: str) -> None:
    result = cli(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    *usage, error = result.stderr.splitlines()
    assert message in error
    assert not usage or usage[0].startswith("Usage: fmcae")


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_json_has_no_number_that_json_lacks(number: float, capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"max_abs": number, "more": [number, 1.5], "tuple": (1, number)})
    values = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert values == {"schema_version": 1, "max_abs": None, "more": [None, 1.5], "tuple": [1, None]}


def test_without_the_train_extra_the_command_to_run_is_named(cli: "Cli", monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for arguments in (["train"], ["export"], ["parity", "run", "export"]):
        result = cli(*arguments)
        assert (result.exit_code, result.stdout) == (3, "")
        assert "pip install '.[train]'" in result.stderr and result.stderr.count("\n") == 1
