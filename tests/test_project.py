"""What the project says of itself agrees: its version, its pages on deployment, its issue templates."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fmcae

ROOT = Path(__file__).parent.parent
DEPLOY = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere() -> None:
    version = re.escape(fmcae.__version__)
    assert re.search(rf"^version: {version}\ndate-released: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", changelog, re.MULTILINE)[0] == "Unreleased"
    released = re.search(rf"^## {version} \((\d{{4}}-\d\d-\d\d)\)$", changelog, re.MULTILINE)
    assert released is not None and f"date-released: {released[1]}" in (ROOT / "CITATION.cff").read_text()
    assert set(re.findall(r"fmcae-([\d.]+)-py3-none-any", DEPLOY)) == {fmcae.__version__}


def test_the_sizes_on_the_page_are_those_that_were_measured() -> None:
    installs = json.loads((ROOT / "bench" / "results" / "deploy.json").read_text())["installs"]
    docker, arm = installs["x86_64"], installs["aarch64"]
    base = {"disk": 124, "compressed": 45}  # as published; 124.3 and 45.4 MB
    disk, layer = docker["size_with_bytecode_mb"], docker["layer_with_bytecode_gz_mb"]
    for row in (
        f"| the light install on top | {disk:.0f} | {layer:.0f} |",
        f"| together | {base['disk'] + round(disk)} | {base['compressed'] + round(layer)} |",
        f"It takes {arm['size_with_bytecode_mb']:.0f} MB on disk.",
        f"| x86-64 | {docker['size_mb']:.0f} | {docker['zip_mb']:.0f} |",
        f"| arm64 | {arm['size_mb']:.0f} | {arm['zip_mb']:.0f} |",
    ):
        assert row in DEPLOY
    assert docker["size_mb"] < 250


def test_the_wheels_on_the_page_are_those_that_were_found() -> None:
    wheels = json.loads((ROOT / "bench" / "results" / "deploy.json").read_text())["wheels"]

    def versions(processor: str, title: str) -> list[str | None]:
        (found,) = (value for name, value in wheels[processor].items() if re.split("[<>]", name)[0] == title.lower())
        return [wheel and wheel.split("-")[1] for wheel in found.values()]

    for title, row in re.findall(r"^\| (ONNX Runtime|NumPy|Pillow|msgspec) \| (.*) \|$", DEPLOY, re.MULTILINE):
        name = title.replace(" ", "")
        oldest, second, newest = row.split(" | ")
        assert versions("aarch64", name) == [oldest, second, newest, newest, newest]
        assert versions("armv7l", name) == [None] * 5
    for title in ("typer", "rich"):
        assert all(None not in versions(processor, title) for processor in wheels)


@pytest.mark.skipif(sys.platform == "win32", reason="it needs a shell")
def test_the_service_on_the_page_predicts_what_is_in_its_folder(tmp_path: Path, shipped: Path) -> None:
    (script,) = re.findall(r"^ExecStart=/bin/sh -c '(.*?)'$", DEPLOY, re.MULTILINE | re.DOTALL)
    script = script.replace("\\\n", "").replace("$$", "$")  # as systemd reads it
    for name in ("inbox", "work", "done"):
        (tmp_path / name).mkdir()
    (tmp_path / "inbox" / "bad.png").write_text("no picture")
    (tmp_path / "inbox" / ".hidden").touch()  # for which systemd would start it again and again

    def serve(fmcae: str) -> int:
        shutil.copy(shipped.parent / "samples" / "bag.png", tmp_path / "inbox")
        command = script.replace("/opt/fmcae/bin/fmcae", fmcae)
        return subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True).returncode

    for count in (1, 2):
        assert serve(f"{sys.executable} -m fmcae") == 0
        lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
        assert [line["label"] for line in lines if "label" in line] == ["Bag"] * count
    assert [line["path"].rpartition("/")[2] for line in lines if "error" in line] == ["bad.png"]
    assert list((tmp_path / "inbox").iterdir()) == []
    assert serve("sh -c 'echo {}; exit 137'") != 0
    assert sorted(path.name for path in (tmp_path / "done").rglob("*.png")) == ["bad.png", "bag.png", "bag.png"]
    assert [path.name for path in (tmp_path / "work").rglob("*.png")] == ["bag.png"]


@pytest.mark.parametrize("name", ["bug", "misread", "question"])
def test_an_issue_template_asks_for_what_an_answer_needs(name: str) -> None:
    yaml = pytest.importorskip("yaml")
    form: Any = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    assert form["name"] and form["description"]
    asked = {item["id"]: item for item in form["body"] if item["type"] != "markdown"}
    assert all(item["attributes"]["label"] for item in asked.values())
    required = {key for key, item in asked.items() if item.get("validations", {}).get("required")}
    wanted = {
        "bug": {"command", "expected", "doctor"},
        "misread": {"sheet", "truth", "output", "version"},
        "question": {"question"},
    }
    assert required == wanted[name]


def test_the_image_is_built_from_all_that_the_wheel_needs() -> None:
    lets_through = (ROOT / ".dockerignore").read_text().split()
    project = (ROOT / "pyproject.toml").read_text()
    needed = {"pyproject.toml", "README.md", "LICENSE", "fmcae", "exports"}
    needed |= {"hatch_build.py"} if "[tool.hatch.metadata.hooks.custom]" in project else set()
    assert {name.removeprefix("!") for name in lets_through if name.startswith("!")} == needed


@pytest.mark.parametrize("address", ["", "https://example.org/someone/fmcae/"])
def test_the_package_index_gets_links_that_lead_somewhere(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    hatchling = SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", hatchling)
    monkeypatch.setenv("FMCAE_REPOSITORY", address)
    hook = runpy.run_path(str(ROOT / "hatch_build.py"))["Metadata"]()
    hook.root = str(ROOT)
    metadata: dict[str, Any] = {"version": fmcae.__version__}
    hook.update(metadata)
    text, readme = metadata["readme"]["text"], (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\((\S+?)\)", text) if not link.startswith("#")]
    assert len(links) > 20 and metadata["urls"]["Fashion-MNIST"]
    if not address:
        assert text == readme and "Repository" not in metadata["urls"]
        return
    assert metadata["urls"]["Repository"] == address.rstrip("/")
    start = f"{address}blob/v{fmcae.__version__}/"
    assert all(link.startswith("https://") for link in [*links, *metadata["urls"].values()])
    files = [link.removeprefix(start) for link in [*links, metadata["urls"]["Changelog"]] if link.startswith(start)]
    assert len(files) > 20 and all((ROOT / file.partition("#")[0]).exists() for file in files)
