"""The help's groups and examples, colours on a terminal, and errors in the words of the command line."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st

from fmcae.cli import VERBS, app_for
from fmcae.cli.help import EXAMPLES, in_flags
from fmcae.cli.options import rounded
from fmcae.errors import FmcaeError, ProviderError, RunError, UsageError

if TYPE_CHECKING:
    from tests.conftest import Cli

NAMES = [*VERBS, "study plan", "study run", "study report"]


def command_of(name: str) -> Any:
    """The command of a verb, such as "study run", or of fmcae itself for ""."""
    command = typer.main.get_command(app_for([]))
    for word in name.split():
        command = command.commands[word]  # type: ignore[attr-defined]
    return command


@pytest.mark.parametrize("name", [name for name in NAMES if name != "study"])
def test_every_option_stands_in_a_group_and_fits_80_columns(cli: "Cli", name: str) -> None:
    text = cli(*name.split(), "--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    *_, rest = re.split(r"^(?=Options:)", text, flags=re.MULTILINE)
    assert re.findall(r"^  (-\S+)", rest, re.MULTILINE) == ["-h,"], "put it into a group of fmcae/cli/help.py"
    for option in (item for item in command_of(name).params if item.param_type_name == "option"):
        shown = re.escape(option.get_help_record(typer.Context(command_of(name)))[0])
        assert len(re.findall(rf"\n  {shown}\s", text)) == 1


def test_the_help_of_predict_has_its_groups_in_order(cli: "Cli") -> None:
    headings = re.findall(r"^(\w+):", cli("predict", "--help").stdout, re.MULTILINE)
    assert headings == ["Usage", "Arguments", "Model", "Output", "Machine", "Options", "Examples"]


@pytest.mark.parametrize("name", ["", *NAMES])
def test_the_help_ends_with_two_examples_that_are_commands(cli: "Cli", name: str) -> None:
    text = cli(*name.split(), "--help").stdout
    commands = re.findall(r"^    (.*)$", text.partition("\nExamples:\n")[2], re.MULTILINE)
    assert commands == [command for _, command in EXAMPLES[name]] and len(commands) == 2
    for line in commands:
        assert max(map(len, text.splitlines())) <= 80
        for part in re.split(r" && | \| ", line):
            words = shlex.split(part)
            if words[0] == "fmcae":
                verb = " ".join(words[1:3]) if words[1] == "study" else words[1]
                assert name in ("", "study", verb)
                command_of(verb).make_context(verb, words[1 + len(verb.split()) :])  # it takes these options


@pytest.mark.parametrize(
    ("verb", "arguments", "error", "shown"),
    [
        ("predict", ["a.png"], UsageError("top_k (=11) must be at most 10"), "--top-k 11 must be at most 10"),
        ("predict", ["a.png"], UsageError("show (=a (b) c.jpg) must end in .png"), "--show 'a (b) c.jpg' must end in .png"),
        ("predict", [""], UsageError("path (=) must not be empty"), "PATH '' must not be empty"),
        ("train", [], UsageError("learning_rate (=2.0) must be at most 1"), "--learning-rate 2.0 must be at most 1"),
        (
            "train",
            [],
            UsageError("encoder_init (--encoder) (=random) must come with stage=classifier, not stage=both"),
            "--encoder random must come with --stage classifier, not --stage both",
        ),
        ("train", [], UsageError("output_dropout (=False) must be on"), "--no-output-dropout must be on"),
        ("train", ["--epochs", "1"], UsageError("class_count (=1) must be 2"), "class_count (=1) must be 2"),
        ("train", [], UsageError("no_such (=1) must be 2"), "no_such (=1) must be 2"),
        ("train", [], RunError("a/config.json: dropout (=2) must be 1"), "a/config.json: dropout (=2) must be 1"),
        ("evaluate", ["a", "b"], UsageError("data (=b) must hold x"), "DATA b must hold x"),
        ("evaluate", [], UsageError("split (=None) must be train, because data (=b) has no other"),
         "--split must be train, because DATA b has no other"),
        ("verify", ["c d"], ProviderError("c d: provider (=cuda) must be cpu"), "c d: --provider cuda must be cpu"),
        ("study report", ["x"], UsageError("dir (=x) must be a folder"), "DIR x must be a folder"),
        ("bench", [], FmcaeError("threads (=64) must be 1 here"), "--threads 64 must be 1 here"),
    ],
)  # fmt: skip
def test_an_error_of_the_library_names_the_flags(
    verb: str, arguments: list[str], error: FmcaeError, shown: str
) -> None:
    assert in_flags(error, command_of(verb).make_context(verb, arguments)) == shown


@given(st.text().filter(lambda text: ")" not in text))
@example("False")
def test_any_value_stands_in_an_error_as_a_shell_takes_it(value: str) -> None:
    context = command_of("predict").make_context("predict", ["a.png"])
    shown = in_flags(UsageError(f"show (={value}) must end in .png"), context)
    assert shown == f"--show {shlex.quote(value)} must end in .png" or value == "None"


def test_numbers_for_people_have_five_digits() -> None:
    assert [rounded(value) for value in (0.23218603536117474, 0.9154, 1e-4, 30.0)] == [
        "0.23219",
        "0.9154",
        "0.0001",
        "30",
    ]


def test_what_a_person_reads_has_no_seventeen_digits(cli: "Cli", shipped: Path) -> None:
    sample = shipped.parent / "samples" / "bag.png"
    for arguments in (["info"], ["verify"], ["predict", sample], ["predict", sample, "--csv"]):
        assert re.findall(r"\d\.\d{8,}", cli(*arguments).stdout) == []
    assert re.search(r"\d\.\d{12,}", cli("info", "--json").stdout)


TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "fmcae", *sys.argv[1:]])
text = b""
try:
    while part := os.read(terminal, 4096):
        text += part
except OSError:
    pass
os.write(1, text)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def on_terminal(*arguments: object, **environment: str) -> tuple[int, str]:
    """The exit code and the output of fmcae on a terminal, stdout and stderr together."""
    own = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
    command = [sys.executable, "-c", TERMINAL, *map(str, arguments)]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**own, "TERM": "xterm", "COLUMNS": "80", **environment}
    )
    return result.returncode, result.stdout


@pytest.mark.skipif(os.name != "posix", reason="it needs POSIX's terminals")
def test_pass_and_fail_have_colours_on_a_terminal_alone(shipped: Path, tmp_path: Path, cli: "Cli") -> None:
    (tmp_path / "bad.onnx").write_text("x")
    arguments = ("verify", shipped / "classifier.onnx", tmp_path / "bad.onnx")
    code, text = on_terminal(*arguments)
    assert (
        code == 5 and "\33[32mpass\33[0m  " in text and "\33[31mFAIL\33[0m  " in text and "\33[31merror:\33[0m" in text
    )
    assert "\33[32mparity holds on 10,000 images, provider cpu\33[0m" in on_terminal("info")[1]
    assert "\33[1mExamples:\33[0m" in on_terminal("verify", "--help")[1]
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        for shown in (arguments, ("info",), ("verify", "--help")):
            assert "\33[3" not in on_terminal(*shown, **plain)[1] and "\33[1m" not in on_terminal(*shown, **plain)[1]
    assert "\33" not in cli(*arguments).stdout + cli(*arguments).stderr
