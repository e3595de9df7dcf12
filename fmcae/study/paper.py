"""What the paper reports, cell by cell. Source: Gabaldón 2023, Tables 1 to 3, the Appendix's table and Figure 6."""

TEST_MSE: dict[str, dict[str, float]] = {
    "table-1": {"n=64": 0.034, "n=128": 0.025, "n=256": 0.023, "n=512": 0.020},
    "table-2": {"p=0.05": 0.020, "p=0.1": 0.024, "p=0.15": 0.031, "p=0.2": 0.036},
    "table-3": {"lr=0.01": 0.042, "lr=0.001": 0.020, "lr=0.0001": 0.023},
    "appendix": {"with pooling": 0.019, "without pooling": 0.004},
}
SLIPS = {("table-2", "p=0.05"): "printed as 0.20, a slip: Table 3 has the same run as 0.020"}
MEAN_RECALL = 0.91  # Figure 6
TITLES = {
    "table-1": "Table 1: p=0.2, lr=0.001",
    "table-2": "Table 2: n=128, lr=0.001",
    "table-3": "Table 3: n=128, p=0.05",
    "appendix": "Appendix: n=128, p=0.1, lr=0.001",
}
# Cells that are the same configuration, and differ in the paper.
DISAGREEMENTS = (
    ("n=128, p=0.2", (("table-1", "n=128"), ("table-2", "p=0.2"))),
    ("n=128, p=0.1", (("table-2", "p=0.1"), ("appendix", "with pooling"))),
)
