from dataclasses import asdict, replace

import pytest

from fmcae.export.tradeoff import Tradeoff
from fmcae.runtime.timing import Ratio

SLOWER, EQUAL, FASTER = Ratio(0.9, 0.8, 0.95), Ratio(0.9, 0.8, 1.1), Ratio(1.3, 1.1, 1.4)
SMALLER = Tradeoff(100, 0.9, 0.9, 1.0, 0.0, 300, 400, {"1": SLOWER}, "cpu", 1, {}, 0.2)


def test_int8_is_kept_where_it_is_smaller_or_faster() -> None:
    assert SMALLER.failure is None
    larger = replace(SMALLER, size_bytes=500)
    numbers = "0.90 times as fast at batch 1 (0.80 to 0.95)"
    assert larger.failure == f"it is not smaller (500 bytes), and slower than float32 on cpu: {numbers}"
    on_gpu = replace(larger, provider="cuda", gpu={"name": "NVIDIA L4", "driver": "570.86.15"})
    assert "slower than float32 on cuda (NVIDIA L4)" in str(on_gpu.failure)
    assert replace(larger, speedup={"1": FASTER}).failure is None
    assert "as fast as float32" in str(replace(larger, speedup={"1": EQUAL}).failure)


@pytest.mark.parametrize(
    ("single", "batch", "verdict", "is_kept"),
    [
        (SLOWER, SLOWER, "slower than float32", False),
        (EQUAL, SLOWER, "slower than float32", False),
        (EQUAL, EQUAL, "as fast as float32", True),
        (SLOWER, FASTER, "faster than float32", True),
        (FASTER, EQUAL, "faster than float32", True),
    ],
)
def test_fp16_that_is_slower_in_every_round_is_not_kept(
    single: Ratio, batch: Ratio, verdict: str, is_kept: bool
) -> None:
    fp16 = replace(SMALLER, precision="fp16", speedup={"1": single, "256": batch})
    assert (fp16.speed_verdict, fp16.failure is None) == (verdict, is_kept)
    if not is_kept:
        assert str(fp16.failure).startswith("it is slower than float32 on cpu: 0.90 times as fast at batch 1 (0.80 to ")
    assert replace(fp16, precision="int8").failure is None


def test_more_accuracy_lost_than_the_budget_is_not_worth_keeping() -> None:
    lost = "it loses 1.00 points of accuracy (0.8900, float32 has 0.9000) on 100 test images, and may lose 0.2 points"
    assert replace(SMALLER, accuracy=0.89).failure == lost
    assert replace(SMALLER, accuracy=float("nan")).failure is not None


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [(0.9009, "gains 0.09 points of accuracy"), (0.8996, "loses 0.04 points of"), (0.9, "keeps the accuracy (0.9000")],
)
def test_one_convention_says_what_the_accuracy_gains_or_loses(accuracy: float, words: str) -> None:
    assert replace(SMALLER, accuracy=accuracy).accuracy_text.startswith(words)


@pytest.mark.parametrize(
    ("fp32", "smaller", "budget"), [(0.9131, 0.9111, 0.2), (0.913, 0.91, 0.3), (0.5, 0.43, 7), (0.9131, 0.9131, 0)]
)
def test_a_loss_of_exactly_the_budget_is_allowed(fp32: float, smaller: float, budget: float) -> None:
    exact = replace(SMALLER, images=10_000, fp32_accuracy=fp32, accuracy=smaller, budget_points=budget)
    assert exact.failure is None
    assert replace(exact, accuracy=smaller - 1e-4).failure is not None


def test_a_card_gives_it_back() -> None:
    assert Tradeoff.from_json(asdict(SMALLER)) == SMALLER
    without = {name: value for name, value in asdict(SMALLER).items() if name not in ("precision", "gpu")}
    assert Tradeoff.from_json(without) == SMALLER  # a card of 0.1
