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
from fmcae.study.claims import CLAIMS, FINDINGS, Claim, Contrast
from fmcae.study.grid import PAPER_MSE, PARTS, classifier, plan
from fmcae.study.report import FILTERS, usual_epochs, write_report
from fmcae.study.results import Results, collect, read
from fmcae.study.runner import run_task
from fmcae.train.networks import Autoencoder

REPOSITORY = Path(__file__).parents[2]


def cells_of(text: str, start: str) -> list[list[str]]:
    """The rows of the first table after ``start``, as lists of cells."""
    table = text[text.index(start) :].split("\n\n")
    rows = next(block for block in table if block.startswith("| "))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


@pytest.fixture(scope="module")
def report(study_results: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page on the made-up results."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmcae.study.figures.save", lambda figure, stem: [])
        write_report(folder, study_results)
    return (folder / "report.md").read_text()


def test_every_cell_of_the_papers_tables_stands_beside_ours(report: str, study_results: Results) -> None:
    rows = {row[0]: row[1:] for row in cells_of(report, "## The tables")}
    rows |= {row[0]: row[2:] for row in cells_of(report, "| Appendix: ")}
    for part, cells in PAPER_MSE.items():
        for cell, reported in cells.items():
            row = rows[cell if part == "appendix" else f"{part.capitalize().replace('-', ' ')}, {cell}"]
            runs = [study_results.runs[PARTS[part][cell](seed).name] for seed in range(4)]
            whole, interior = ([run.test[name] for run in runs] for name in ("mse", "interior_mse"))
            assert row[0].startswith(f"{reported:.3f}")
            assert row[1] == f"{np.mean(whole):.4f} ± {np.std(whole, ddof=1):.4f} (4)"
            assert row[2] == f"{np.mean(whole) / reported:.2f}"
            assert row[3] == f"{np.mean(interior):.4f} ± {np.std(interior, ddof=1):.4f} (4)"


def test_parameters_are_those_of_the_networks(report: str) -> None:
    rows = {row[0]: row[1] for row in cells_of(report, "| Appendix: ")}
    for name, part, cell in (
        ("with pooling", "appendix", "with pooling"),
        ("without pooling", "appendix", "without pooling"),
        ("with pooling, no edge", "no-decoder-padding", "appendix, with pooling"),
    ):
        network = Autoencoder(PARTS[part][cell](0).config.network)
        assert rows[name] == f"{sum(p.numel() for p in network.parameters()):,}"


def test_the_page_says_how_much_the_edge_adds(report: str) -> None:
    """The interior's error is made up as 0.8 times the whole's."""
    share = 100 * (1 - 0.8 * 625 / 784)
    assert f"with pooling ({share:.0f}%) lies in an edge of 159 pixels" in report


def words(page: str) -> int:
    """The number of words before the appendix."""
    text = page[: page.index("\n## Appendix")]
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def test_what_stands_before_the_appendix_is_short(report: str) -> None:
    committed = (REPOSITORY / "bench" / "results" / "study" / "report.md").read_text()
    assert words(committed) <= 2_500 and words(report) <= 2_500
    assert len(re.findall(r"^\d+\. ", report[: report.index("## Method")], re.MULTILINE)) == 10


def test_each_claim_has_its_verdict_and_says_why(report: str) -> None:
    rows = {row[0]: row for row in cells_of(report, "## The claims")}
    assert "**confirmed**" in rows["C1"][3] and re.fullmatch(r"n=256 minus n=512 \+0\.00\d\d", rows["C1"][4])
    assert rows["C1"][5] == "all 6 the same" and rows["C10a"][5] == "the same: no edge"
    assert re.fullmatch(r"test MSE with pooling \d\.\d\d times that without", rows["C10a"][4])
    assert "**not confirmed**" in rows["C8"][3]
    assert re.fullmatch(r"against it: mean test recall 0\.\d+ (higher|lower) than 0\.91", rows["C8"][4])
    by_epoch = cells_of(report, "C4, C5 and C11 are tested at other epochs too")[2:]
    readings = {"C4": ["dropout first"], "C5": ["dropout first", "one encoder"], "C11": ["dropout first"]}
    assert [row[:2] for row in by_epoch] == [
        [name, reading] for name, others in readings.items() for reading in ("as taken", *others)
    ]
    assert rows["C14"][5].endswith("one encoder")


def test_every_contrast_stands_in_the_appendix(report: str) -> None:
    rows = cells_of(report, "### Every contrast")[2:]
    count = sum(len(claim.contrasts) for claim in (*CLAIMS, *FINDINGS))
    assert {row[0] for row in rows[:count]} == {claim.name for claim in (*CLAIMS, *FINDINGS)}
    others = [row[0] for row in rows[count:]]
    assert others.count("C4, after epoch 5") == others.count("C4, dropout first, at the best epoch") == 5
    assert others.count("C1, no edge") == 3 and not any(row[3] == "not run" for row in rows)


def test_a_difference_too_small_for_its_digits_is_not_zero() -> None:
    small = Contrast("test accuracy", values=(0.00001, -0.000005), subject="test accuracy", than="than before")
    assert FILTERS["brief"](Claim("C", "", "", (small,))) == "open: test accuracy less than 0.0001 higher than before"
    assert FILTERS["number"](0.0001, 3) == "<0.001" and FILTERS["number"](float("nan"), 3) == ""


def test_few_labels_have_their_verdicts(report: str) -> None:
    rows = {row[0]: row for row in cells_of(report, "| labels |")}
    assert {count: rows[count][-1] for count in ("100", "10,000")} == {"100": "confirmed", "10,000": "confirmed"}
    assert (
        list(rows)[2:] == ["100", "300", "1,000", "3,000", "10,000", "all"]
        and float(rows["10,000"][3].strip("<")) < 0.05
    )


