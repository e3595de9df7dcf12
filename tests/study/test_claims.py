import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fmcae.study.claims import Claim, Contrast, check, findings
from fmcae.study.grid import PARTS

numbers = st.lists(st.floats(-1, 1).map(lambda x: round(x, 6)), min_size=2, max_size=8)


@given(numbers)
def test_the_test_is_students(values):
    contrast = Contrast("a minus b", tuple(values))
    if contrast.std < 1e-9:
        return
    expected = stats.ttest_1samp(values, 0, alternative="greater")
    assert contrast.p_value == pytest.approx(expected.pvalue, abs=1e-9)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert contrast.interval == (pytest.approx(low), pytest.approx(high))
    assert contrast.effect_size == pytest.approx(contrast.mean / contrast.std)


@given(numbers, st.floats(0.01, 2))
def test_within_a_margin_is_two_one_sided_tests(values, margin):
    contrast = Contrast("a minus b", tuple(values), margin)
    if contrast.std < 1e-9:
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
        ((0.001, -0.001, 0.0), 0.01, "confirmed"),
        ((0.1, 0.11, 0.12), 0.01, "not confirmed"),
        ((-0.1, -0.11, -0.12), 0.01, "not confirmed"),
        ((0.02, -0.02, 0.01), 0.01, "undecided"),
        ((0.005,), 0.01, "undecided"),
        ((0.0, 0.0), 0.01, "confirmed"),
        ((0.5, 0.5), 0.01, "not confirmed"),
    ],
)
def test_verdicts(values, margin, verdict):
    assert Contrast("a minus b", values, margin).verdict() == verdict


def test_a_claim_holds_if_all_of_it_does():
    yes, no, open_one = (Contrast("x", values) for values in ((1.0, 1.1), (-1.0, -1.1), (1.0, -1.0)))
    assert Claim("C", "", "", (yes, yes)).verdict == "confirmed"
    assert Claim("C", "", "", (yes, open_one)).verdict == "undecided"
    assert Claim("C", "", "", (open_one, no, yes)).verdict == "not confirmed"


def test_one_of_many_contrasts_refutes_at_a_stricter_level():
    against = Contrast("x", (-1.0, -1.5, -0.4))  # p of the opposite: 0.047
    assert 0.05 / 2 < 1 - against.p_value < 0.05
    yes = Contrast("x", (1.0, 1.1))
    assert Claim("C", "", "", (against,)).verdict == "not confirmed"
    assert Claim("C", "", "", (against, yes)).verdict == "undecided"


def test_numbers_as_the_paper_has_them_confirm_every_claim(whole):
    claims = check(whole, range(4))
    assert [claim.name for claim in claims] == [f"C{number}" for number in range(1, 14)]
    assert {claim.name: claim.verdict for claim in claims if claim.verdict != "confirmed"} == {"C8": "not confirmed"}
    assert all(claim.seeds == 4 for claim in claims)


def test_the_opposite_is_not_confirmed(whole):
    """Every run of Table 1 with the results of the mirrored latent size."""
    names = list(PARTS["table-1"])
    runs = dict(whole.runs)
    for seed in range(4):
        for name, mirrored in zip(names, reversed(names), strict=True):
            there, other = (PARTS["table-1"][cell](seed).name for cell in (name, mirrored))
            runs[there] = replace(whole.runs[other], name=there)
    verdicts = {claim.name: claim.verdict for claim in check(replace(whole, runs=runs), range(4))}
    assert verdicts["C1"] == "not confirmed" and verdicts["C4"] == "confirmed"


def test_one_seed_or_none_decides_nothing(whole):
    assert {claim.verdict for claim in check(whole, [0])} == {"undecided"}
    nothing = check(replace(whole, runs={}), [])
    assert {claim.verdict for claim in nothing} == {"undecided"}
    assert all(math.isnan(contrast.mean) for claim in nothing for contrast in claim.contrasts)


def test_a_seed_without_all_of_a_contrasts_runs_is_left_out(whole):
    missing = PARTS["table-1"]["n=64"](2).name
    results = replace(whole, runs={name: run for name, run in whole.runs.items() if name != missing})
    first = check(results, range(4))[0]
    assert [len(contrast.values) for contrast in first.contrasts] == [3, 4, 4] and first.seeds == 3


def test_findings_follow_the_numbers(whole):
    verdicts = {claim.text: claim.verdict for claim in findings(whole, range(4))}
    assert verdicts["Pre-training on all images helps with 100 labels."] == "confirmed"
    assert verdicts["Pre-training helps where all 50,000 labels are used and the encoder is fine-tuned."] == "undecided"
