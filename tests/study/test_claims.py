import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fmcae.study.claims import CLAIMS, FINDINGS, Claim, Contrast, evaluate
from fmcae.study.grid import EPOCHS, PARTS
from fmcae.study.results import Results

numbers = st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=2, max_size=8)


def contrast_of(values: tuple[float, ...], margin: float | None = None) -> Contrast:
    return Contrast("a minus b", margin=margin, values=values)


@given(numbers)
def test_the_test_is_students(values: list[float]) -> None:
    contrast = contrast_of(tuple(values))
    if max(values) - min(values) < 1e-9:
        return
    expected = stats.ttest_1samp(values, 0, alternative="greater")
    assert contrast.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert list(contrast.interval) == [pytest.approx(low), pytest.approx(high)]


@given(numbers, st.floats(0.01, 2))
def test_within_a_margin_is_two_one_sided_tests(values: list[float], margin: float) -> None:
    contrast = contrast_of(tuple(values), margin)
    if max(values) - min(values) < 1e-9:
        return
    lower = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, margin, alternative="less").pvalue
    assert contrast.p_value == pytest.approx(max(lower, upper), abs=1e-9)
    assert (contrast.verdict() == "confirmed") == (max(lower, upper) < 0.05)


@pytest.mark.parametrize(
    ("values", "margin", "verdict"),
    [
        ((1.0, 1.1, 0.9), None, "confirmed"),
        ((-1.0, -1.1, -0.9), None, "not confirmed"),
        ((1.0, -1.1, 0.9), None, "undecided"),
        ((1.0,), None, "undecided"),
        ((), None, "undecided"),
        ((0.5, 0.5, 0.5), None, "confirmed"),
        ((0.0, 0.0, 0.0), None, "not confirmed"),
        ((0.91 - 0.9, 0.81 - 0.8, 0.71 - 0.7), None, "confirmed"),  # the same but for rounding
        ((0.001, -0.001, 0.0), 0.01, "confirmed"),
        ((0.1, 0.11, 0.12), 0.01, "not confirmed"),
        ((-0.1, -0.11, -0.12), 0.01, "not confirmed"),
        ((0.02, -0.02, 0.01), 0.01, "undecided"),
        ((0.005,), 0.01, "undecided"),
        ((0.0, 0.0), 0.01, "confirmed"),
        ((0.5, 0.5), 0.01, "not confirmed"),
    ],
)
def test_verdicts(values: tuple[float, ...], margin: float | None, verdict: str) -> None:
    assert contrast_of(values, margin).verdict() == verdict


@pytest.mark.parametrize(("values", "interval"), [((0.5, 0.5), (0.5, 0.5)), ((0.5,), None), ((), None)])
def test_one_seed_or_no_spread_gives_no_warning(
    values: tuple[float, ...], interval: tuple[float, float] | None
) -> None:
    contrast = contrast_of(values)
    assert math.isnan(contrast.effect_size)
    assert contrast.interval == interval or (interval is None and math.isnan(contrast.interval[0]))


def test_a_claim_holds_if_all_of_it_does() -> None:
    yes, no, open_one = (contrast_of(values) for values in ((1.0, 1.1), (-1.0, -1.1), (1.0, -1.0)))
    assert Claim("C", "", "", (yes, yes)).verdict == "confirmed"
    assert Claim("C", "", "", (yes, open_one)).verdict == "undecided"
    assert Claim("C", "", "", (open_one, no, yes)).verdict == "not confirmed"


def test_one_of_many_contrasts_refutes_at_a_stricter_level() -> None:
    against = contrast_of((-1.0, -1.5, -0.4))  # p of the opposite: 0.047
    assert 0.05 / 2 < 1 - against.p_value < 0.05
    yes = contrast_of((1.0, 1.1))
    assert Claim("C", "", "", (against,)).verdict == "not confirmed"
    assert Claim("C", "", "", (against, yes)).verdict == "undecided"


def test_numbers_as_the_paper_has_them_confirm_every_claim(study_results: Results) -> None:
    claims = evaluate(CLAIMS, study_results, range(4), EPOCHS)
    assert [claim.name for claim in claims] == [f"C{number}" for number in range(1, 14)]
    assert {claim.name: claim.verdict for claim in claims if claim.verdict != "confirmed"} == {"C8": "not confirmed"}
    assert {len(contrast.values) for claim in claims for contrast in claim.contrasts} == {4}


def test_the_opposite_is_not_confirmed(study_results: Results) -> None:
    """Every run of Table 1 has the test error of the mirrored latent size."""
    names = list(PARTS["table-1"])
    runs = dict(study_results.runs)
    for seed in range(4):
        for name, mirrored in zip(names, reversed(names), strict=True):
            there, other = (PARTS["table-1"][cell](seed).name for cell in (name, mirrored))
            runs[there] = replace(study_results.runs[there], test=study_results.runs[other].test)
    claims = evaluate(CLAIMS, replace(study_results, runs=runs), range(4), EPOCHS)
    verdicts = {claim.name: claim.verdict for claim in claims}
    assert verdicts["C1"] == "not confirmed" and verdicts["C4"] == "confirmed"


def test_one_seed_or_none_decides_nothing(study_results: Results) -> None:
    assert {claim.verdict for claim in evaluate(CLAIMS, study_results, [0], EPOCHS)} == {"undecided"}
    nothing = evaluate(CLAIMS, replace(study_results, runs={}), [], EPOCHS)
    assert {claim.verdict for claim in nothing} == {"undecided"}
    assert all(math.isnan(contrast.mean) for claim in nothing for contrast in claim.contrasts)


def test_a_seed_without_all_of_a_contrasts_runs_is_left_out(study_results: Results) -> None:
    missing = PARTS["table-1"]["n=64"](2).name
    runs = {name: run for name, run in study_results.runs.items() if name != missing}
    first = evaluate(CLAIMS, replace(study_results, runs=runs), range(4), EPOCHS)[0]
    assert [len(contrast.values) for contrast in first.contrasts] == [3, 4, 4]


def test_findings_follow_the_numbers(study_results: Results) -> None:
    verdicts = {claim.text: claim.verdict for claim in evaluate(FINDINGS, study_results, range(4), EPOCHS)}
    assert verdicts["Pre-training on all images helps with 100 labels."] == "confirmed"
    assert verdicts["Pre-training helps where all 50,000 labels are used and the encoder is fine-tuned."] == "undecided"


def test_claims_that_do_not_fit_the_data_are_left_out(study_results: Results) -> None:
    data = study_results.data | {"class_names": [str(index) for index in range(10)]}
    data |= {"counts": {"train": 1_000, "val": 200, "test": 400}}
    claims = evaluate((*CLAIMS, *FINDINGS), replace(study_results, data=data), range(4), EPOCHS)
    names = {claim.name for claim in claims}
    assert {claim.name for claim in (*CLAIMS, *FINDINGS)} - names == {"C9", "F6", "F7", "F8"}
    assert any(claim.text.startswith("With all 1,000 labels") for claim in claims)
