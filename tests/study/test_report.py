import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmcae.errors import RunError
from fmcae.study import paper
from fmcae.study.claims import Claim, Contrast
from fmcae.study.grid import PARTS, plan
from fmcae.study.report import _from_how_few, _sentence, write_report
from fmcae.study.results import collect, read
from fmcae.study.runner import run_task

REPOSITORY = Path(__file__).parents[2]


def cells_of(text, start):
    """The rows of the first table after ``start``, as lists of cells."""
    table = text[text.index(start) :].split("\n\n")
    rows = next(block for block in table if block.startswith("| "))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


@pytest.fixture(scope="module")
def report(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    files = write_report(folder, whole)
    return folder, files, (folder / "report.md").read_text()


def test_every_cell_of_the_papers_tables_stands_beside_ours(report, whole):
    _, _, text = report
    for part, cells in paper.TEST_MSE.items():
        rows = {row[0]: row[1:] for row in cells_of(text, f"### {paper.TITLES[part]}")}
        for cell, reported in cells.items():
            values = [whole.runs[PARTS[part][cell](seed).name].test["mse"] for seed in range(4)]
            assert rows[cell][0].startswith(f"{reported:.3f}")
            assert rows[cell][1] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} (4)"
            assert rows[cell][2] == f"{np.mean(values) - reported:+.4f}"


def test_every_figure_is_there_and_linked(report):
    folder, files, text = report
    linked = set(re.findall(r"\(([a-z0-9-]+\.(?:png|svg))\)", text))
    assert linked == {path.name for path in files} - {"report.md"}
    assert {"figure-3", "figure-4", "figure-5", "figure-6", "figure-ap2", "figure-ap3", "labels"} <= {
        name.partition(".")[0] for name in linked
    }
    for name in linked:
        content = (folder / name).read_bytes()
        assert content.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in content


def test_each_claim_has_its_verdict_and_a_sentence(report):
    rows = {row[0]: row for row in cells_of(report[2], "## The claims")}
    assert "**confirmed**" in rows["C1"][3] and rows["C1"][4].startswith("The test MSE is ")
    assert "higher with n=64 than with n=128, " in rows["C1"][4] and "claim" not in rows["C1"][4]
    assert "**not confirmed**" in rows["C8"][3]
    assert re.fullmatch(
        r"Against the claim, the mean recall on test is 0\.\d+ (higher|lower) than 0\.91, beyond the margin of 0\.005\.",
        rows["C8"][4],
    )


def test_a_sentence_tells_what_holds_from_what_does_not():
    values = {"not confirmed": (-0.2, -0.21), "undecided": (1.0, -1.2), "confirmed": (0.012, 0.0122)}
    contrasts = tuple(
        Contrast("", values[verdict], None, "the loss", f"with {verdict} than else") for verdict in values
    )
    assert _sentence(Claim("C", "", "", contrasts)) == (
        "Against the claim, the loss is 0.2050 lower with not confirmed than else; undecided with 2 seeds, the loss is "
        "0.1000 lower with undecided than else; as claimed, the loss is 0.0121 higher with confirmed than else."
    )


def test_a_difference_too_small_for_its_digits_is_not_zero():
    small = Contrast("accuracy", (0.00001, 0.00002), 0.005, "the accuracy", "here than there")
    assert _sentence(Claim("F", "", "", (small,))) == (
        "The accuracy is less than 0.0001 higher here than there, within the margin of 0.005."
    )


def test_how_few_labels_follows_the_verdicts(report):
    assert "\nPre-training helps with up to 10,000 labels; it is undecided with 50,000.\n" in report[2]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ("uuu", "is not seen to help with 100 labels; it is undecided with 100, 300 and 1,000."),
        ("ccn", "helps with up to 300 labels; it hurts with 1,000."),
        ("cuc", "helps with up to 100 labels; it also helps with 1,000; it is undecided with 300."),
        ("ccc", "helps with up to 1,000 labels."),
    ],
)
def test_how_few_labels_where_verdicts_differ(found, said):
    values = {"c": (1.0, 1.1), "u": (1.0, -1.0), "n": (-1.0, -1.1)}
    counts = (100, 300, 1_000)
    own = [Claim("F", "", "", (Contrast("", values[one]),), n) for n, one in zip(counts, found, strict=True)]
    assert _from_how_few(own) == f"Pre-training {said}"


def test_a_figures_own_name_will_do_for_its_part():
    assert plan(["figure-5"], [0]) == plan(["final-model"], [0]) == plan(["figure-6"], [0])
    assert plan(["figure-ap1"], [0]) == plan(["appendix"], [0])


def test_the_reading_that_fits_best_is_bold(report):
    rows = cells_of(report[2], "## Where the paper's numbers disagree")
    assert sum("**" in cell for row in rows for cell in row) >= 4


