"""The commands and the Python of README.md and docs/, with as little data and work as they allow."""

import glob
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fmcae.data import CLASS_NAMES_FILE, IDX_NAMES, idx

pytestmark = pytest.mark.train
REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
RAY = ("ray", "pyarrow", "pandas")
PICTURES = "pictures"
SERVE = ("starlette", "uvicorn", "prometheus_client", "python_multipart")
LESS_WORK = {
    "train": ("--epochs", "1"),
    "study run": ("--epochs", "1", "--seeds", "1", "--workers", "2"),
    "bench": ("--batch", "1", "--seconds", "0.01"),
    "export int8": ("--budget", "100"),
}


@pytest.fixture(scope="module")
def few_images(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few")
    for name in IDX_NAMES:
        count = 120 if name.startswith("train") else 40
        idx.write(folder / f"{name}.gz", idx.parse(idx.read_bytes(sample / f"{name}.gz"), name)[:count])
    shutil.copy(sample / CLASS_NAMES_FILE, folder)  # what ships is evaluated on it
    for name, colour in (("ripe", (200, 30, 30)), ("unripe", (60, 160, 40))):
        (folder / PICTURES / name).mkdir(parents=True)
        for edge in range(50, 64):
            picture = Image.new("RGB", (80, 70), "white")
            picture.paste(colour, (10, 5, edge, 60))
            picture.save(folder / PICTURES / name / f"{edge}.png")
    return folder


class Server:
    """The server that a page starts; its port is another one than the page's."""

    process: "subprocess.Popen[str] | None" = None
    address = ""

    def start(self, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "fmcae", *arguments, "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        self.address = line.removeprefix("serving on http://").removesuffix("/\n")
        assert self.address != line, line

    def ask(self, line: str) -> None:
        """Run a line with curl, which fails if the answer is an error."""
        assert self.process is not None and "127.0.0.1:8000" in line
        command = line.replace("curl ", "curl -sSf ", 1).replace("127.0.0.1:8000", self.address)
        result = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert result.returncode == 0 and result.stdout, f"{line}: {result.stderr}"

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.communicate()[1] == "" and self.process.returncode == 0


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_to_run_works(
    page: Path,
    cli: Callable[..., Any],
    server: Server,
    few_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sybil import Example, Sybil
    from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

    serves = re.search(r"^(pip .* && )?fmcae serve", page.read_text(encoding="utf-8"), re.MULTILINE)
    if serves and not all(map(find_spec, SERVE)):
        pytest.skip("the page needs the [serve] extra")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMCAE_DATA", str(few_images))
    (tmp_path / "exports").symlink_to(REPOSITORY / "exports")

    def run(example: Example) -> None:
        for line in example.parsed.splitlines():
            run_line(line, cli, server, few_images)

    parsers: list[Any] = [CodeBlockParser(language="sh", evaluator=run), PythonCodeBlockParser()]
    for example in Sybil(parsers=parsers).parse(page).examples():
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    places = [page.parent / link.split("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [place for place in places if not place.exists()] == []


def run_line(line: str, cli: Callable[..., Any], server: Server, data: Path) -> None:
    """Run a line of a shell, if it is a command of fmcae, after another one or with a file on stdin, or asks its server."""
    words, stdin = shlex.split(line, comments=True), b""
    if words[:1] == ["cat"]:
        stdin, words = Path(words[1]).read_bytes(), words[3:]
    if "&&" in words:
        words = words[words.index("&&") + 1 :]
    if words[:1] == ["curl"] and "127.0.0.1:8000" in line and shutil.which("curl"):
        server.ask(line)
    if words[:1] != ["fmcae"] or ("--ray" in words and not all(map(find_spec, RAY))):
        return
    if words[1] == "serve":
        server.start(words[1:])
        return
    folder = data / PICTURES if "--channels" in words else data
    arguments = [str(folder) if word == "DIR" else word for word in words[1:]]
    arguments = [found for word in arguments for found in (sorted(glob.glob(word)) if "*" in word else [word])]
    verb = " ".join(arguments[: 2 if arguments[0] == "study" else 1]) + (" int8" if "int8" in arguments else "")
    less_work = () if "--resume" in arguments else LESS_WORK.get(verb, ())
    less_work += ("--labels", "50") if "--labels" in arguments else ()
    result = cli(*arguments, *less_work, stdin=stdin)
    nothing_to_resume = "--resume" in arguments and "no unfinished run" in result.stderr
    assert result.exit_code == 0 or nothing_to_resume, f"{line}: {result.stderr}"
