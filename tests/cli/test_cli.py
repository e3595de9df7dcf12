import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import fmcae
from fmcae.cli import _expanded
from fmcae.cli.options import SHIPPED_NAMES, print_json
from fmcae.errors import quoted
from fmcae.precision import PROVIDERS
from fmcae.study.grid import PARTS

if TYPE_CHECKING:
    from tests.conftest import Cli


def test_version(cli: "Cli") -> None:
    assert cli("--version").stdout == f"fmcae {fmcae.__version__}\n"


def test_a_verb_imports_no_other(cli: "Cli") -> None:
    code = "import sys; sys.argv = ['fmcae', 'info', '--help']; from fmcae.cli import main\n"
    code += "try: main()\nfinally: print(sorted(n for n in sys.modules if n.startswith('fmcae.cli.')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == str(["fmcae.cli.help", "fmcae.cli.info", "fmcae.cli.options"])


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


def completions(words: str, folder: Path | None = None) -> list[str]:
    """What the shell gets for the last of ``words`` from the command line itself, which must import nothing heavy for it."""
    heavy = ("numpy", "onnxruntime", "onnx", "torch", "PIL", "rich.console")
    code = (
        "import sys; from fmcae.cli import main\n"
        "try: main()\n"
        f"finally: print('imported:', [name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    environment = {
        **os.environ, "_FMCAE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")),
    }  # fmt: skip
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert result.stderr == "imported: []\n"
    return result.stdout.split()


@pytest.fixture
def two_runs(tmp_path: Path) -> Path:
    """A folder with runs/exported, which has an export, and runs/other, which has none."""
    for name in ("exported", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    (tmp_path / "runs" / "exported" / "onnx").mkdir()
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("fmcae re", ["reconstruct"]),
        ("fmcae predict --jso", ["--json", "--jsonl"]),
        ("fmcae predict --provider ", list(PROVIDERS)),
        ("fmcae predict --model fashion-mnist-l", ["fashion-mnist-large"]),
        ("fmcae predict --model r", ["runs/exported"]),
        ("fmcae predict ", []),  # files, which the shell completes itself
        ("fmcae evaluate fashion-mnist-p", ["fashion-mnist-paper"]),
        ("fmcae verify runs/", ["runs/exported"]),
        ("fmcae info fashion-mnist-i", ["fashion-mnist-int8"]),
        ("fmcae export ", ["runs/exported", "runs/other"]),
        ("fmcae export --precision ", ["fp32", "int8", "fp16"]),
        ("fmcae parity runs/other r", ["runs/exported"]),
        ("fmcae train --recipe ", ["paper", "robust"]),
        ("fmcae train --from ", ["runs/exported", "runs/other"]),
        ("fmcae train --stage a", ["autoencoder"]),
        ("fmcae train --encoder ", ["pretrained", "random"]),
        ("fmcae train --data= --stag", ["--stage"]),
        ("fmcae evaluate --split ", ["train", "val", "test"]),
        ("fmcae study p", ["plan"]),
        ("fmcae study run --only ", list(PARTS)),
        ("fmcae study plan --only table-1 --only table-", ["table-1", "table-2", "table-3"]),
        ("fmcae study run --device ", ["auto", "cpu", "cuda"]),
    ],
)
def test_the_shell_completes_verbs_values_models_and_runs(words: str, found: list[str], two_runs: Path) -> None:
    assert completions(words, two_runs) == found


def test_a_folder_without_runs_completes_to_what_ships(tmp_path: Path) -> None:
    assert completions("fmcae bench --model ", tmp_path) == SHIPPED_NAMES
    assert completions("fmcae export ", tmp_path) == []


@pytest.mark.parametrize(
    ("verb", "usage"), [("predict", "PATH..."), ("verify", "[PATH]..."), ("info", "[FILE]"), ("parity", "RUN EXPORT")]
)
def test_usage_shows_which_arguments_are_needed_and_which_repeat(cli: "Cli", verb: str, usage: str) -> None:
    assert cli(verb, "-h").stdout.startswith(f"Usage: fmcae {verb} [OPTIONS] {usage}\n")


def test_debug_shows_the_traceback_on_either_side_of_the_verb() -> None:
    for arguments in (["--debug", "info", "missing.onnx"], ["info", "missing.onnx", "--debug"]):
        result = subprocess.run([sys.executable, "-m", "fmcae", *arguments], capture_output=True, text=True)
        assert "Traceback" in result.stderr and "ArtefactError" in result.stderr


@pytest.mark.train
def test_a_gpu_without_memory_is_one_line(cli: "Cli", monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    facts = "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 3.81 GiB of which 1.05 GiB is free"

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError(f"CUDA out of memory. {facts}. Process 7 has 2.75 GiB memory in use. If reserved")

    monkeypatch.setattr("fmcae.data.load_dataset", fail)
    result = cli("train")
    advice = "nvidia-smi names the programs that take it"
    assert (result.exit_code, result.stderr) == (1, f"error: the GPU is out of memory: {facts}; {advice}\n")


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


def test_on_windows_a_pattern_stands_for_files_and_a_files_name_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("photo[1].png", "photo1.png", "photo2.png"):
        (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = ["predict", "photo[1].png", "photo?.png", "none*.png", "$HOME", "**/*.png", "~/photo2.*"]
    assert _expanded(arguments) == arguments  # where the shell has done it
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        expanded = _expanded(arguments)
    files = ["photo[1].png", "photo1.png", "photo2.png"]
    assert expanded == ["predict", *files, "none*.png", "$HOME", "**/*.png", str(tmp_path / "photo2.png")]


def test_commands_have_quotes_that_cmd_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quoted(".[train]") == "'.[train]'"
    monkeypatch.setattr(sys, "platform", "win32")
    assert quoted(".[train]") == '".[train]"'
