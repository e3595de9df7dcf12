import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmcae.data import load_dataset
from fmcae.study.claims import Contrast
from fmcae.study.grid import PAPER_MSE, PARTS, classifier, plan
from fmcae.study.report import FILTERS, usual_epochs, write_report
from fmcae.study.results import Results, collect, read
from fmcae.study.runner import run_task

REPOSITORY = Path(__file__).parents[2]


def cells_of(text: str, start: str) -> list[list[str]]:
    """The rows of the first table after ``start``, as lists of cells."""
    table = text[text.index(start) :].split("\n\n")
    rows = next(block for block in table if block.startswith("| "))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def heading(part: str) -> str:
    """The start of a part's heading: "### Table 1"."""
    return f"### {part.capitalize().replace('-', ' ')}"


@pytest.fixture(scope="module")
def report(study_results: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page on the made-up results."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmcae.study.report._save", lambda figure, stem: [])
        write_report(folder, study_results)
    return (folder / "report.md").read_text()


def test_every_cell_of_the_papers_tables_stands_beside_ours(report: str, study_results: Results) -> None:
    for part, cells in PAPER_MSE.items():
        rows = {row[0]: row[1:] for row in cells_of(report, heading(part))}
        for cell, reported in cells.items():
            values = [study_results.runs[PARTS[part][cell](seed).name].test["mse"] for seed in range(4)]
            assert rows[cell][0].startswith(f"{reported:.3f}")
            assert rows[cell][1] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} (4)"
            assert rows[cell][2] == f"{np.mean(values) - reported:+.4f}"


def test_each_claim_has_its_verdict_and_says_why(report: str) -> None:
    rows = {row[0]: row for row in cells_of(report, "## The claims")}
    assert "**confirmed**" in rows["C1"][3] and rows["C1"][4].startswith("As claimed: test MSE 0.")
    assert "higher with n=64 than with n=128; " in rows["C1"][4]
    assert "**not confirmed**" in rows["C8"][3]
    assert re.fullmatch(
        r"Against the claim: mean test recall 0\.\d+ (higher|lower) than 0\.91, beyond the margin of 0\.005\.",
        rows["C8"][4],
    )


def test_a_difference_too_small_for_its_digits_is_not_zero() -> None:
    small = Contrast("test accuracy", values=(0.00001, 0.00002))
    assert FILTERS["size"](small) == "less than 0.0001 higher"
    assert FILTERS["number"](0.0001, 3) == "<0.001" and FILTERS["number"](float("nan"), 3) == ""


def test_few_labels_have_their_verdicts(report: str) -> None:
    rows = {row[0]: row for row in cells_of(report, "| labels |")}
    assert {count: rows[count][-1] for count in ("100", "10,000", "50,000")} == {
        "100": "confirmed",
        "10,000": "confirmed",
        "50,000": "undecided",
    }


def test_a_figures_own_name_will_do_for_its_part() -> None:
    assert plan(["figure-5"], [0]) == plan(["final-model"], [0]) == plan(["figure-6"], [0])
    assert plan(["figure-ap1"], [0]) == plan(["appendix"], [0])


def test_the_reading_that_fits_best_is_bold(report: str) -> None:
    rows = cells_of(report, "## Where the paper's numbers disagree")
    assert sum("**" in cell for row in rows for cell in row) >= 4