def test_a_figures_own_name_will_do_for_its_part() -> None:
    assert plan(["figure-5"], [0]) == plan(["final-model"], [0]) == plan(["figure-6"], [0])
    assert plan(["figure-ap1"], [0]) == plan(["appendix"], [0])


def test_the_reading_that_fits_best_is_bold_with_and_without_the_highest_learning_rate(report: str) -> None:
    rows = cells_of(report, "| off by")
    assert len(rows) == 2 + 7 and len(rows[0]) == 8 and "not run" not in str(rows)
    assert sum("**" in cell for row in rows for cell in row) >= 6


def test_the_same_results_give_the_same_bytes(study_results: Results, tmp_path: Path) -> None:
    few = {task.name: study_results.runs[task.name] for task in plan(["figure-3"], range(2))}
    for folder in (tmp_path / "1" / "study", tmp_path / "2" / "study"):
        folder.mkdir(parents=True)
        files = write_report(folder, replace(study_results, runs=few))
    for path in files:
        if path.suffix != ".png":  # whose bytes may depend on a library's version only, but are large
            assert (tmp_path / "1" / "study" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.usefixtures("no_figures")
def test_one_seed_says_on_which_side_its_numbers_lie_and_no_more(study_results: Results, tmp_path: Path) -> None:
    only = {task.name for task in plan(["table-1", "figure-3"], range(1))}
    runs = {name: run for name, run in study_results.runs.items() if name in only}
    write_report(tmp_path, replace(study_results, runs=runs))
    text = (tmp_path / "report.md").read_text()
    rows = {row[0]: row for row in cells_of(text, "## The claims")}
    assert rows["C1"][3] == "**as claimed¹**" and rows["C1"][4].startswith("n=64 minus n=128 +0.0")
    assert rows["C16"][3:5] == ["**undecided**", "open: one seed has no spread; 3 more open"]
    assert "C4) comes out as claimed with one seed" in text
    assert re.search(r"\d are as claimed with one seed", text)


@pytest.mark.usefixtures("no_figures")
def test_what_was_not_run_says_so(study_results: Results, tmp_path: Path) -> None:
    only = {task.name for task in plan(["table-1"], range(2))}
    runs = {name: run for name, run in study_results.runs.items() if name in only}
    write_report(tmp_path, replace(study_results, runs=runs))
    text = (tmp_path / "report.md").read_text()
    rows = {row[0]: row for row in cells_of(text, "| Appendix: ")}
    assert rows["without pooling"][3] == "not run"
    claims = {row[0]: row for row in cells_of(text, "## The claims")}
    assert claims["C10a"][3] == "**not run**" and claims["C10a"][4] == "not run"
    assert "4. The error with pooling beside that without: not run.\n" in text
    assert "8. Pre-trained minus random, the validation accuracy: not run.\n" in text
    assert "9. What pre-training adds to test accuracy with few labels: not run.\n" in text
    small = study_results.data | {"counts": {"train": 99, "val": 99, "test": 99}}  # without F4 and F5
    write_report(tmp_path, replace(study_results, runs=runs, data=small))
    assert (
        "9. What pre-training adds to test accuracy with few labels: not run.\n" in (tmp_path / "report.md").read_text()
    )
    assert not re.search(r"\bnan\b|\binf\b", text) and "figure-3.png" not in text


def test_no_runs_at_all_are_reported(study_results: Results, tmp_path: Path) -> None:
    empty = replace(study_results, runs={}, baseline={})
    assert [path.name for path in write_report(tmp_path, empty)] == ["report.md", "summary.md"]


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
    assert "- **Training**: 2 epochs" in text
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
    assert "C9a is left out: it is about the classes Shirt, Pullover and T-shirt/top" in text and "| C9a |" not in text
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
    assert linked == {path.name for path in folder.iterdir()} - {"report.md", "summary.md", "results.json"}
    assert (folder / "summary.md").read_text() == (committed / "summary.md").read_text()
    assert (committed / "summary.md").read_text() in (REPOSITORY / "README.md").read_text()
    for name in linked:
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in content


def test_the_first_editions_machine_is_said_to_be_that_of_the_collection() -> None:
    runs = read(REPOSITORY / "bench" / "results" / "study").runs.values()
    assert len(runs) >= 272 and {run.recorded for run in runs} >= {"when the results were collected"}
    for run in runs:  # of the second edition each has what it was made with
        if run.recorded == "when the run started":
            assert {"commit", "numpy", "torch"} <= run.versions.keys()
            assert {"cpu", "cpu_model", "memory_gib", "instruction_set"} <= run.machine.keys()
    page = (REPOSITORY / "bench" / "results" / "study" / "report.md").read_text()
    gpus = {run.machine["device_name"] for run in runs if run.config["device"] == "cuda"}
    assert gpus and all(f"{gpu}; cuda" in page for gpu in gpus)
    assert "Machine and date (2026-11-24) were recorded when the results were collected." in " ".join(page.split())


def test_the_study_page_has_the_reports_verdicts() -> None:
    text = (REPOSITORY / "bench" / "results" / "study" / "report.md").read_text()
    page = " ".join((REPOSITORY / "docs" / "study.md").read_text().split())
    sentence = re.search(r"Of \d+ claims, the paper's as made testable here and \d of ours, [^.]*\.", text)
    assert sentence and sentence[0] in page
    rows = cells_of(text, "## The claims")[2:]
    verdicts, own = Counter(row[3].strip("*") for row in rows), sum(row[2].startswith("ours") for row in rows)
    counts = f"Of {verdicts.total()} claims, the paper's as made testable here and {own} of ours"
    assert f"{counts}, {verdicts['confirmed']} are confirmed" in page
