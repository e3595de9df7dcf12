import subprocess
import sys

import pytest

import fmcae
from fmcae.cli import app

VERBS = ("train", "export", "parity", "verify", "info", "predict", "reconstruct", "encode", "bench", "doctor")


def test_version(cli):
    assert cli("--version").stdout == f"fmcae {fmcae.__version__}\n"


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_verb_explains_itself(cli, verb):
    result = cli(*filter(None, [verb, "--help"]))
    assert result.exit_code == 0
    assert "Usage:" in result.stdout and "--help" in result.stdout


def test_every_option_has_help_text():
    assert {command.callback.__name__ for command in app.registered_commands} == set(VERBS)


def test_unknown_verbs_and_options_are_usage_errors(cli):
    assert cli("fly").exit_code == 2
    assert cli("predict").exit_code == 2
    assert cli("predict", "--wings", "x.png").exit_code == 2


def test_debug_shows_the_traceback_on_either_side_of_the_verb():
    for arguments in (["--debug", "info", "missing.onnx"], ["info", "missing.onnx", "--debug"]):
        result = subprocess.run([sys.executable, "-m", "fmcae", *arguments], capture_output=True, text=True)
        assert "Traceback" in result.stderr and "ArtefactError" in result.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['fmcae', '--help']\n"
        "from fmcae.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([n for n in ('numpy', 'onnxruntime', 'PIL', 'torch', 'matplotlib') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_without_the_train_extra_the_command_to_run_is_named(cli, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for arguments in (["train"], ["export"], ["parity", "run", "export"]):
        result = cli(*arguments)
        assert (result.exit_code, result.stdout) == (3, "")
        assert "pip install '.[train]'" in result.stderr and result.stderr.count("\n") == 1
