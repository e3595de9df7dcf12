"""The picture beside a model card: how far its probabilities can be trusted."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from fmcae.train.figures import BLUE


@matplotlib.style.context("default")  # whatever a matplotlibrc says
def reliability_png(calibration: Mapping[str, Any]) -> bytes:
    """Draw the reliability diagram of a card's calibration as a PNG file: accuracy over confidence, and the images' number.

    Source: Guo et al. 2017, arXiv:1706.04599, Figure 1.
    """
    confidence, accuracy, count = (
        [item[name] for item in calibration["reliability"]] for name in ("confidence", "accuracy", "count")
    )
    figure = Figure(figsize=(4.4, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), "k--", linewidth=1, label="perfect")
    above.plot(confidence, accuracy, "o-", color=BLUE, label="this classifier")
    above.set(
        ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"Test: calibration error {calibration['ece_after']:.4f}"
    )
    above.legend(frameon=False, loc="upper left")
    below.bar(confidence, count, width=0.03, color=BLUE)
    below.set(xlabel="confidence: the probability of the label", ylabel="images", yscale="log")
    below.set_ylim(bottom=0.5)  # a bin of one image is seen too
    for axes in (above, below):
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