def test_the_same_results_give_the_same_bytes(report, whole, tmp_path):
    folder, files, _ = report
    write_report(tmp_path, whole)
    for path in files:
        if path.suffix != ".png":  # whose bytes may depend on a library's version only, but are large
            again = (tmp_path / path.name).read_text().replace(tmp_path.name, folder.name)
            assert again == path.read_text(), path.name


def test_what_was_not_run_says_so(whole, tmp_path):
    only = {task.name for task in plan(["table-1"], range(2))}
    write_report(tmp_path, replace(whole, runs={name: run for name, run in whole.runs.items() if name in only}))
    text = (tmp_path / "report.md").read_text()
    rows = {row[0]: row for row in cells_of(text, "### Appendix")}
    assert rows["without pooling"][2] == "not run"
    claims = {row[0]: row for row in cells_of(text, "## The claims")}
    assert claims["C10"][3] == "**undecided**" and claims["C10"][4] == "Not all of its runs are there."
    assert "nan" not in text and not list(tmp_path.glob("figure-3.*"))


def test_runs_are_collected_and_read_back(sample, tmp_path):
    with pytest.raises(RunError, match="has neither finished runs nor results.json: start with  fmcae study run --out"):
        read(tmp_path)
    tasks = plan(["appendix", "final-model"], [0], epochs=1)
    small = [task for task in tasks if task.config.network.pooling]
    for task in small:
        run_task(tmp_path, task, str(sample))
    results = collect(tmp_path, str(sample))
    assert set(results.runs) == {task.name for task in small}
    run = results.of(small[1])
    assert run.confusion.sum() == 400 and set(run.test) == {"cross_entropy", "accuracy"}
    assert [len(values) for values in run.epochs.values()] == [1, 1, 1, 1] and run.config["seed"] == 0
    assert str(tmp_path) not in (tmp_path / "results.json").read_text()
    again = read(tmp_path)
    assert again.runs.keys() == results.runs.keys() and again.of(small[0]).test == results.of(small[0]).test
    assert write_report(tmp_path, again, epochs=1)[0].name == "report.md"


def test_results_of_elsewhere_stay(sample, tmp_path):
    (task, other) = plan(["table-1"], [0], epochs=1)[:2]
    run_task(tmp_path / "here", task, str(sample))
    run_task(tmp_path / "there", other, str(sample))
    collect(tmp_path / "there", str(sample))
    shutil.copy(tmp_path / "there" / "results.json", tmp_path / "here")
    assert set(collect(tmp_path / "here", str(sample)).runs) == {task.name, other.name}
    shutil.rmtree(tmp_path / "here" / "runs" / task.name)
    assert set(collect(tmp_path / "here", str(sample)).runs) == {task.name, other.name}
    damaged = (tmp_path / "here" / "results.json").read_text().replace('"fingerprint": "', '"fingerprint": "0')
    (tmp_path / "there" / "results.json").write_text(damaged)
    with pytest.raises(RunError, match="there: its runs were trained on different data"):
        collect(tmp_path / "there", str(sample))


def test_damaged_results_are_named(tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(RunError, match=r"results\.json: is damaged"):
        read(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"schema_version": 9}))
    with pytest.raises(RunError, match=r"schema_version \(=9\) must be 1"):
        read(tmp_path)


def test_the_committed_report_is_of_the_committed_results(tmp_path):
    committed = REPOSITORY / "bench" / "results" / "study"
    (tmp_path / "study").mkdir()
    write_report(tmp_path / "study", read(committed))
    again = (tmp_path / "study" / "report.md").read_text()
    assert (
        again.replace("fmcae study report study", "fmcae study report bench/results/study")
        == (committed / "report.md").read_text()
    )
    assert {path.name for path in (tmp_path / "study").iterdir()} | {"results.json"} == {
        path.name for path in committed.iterdir()
    }


def test_the_readme_has_the_reports_numbers():
    text = (REPOSITORY / "bench" / "results" / "study" / "report.md").read_text()
    readme = (REPOSITORY / "README.md").read_text()
    shown = {row[0]: row[1:] for row in cells_of(readme, "**What came out**")}
    for part, cells in paper.TEST_MSE.items():
        title = paper.TITLES[part]
        for row in cells_of(text, f"### {title}")[2:]:
            assert shown[f"{title.partition(':')[0]}, {row[0]}"] == row[1:]
        assert len(cells) + 2 == len(cells_of(text, f"### {title}"))
    verdicts = {row[0]: row[2] for row in cells_of(readme, "| | claim | verdict |")[2:]}
    said = {row[0]: row[3] for start in ("## The claims", "## Findings") for row in cells_of(text, start)[2:]}
    assert verdicts == said
