"""Parity evidence in words, for every verb that shows it."""

from typing import Any


def parity_lines(evidence: dict[str, Any]) -> str:
    """Describe parity evidence, as it stands in a card: a line for each comparison, and what they come to."""
    lines = []
    for item in evidence["comparisons"]:
        difference, agreement = item["difference"], item["label_agreement"]
        labels = "" if agreement is None else f"  labels agree {agreement:.2%}"
        lines.append(
            f"  {item['output']:<7} batch {item['batch_size']:>4}  max abs {difference['max_abs']:.2e}  "
            f"max rel {difference['max_rel']:.2e}{labels}"
        )
    verdict = "holds" if evidence["passed"] else "does not hold"
    return "\n".join([*lines, f"parity {verdict} on {evidence['images']:,} images, provider {evidence['provider']}"])