def test_the_same_results_give_the_same_bytes(study_results: Results, tmp_path: Path) -> None:
    few = {task.name: study_results.runs[task.name] for task in plan(["figure-3"], range(2))}
    for folder in (tmp_path / "1" / "study", tmp_path / "2" / "study"):
        folder.mkdir(parents=True)
        files = write_report(folder, replace(study_results, runs=few))
    for path in files:
        if path.suffix != ".png":  # whose bytes may depend on a library's version only, but are large
            assert (tmp_path / "1" / "study" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.usefixtures("no_figures")
def test_what_was_not_run_says_so(study_results: Results, tmp_path: Path) -> None:
    only = {task.name for task in plan(["table-1"], range(2))}
    runs = {name: run for name, run in study_results.runs.items() if name in only}
    write_report(tmp_path, replace(study_results, runs=runs))
    text = (tmp_path / "report.md").read_text()
    rows = {row[0]: row for row in cells_of(text, "### Appendix")}
    assert rows["without pooling"][2] == "not run"
    claims = {row[0]: row for row in cells_of(text, "## The claims")}
    assert claims["C10"][3] == "**undecided**" and claims["C10"][4] == "Not all of its runs are there."
    assert not re.search(r"\bnan\b|\binf\b", text) and "figure-3.png" not in text


def test_no_runs_at_all_are_reported(study_results: Results, tmp_path: Path) -> None:
    assert [path.name for path in write_report(tmp_path, replace(study_results, runs={}))] == ["report.md"]


@pytest.mark.usefixtures("no_figures")
def test_the_report_is_about_the_epochs_that_there_are(study_results: Results, tmp_path: Path) -> None:
    assert usual_epochs(study_results) == 30
    runs = {}
    for task in plan(["table-1"], [0], epochs=2):
        run = study_results.runs[plan(["table-1"], [0])[0].name]
        runs[task.name] = replace(run, name=task.name, config=task.config.to_json())
    few = replace(study_results, runs=runs)
    assert usual_epochs(few) == 2
    assert usual_epochs(replace(few, runs=runs | study_results.runs)) == 30
    write_report(tmp_path, few)
    text = (tmp_path / "report.md").read_text()
    assert "- **Method**: 2 epochs" in text
    assert "`fmcae study run --only table-1 --seeds 1 --epochs 2 && fmcae study report --epochs 2`" in text


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("classes", [3, 12])
def test_other_classes_are_trained_on_and_reported(
    classes: int, make_dataset: Callable[[str, int], Path], tmp_path: Path
) -> None:
    data = make_dataset("others", classes)
    dataset = load_dataset(data)
    assert len(dataset.class_names) == classes
    tasks = plan(["final-model", "labels"], [0], epochs=1, train_images=len(dataset.train))
    for task in tasks[:2]:
        run_task(tmp_path, task, str(data))
    collect(tmp_path, dataset)
    run = read(tmp_path).find(classifier(0, epochs=1))
    assert run and run.confusion is not None and run.confusion.shape == (classes, classes)
    write_report(tmp_path, read(tmp_path))
    text = " ".join((tmp_path / "report.md").read_text().split())
    assert "C9 is left out: it is about the classes Shirt, Pullover and T-shirt/top" in text and "| C9 |" not in text
    left_out = "300, 1,000, 3,000 and 10,000" if classes == 3 else "1,000, 3,000 and 10,000"
    assert f"The cells with {left_out} labels are left out" in text
    assert f"Linear n→{classes} | {classes} |" in text and "Add `--data` with this set" in text


NO_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch was asked for")

sys.meta_path.insert(0, NoTorch())
from fmcae.cli import main
sys.argv = ["fmcae", "study", "report", sys.argv[1]]
main()
"""


def test_the_committed_report_is_of_its_results_and_needs_neither_torch_nor_the_data(tmp_path: Path) -> None:
    committed = REPOSITORY / "bench" / "results" / "study"
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "results.json").write_bytes((committed / "results.json").read_bytes())
    environment = {**os.environ, "FMCAE_DATA": str(tmp_path / "nowhere")}
    command = [sys.executable, "-c", NO_TORCH, "study"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert (folder / "results.json").read_bytes() == (committed / "results.json").read_bytes()
    page = (folder / "report.md").read_text()
    page = page.replace("fmcae study report study", "fmcae study report bench/results/study")
    assert page == (committed / "report.md").read_text()
    assert {path.name for path in folder.iterdir()} == {path.name for path in committed.iterdir()}
    linked = set(re.findall(r"\(([a-z0-9-]+\.(?:png|svg))\)", page))
    assert linked == {path.name for path in folder.iterdir()} - {"report.md", "results.json"}
    for name in linked:
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in content


def test_the_first_editions_machine_is_said_to_be_that_of_the_collection() -> None:
    runs = read(REPOSITORY / "bench" / "results" / "study").runs.values()
    assert len(runs) == 272 and {run.recorded for run in runs} == {"when the results were collected"}
    page = (REPOSITORY / "bench" / "results" / "study" / "report.md").read_text()
    assert "Machine and date (2026-11-24) were recorded when the results were collected." in " ".join(page.split())


def test_the_study_page_has_the_reports_verdicts() -> None:
    text = (REPOSITORY / "bench" / "results" / "study" / "report.md").read_text()
    verdicts = Counter(row[3].strip("*") for row in cells_of(text, "## The claims")[2:])
    page = " ".join((REPOSITORY / "docs" / "study.md").read_text().split())
    counts = [verdicts[verdict] for verdict in ("confirmed", "not confirmed", "undecided")]
    assert (
        "Of the paper's {} claims {} are confirmed, {} are not, and {} are undecided.".format(sum(counts), *counts)
        in page
    )
