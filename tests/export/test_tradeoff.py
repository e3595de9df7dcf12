from dataclasses import replace

import pytest

from fmcae.export.tradeoff import Tradeoff
from fmcae.runtime.timing import Ratio

SLOWER = {"1": Ratio(0.9, 0.8, 1.0)}
SMALLER = Tradeoff(100, 0.9, 0.9, 1.0, 0.0, 300, 400, SLOWER, "cpu", 1, {}, 0.2)


def test_neither_smaller_nor_faster_is_not_worth_keeping() -> None:
    assert SMALLER.failure is None
    larger = replace(SMALLER, size_bytes=500)
    assert "neither smaller (500 bytes) nor faster (0.90 times on cpu)" in str(larger.failure)
    on_gpu = replace(larger, provider="cuda", gpu={"name": "NVIDIA L4", "driver": "570.86.15"})
    assert "nor faster (0.90 times on cuda (NVIDIA L4))" in str(on_gpu.failure)
    assert replace(larger, speedup={"1": Ratio(1.1, 1.0, 1.2)}).failure is None


def test_more_accuracy_lost_than_the_budget_is_not_worth_keeping() -> None:
    assert "by 1.00 points" in str(replace(SMALLER, accuracy=0.89).failure)
    assert replace(SMALLER, accuracy=float("nan")).failure is not None


@pytest.mark.parametrize(
    ("fp32", "smaller", "budget"), [(0.9131, 0.9111, 0.2), (0.913, 0.91, 0.3), (0.5, 0.43, 7), (0.9131, 0.9131, 0)]
)
def test_a_loss_of_exactly_the_budget_is_allowed(fp32: float, smaller: float, budget: float) -> None:
    exact = replace(SMALLER, images=10_000, fp32_accuracy=fp32, accuracy=smaller, budget_points=budget)
    assert exact.failure is None
    assert replace(exact, accuracy=smaller - 1e-4).failure is not None
