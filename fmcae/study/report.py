"""The report: the paper's tables, figures and claims beside ours, as Markdown with figures. It reads results only."""

import math
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from fmcae.files import write_atomic
from fmcae.study import figures, paper
from fmcae.study.claims import Claim, Contrast, Verdict, check, findings, mean_recall
from fmcae.study.grid import LABELS, PARTS, READINGS, TRAIN_IMAGES, Task, label_count
from fmcae.study.results import FILE, Results, RunResult

NAME = "report.md"
TABLES = ("table-1", "table-2", "table-3", "appendix")
NOT_RUN = "not run"


def write_report(folder: Path, results: Results, epochs: int = 30) -> list[Path]:
    """Write ``report.md`` and its figures into ``folder``; the files that were written."""
    seeds = sorted({run.config["seed"] for run in results.runs.values()})
    writer = _Writer(folder, results, seeds, epochs)
    text = writer.text()
    write_atomic(folder / NAME, text)
    return [folder / NAME, *writer.figures]


class _Writer:
    def __init__(self, folder: Path, results: Results, seeds: Sequence[int], epochs: int) -> None:
        self.folder, self.results, self.seeds, self.epochs = folder, results, seeds, epochs
        self.place = folder.name if folder.is_absolute() else folder.as_posix()  # no machine's own path in a report
        self.figures: list[Path] = []
        self.claims = check(results, seeds, epochs)

    def text(self) -> str:
        own = findings(self.results, self.seeds, self.epochs)
        sections = (
            self.head(),
            self.verdicts("## The claims", self.claims),
            self.tables(),
            self.final_model(),
            self.curves(),
            self.readings(),
            self.own_findings(own),
            self.details("## How each verdict was reached", [*self.claims, *own]),
            self.networks(),
            self.commands(),
        )
        return "\n".join(line for section in sections for line in [*section, ""]).rstrip() + "\n"

    # --- data ----------------------------------------------------------------------------------------------------

    def runs(self, part: str, cell: str) -> list[RunResult]:
        """A cell's runs, one for each seed that has it."""
        tasks = (PARTS[part][cell](seed, epochs=self.epochs) for seed in self.seeds)
        return [run for run in map(self.results.of, tasks) if run is not None]

    def again(self, part: str, where: str = "") -> str:
        """How to make a part again, and the claims on what the paper calls ``where``."""
        on_it = [claim.name for claim in self.claims if claim.where == where]
        see = f" For what the paper says of it, see {_and(on_it)}." if on_it else ""
        return f"To make it again: `{self.command(part)}`.{see}"

    def command(self, *parts: str) -> str:
        """What makes all that the parts have here."""
        seeds = [run.config["seed"] for part in parts for cell in PARTS[part] for run in self.runs(part, cell)]
        only = " ".join(f"--only {part}" for part in parts)
        return f"fmcae study run {only} --seeds {max(seeds, default=0) + 1} && fmcae study report"

    def figure(self, name: str, caption: str, drawn: Any) -> list[str]:
        if drawn is None:
            return [f"**{caption}** {NOT_RUN.capitalize()} yet."]
        self.figures += figures.save(drawn, self.folder / name)
        return [f"![{caption}]({name}.png)", "", f"**{caption}** ([SVG]({name}.svg))"]

    # --- sections ------------------------------------------------------------------------------------------------

    def head(self) -> list[str]:
        machine, data = self.results.machine, self.results.data
        runs = self.results.runs.values()
        counts = data["counts"]
        versions = sorted({f"torch {run.versions['torch']}, Python {run.versions['python']}" for run in runs})
        where = sorted({f"{run.config['device']}, {run.config['threads']} thread(s) a run" for run in runs})
        hours = sum(run.seconds for run in runs) / 3600
        whole = f"fmcae study run --seeds {max(self.seeds, default=0) + 1} && fmcae study report"
        return [
            "# The study, reproduced",
            "",
            "C. Gabaldón, *Estudio de una red neuronal clasificadora pre-entrenada por un autoencoder convolucional* "
            "(FAMAF-UNC 2023), table by table, figure by figure and claim by claim, beside runs of fmcae. Of the paper, the "
            "text and tables are known and the figures are lost; of their values the text has the 0.91 of Figure 6 only. So "
            "our curves stand beside what the text says of the paper's.",
            "",
            f"- **Method**: {self.epochs} epochs of Adam (PyTorch's β and ε) on mini-batches of 100, as the paper has it, "
            "of pixels in [0, 1]. The loss is the mean squared error of the autoencoder, and the cross-entropy of the "
            "classifier. After each epoch train and validation are measured with dropout off, which the curves show, and "
            "test after the last, which the tables have. A classifier starts from the autoencoder of its own latent size n, "
            "dropout p and seed; the text can also be read as all from one with p=0.05, which F9 compares. Dropout follows "
            "pooling and the decoder's output is not dropped; [other readings](#where-the-papers-numbers-disagree) are "
            "compared below. [The networks](#the-networks) are at the end.",
            f"- **Data**: {data['name']}: the official test set of {counts['test']:,} images; of the official train set "
            f"{counts['val']:,} for validation and {counts['train']:,} to train on, the same split (seed "
            f"{data['split_seed']}) for every run. Fingerprint `{data['fingerprint'][:16]}`.",
            f"- **Runs**: {len(self.results.runs)}, with seeds {_listed(self.seeds)}; {hours:.1f} hours of training, all "
            "runs added up. A run's seed sets its weights, the order of its batches, and dropout. Numbers are mean ± sample "
            f"standard deviation over the seeds, with the number of seeds in brackets; “{NOT_RUN}” says that there is none. "
            "A printed command trains every cell of its part on as many seeds as the best-covered cell has.",
            f"- **Hardware and versions**: {machine['cpu']}, {machine['available_cpus']} CPUs; {_listed(where)}; fmcae "
            f"{machine['fmcae']}, {_listed(versions)}. On a CPU, fmcae trains networks with pooling by a fused step of its "
            "own, those without by PyTorch's; the repository's `bench/results/train_quality_cpu.json` compares the two.",
            f"- **Results**: every run's configuration, seed and metrics per epoch are in [{FILE}]({FILE}), of "
            f"{self.results.date}. This page is made from that file alone: `fmcae study report {self.place}`. The whole "
            f"again: `{whole}`.",
            "- **Words**: *recall*, the share of a class's images that are recognised (the diagonal of the confusion "
            "matrix); *gap*, validation minus train cross-entropy after the last epoch; *frozen*, an encoder whose weights "
            "are not trained on; *control*, the run that differs from another in nothing but what is asked about.",
        ]

    def verdicts(self, title: str, claims: Iterable[Claim]) -> list[str]:
        rows = [
            f"| {claim.name} | {claim.text} | {claim.where} | **{claim.verdict}** | {_sentence(claim)} |"
            for claim in claims
        ]
        return [
            title,
            "",
            "Each is tested by contrasts: one number a seed, such as one run's error minus another's. It is confirmed if "
            "all its contrasts are as claimed at the 5% level, not confirmed if one is significantly not, and undecided "
            "otherwise. [The tests](#how-each-verdict-was-reached) are below.",
            "",
            "| | claim | where | verdict | in plain words |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]

    def tables(self) -> list[str]:
        lines = ["## The tables: test mean squared error of the autoencoder"]
        for part in TABLES:
            lines += [
                "",
                f"### {paper.TITLES[part]}",
                "",
                "| | the paper | fmcae | difference |",
                "| --- | --- | --- | --- |",
            ]
            for cell, reported in paper.TEST_MSE[part].items():
                values = [run.test["mse"] for run in self.runs(part, cell)]
                slip = " (*)" if (part, cell) in paper.SLIPS else ""
                difference = f"{np.mean(values) - reported:+.4f}" if values else ""
                lines.append(f"| {cell} | {reported:.3f}{slip} | {_mean(values)} | {difference} |")
            lines += [f"\n(*) {text}." for (of, _), text in paper.SLIPS.items() if of == part]
            lines += ["", self.again(part, _title(part))]
        drawn = figures.reconstructions(self.results, self.runs("appendix", "with pooling"), self.runs(
            "appendix", "without pooling"))  # fmt: skip
        caption = "Figure Ap.1: test images, and their reconstructions with and without pooling."
        return [*lines, "", *self.figure("figure-ap1", caption, drawn)]

    def final_model(self) -> list[str]:
        runs = self.runs("final-model", "final model")
        recall = [mean_recall(run) for run in runs]
        accuracy = [run.test["accuracy"] for run in runs]
        drawn = figures.confusion(runs, self.results.class_names)
        return [
            "## The final model: n=128, p=0.1, lr=0.001",
            "",
            "| | the paper | fmcae | difference |",
            "| --- | --- | --- | --- |",
            f"| mean of the confusion matrix's diagonal | {paper.MEAN_RECALL} | {_mean(recall)} | "
            f"{f'{np.mean(recall) - paper.MEAN_RECALL:+.4f}' if recall else ''} |",
            f"| test accuracy | | {_mean(accuracy)} | |",
            "",
            *self.figure(
                "figure-6",
                "Figure 6: confusion on test, mean over the seeds; each row, a true class, sums to 1.",
                drawn,
            ),
            "",
            self.again("final-model", "Figure 6"),
        ]

    def curves(self) -> list[str]:
        lines = [
            "## The curves",
            "",
            "Accuracy and cross-entropy (in nats; the paper's formula has bits, which are 1.443 times as many) after each "
            "epoch: mean over the seeds, with a band of ± one standard deviation. Validation is solid with full markers, "
            "train dashed with hollow ones. All classifiers have n=128, p=0.1 and lr=0.001 where nothing else is said. The "
            "tables below the figures are of the last epoch.",
        ]
        for part, name, caption in (
            ("figure-3", "figure-3", "Figure 3: the classifier for each latent size n, with p=0.05"),
            ("figure-4", "figure-4", "Figure 4: the classifier for each dropout p"),
            ("learning-rate", "learning-rate", "§3.2: the classifier for each learning rate (no figure in the paper)"),
            ("final-model", "figure-5", "Figure 5: the final model"),
            ("figure-ap2", "figure-ap2", "Figure Ap.2: the classifier with and without pooling"),
            ("figure-ap3", "figure-ap3", "Figure Ap.3: the encoder fine-tuned, frozen, and random and frozen; and the "
             "control, random and fine-tuned"),
        ):  # fmt: skip
            where = caption.partition(":")[0]
            cells = {cell: self.runs(part, cell) for cell in PARTS[part]}
            counts = sorted({len(runs) for runs in cells.values()})
            caption += f"; {' to '.join(map(str, counts))} seed{'s' if counts[-1] != 1 else ''}."
            lines += ["", *self.figure(name, caption, figures.curves(cells)), ""]
            lines += ["| | test accuracy | test cross-entropy | validation minus train cross-entropy |"]
            lines += ["| --- | --- | --- | --- |"]
            for cell, runs in cells.items():
                gaps = [run.epochs["val_cross_entropy"][-1] - run.epochs["train_cross_entropy"][-1] for run in runs]
                accuracy, loss = ([run.test[name] for run in runs] for name in ("accuracy", "cross_entropy"))
                lines.append(f"| {cell} | {_mean(accuracy)} | {_mean(loss, 3)} | {_mean(gaps, 3)} |")
            lines += ["", self.again(part, where)]
        return lines

    def readings(self) -> list[str]:
        """Tables 1 to 3 in each reading, and how far each is off."""
        lines = [
            "## Where the paper's numbers disagree",
            "",
            "The paper gives one configuration several numbers:",
            "",
        ]
        for title, places in paper.DISAGREEMENTS:
            numbers = [f"{paper.TEST_MSE[part][cell]:.3f} ({_title(part)})" for part, cell in places]
            lines.append(f"- {title}: {' and '.join(numbers)}")
        lines += [
            "",
            "So no reading can match them all. (It also says that the classifier gets worse as p grows, and takes p=0.1 for "
            "the best, not 0.05.) Of what its text leaves open, two choices are compared: whether the encoder drops before "
            "or after pooling, and whether the decoder's output is dropped too. The kernel sizes, the decoder's activations "
            "and the split are open too, and fixed here.",
            "",
            "The measure of fit is the root mean square, over a table's cells, of ln(ours / the paper's), ours as the mean "
            "over the seeds: 0.1 is about 10% off. The last column is that of the three tables, each with the same weight. "
            "Table 2's slip counts as 0.020; the Appendix, where most of the difference is pooling's, does not count. The "
            "least is bold.",
            "",
        ]
        fits: dict[str, dict[str, float]] = {}
        rows = []
        tables = [part for part in TABLES if part != "appendix"]
        for reading in READINGS:
            fits[reading] = {}
            for part in tables:
                logs = []
                for cell, reported in paper.TEST_MSE[part].items():
                    runs = self.runs("readings", f"{reading}: {_title(part)}, {cell}")
                    values = [run.test["mse"] for run in runs]
                    rows.append((part, cell, reading, reported, values))
                    logs += [math.log(np.mean(values) / reported)] if values else []
                whole = len(logs) == len(paper.TEST_MSE[part])
                fits[reading][part] = float(np.sqrt(np.mean(np.square(logs)))) if whole else float("nan")
            fits[reading]["all"] = float(np.sqrt(np.mean(np.square(list(fits[reading].values())))))
        columns = [*tables, "all"]
        known = [column for column in columns if not any(math.isnan(fit[column]) for fit in fits.values())]
        best = {column: min(fit[column] for fit in fits.values()) for column in known}
        lines += ["| off by | Table 1 | Table 2 | Table 3 | all three |", "| --- | --- | --- | --- | --- |"]
        for reading, fit in fits.items():
            cells = [
                NOT_RUN if math.isnan(fit[c]) else f"**{fit[c]:.3f}**" if fit[c] == best.get(c) else f"{fit[c]:.3f}"
                for c in columns
            ]
            lines.append(f"| {reading} | {' | '.join(cells)} |")
        heads = " | ".join(READINGS)
        lines += ["", f"| test MSE | the paper | {heads} |", "| --- | --- |" + " --- |" * len(READINGS)]
        for part in tables:
            for cell, reported in paper.TEST_MSE[part].items():
                ours = [_mean(values) for p, c, _, _, values in rows if (p, c) == (part, cell)]
                lines.append(f"| {_title(part)}, {cell} | {reported:.3f} | {' | '.join(ours)} |")
        lines += ["", _which_fits(best, fits), "", self.again("readings")]
        return lines

    def own_findings(self, own: Iterable[Claim]) -> list[str]:
        pairs = {
            TRAIN_IMAGES if labels is None else labels: [
                [run.test["accuracy"] for run in self.runs("labels", f"{label_count(labels)}, {start}")]
                for start in ("pre-trained", "random")
            ]
            for labels in LABELS
        }
        caption = (
            "Test accuracy with few labels, the encoder pre-trained on all images without labels, or random; bars are ± one "
            "standard deviation over the seeds."
        )
        lines = self.verdicts("## Findings of our own: what pre-training is worth", own)
        lines += ["", "Each finding is tested by itself, with no correction for their number."]
        lines += ["", *self.figure("labels", caption, figures.few_labels(pairs)), ""]
        lines += ["| labels | pre-trained | random | difference (90% interval) |", "| --- | --- | --- | --- |"]
        contrasts = {claim.labels: claim.contrasts[0] for claim in own if claim.labels}
        for count, (pretrained, random) in pairs.items():
            lines.append(f"| {count:,} | {_mean(pretrained)} | {_mean(random)} | {_with_interval(contrasts[count])} |")
        lines += [
            "",
            _from_how_few(own),
            "",
            "With few labels an epoch is as many passes as fit into 5,000 images, and at least one: 50 over 100 labels, 16 "
            "over 300, 5 over 1,000, 1 over 3,000 and more. The labels are drawn with the seed, as many of "
            "each class.",
            "",
            self.again("labels"),
            "",
            f"For F1 to F3 and F9: `{self.command('figure-ap3', 'encoder-dropout', 'figure-4')}`.",
        ]
        return lines

    def details(self, title: str, claims: Iterable[Claim]) -> list[str]:
        lines = [
            title,
            "",
            "A contrast has one number for each seed, from runs of that seed, and is tested by Student's t over the seeds, "
            "one-sided at the 5% level. Where two things are claimed to be the same, the number must lie within ± a margin "
            "(two one-sided tests): half a point of accuracy, which the paper's two digits cannot tell apart, or 0.02 nats. "
            "So a contrast is as claimed exactly where its 90% interval lies above 0 or within the margin. A claim needs "
            "all of its contrasts, and one refutes it; so the level of refutation is 5% over their number. The paper has no "
            "tests: which contrasts stand for a claim, and the margins, are our choice.",
            "",
            "The effect size d is the mean over the standard deviation of the seeds' numbers; that of so few seeds comes "
            "out too large. All seeds share one split: the intervals cover chance in training, not the choice of images.",
            "",
            "| | contrast | claimed | mean (90% interval) | d | p | seeds | |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for claim in claims:
            for contrast in claim.contrasts:
                claimed = "above 0" if contrast.margin is None else f"within ±{contrast.margin:g}"
                lines.append(
                    f"| {claim.name} | {contrast.says} | {claimed} | {_with_interval(contrast)} | "
                    f"{_number(contrast.effect_size, 1)} | {_p(contrast.p_value)} | {len(contrast.values)} | "
                    f"{claim.of(contrast)} |"
                )
        return lines

    def networks(self) -> list[str]:
        rows = (
            ("encoder", "Conv2d 1→16, kernel 3; ReLU, max pooling 2, dropout", "16×13×13", "16×26×26"),
            ("", "Conv2d 16→32, kernel 3; ReLU, max pooling 2, dropout", "32×5×5", "32×24×24"),
            ("", "Linear; ReLU, dropout", "n", "n"),
            ("decoder", "Linear; ReLU, dropout", "32×5×5", "32×24×24"),
            ("", "ConvTranspose2d 32→16, kernel 4, stride 2, output padding 1 (without pooling: kernel 3, stride 1); ReLU, "
             "dropout", "16×13×13", "16×26×26"),
            ("", "ConvTranspose2d 16→1, kernel 3, stride 2, output padding 1 (without pooling: stride 1); sigmoid",
             "1×28×28", "1×28×28"),
            ("classifier", "the encoder; Linear n→10", "10", "10"),
        )  # fmt: skip
        return [
            "## The networks",
            "",
            "The paper's text gives the number of layers and kernels, its lost Figure 1 their sizes. The sizes here are "
            "those that other public reports on the same assignment use. With pooling, the last three rows and columns of a "
            "reconstruction are the same in every picture of one decoder, since the transposed convolution's output padding "
            "reaches no input there.",
            "",
            "| | layers | output with pooling | without |",
            "| --- | --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]

    def commands(self) -> list[str]:
        lines = [
            "## Every run by itself",
            "",
            "What `fmcae study run` trains, `fmcae train` trains too, to the same numbers on the same machine with the same "
            f"`--device` and `--threads`, which the head of this page has. For seed {self.seeds[0]}; a classifier needs the "
            "autoencoder that it starts from, in the folder shown.",
            "",
            "| run | seeds | command |",
            "| --- | --- | --- |",
        ]
        shown: set[str] = set()
        for cells in PARTS.values():
            for cell in cells.values():
                task = cell(self.seeds[0], epochs=self.epochs)
                for item in (task.needs, task):
                    if item is not None and item.name not in shown:
                        shown.add(item.name)
                        lines.append(
                            f"| {_without_seed(item)} | {self.count(cell, item)} | `{' '.join(item.command())}` |"
                        )
        return lines

    def count(self, cell: Any, item: Task) -> int:
        """How many seeds have that run."""
        tasks = (cell(seed, epochs=self.epochs) for seed in self.seeds)
        wanted = (task.needs if item.config.stage != task.config.stage else task for task in tasks)
        return sum(self.results.of(task) is not None for task in wanted if task)


def _mean(values: Sequence[float], digits: int = 4) -> str:
    if not values:
        return NOT_RUN
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread} ({len(values)})"


def _with_interval(contrast: Contrast) -> str:
    if not contrast.values:
        return NOT_RUN
    low, high = contrast.interval
    interval = f" ({low:+.4f} to {high:+.4f})" if not math.isnan(low) else ""
    return f"{contrast.mean:+.4f}{interval}"


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _p(value: float) -> str:
    return "" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _listed(items: Iterable[Any]) -> str:
    return ", ".join(map(str, items))


def _title(part: str) -> str:
    return paper.TITLES[part].partition(":")[0]


def _without_seed(task: Task) -> str:
    return task.title.rpartition(", seed")[0]


def _sentence(claim: Claim) -> str:
    """The verdict's reason in plain words."""
    if not all(contrast.values for contrast in claim.contrasts):
        return "Not all of its runs are there."
    if claim.seeds < 2:
        return "There is one seed only, which decides nothing."
    leads = {"not confirmed": "against the claim, ", "undecided": f"undecided with {claim.seeds} seeds, "}
    if claim.verdict != "confirmed":
        leads["confirmed"] = "as claimed, "
    parts = []
    order: tuple[Verdict, ...] = ("not confirmed", "undecided", "confirmed")
    for verdict in order:
        by_subject: dict[str, list[Contrast]] = {}
        for contrast in claim.contrasts:
            if claim.of(contrast) == verdict:
                by_subject.setdefault(contrast.subject, []).append(contrast)
        if by_subject:
            said = (
                f"{subject} is {_and(map(_comparison, contrasts))}{_margin(contrasts[0], verdict)}"
                for subject, contrasts in by_subject.items()
            )
            parts.append(leads.get(verdict, "") + _and(said, ", and "))
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _comparison(contrast: Contrast) -> str:
    digits = 3 if "cross-entropy" in contrast.says else 4
    size = f"{abs(contrast.mean):.{digits}f}"
    if float(size) == 0:
        size = f"less than {10**-digits:.{digits}f}"
    return f"{size} {'higher' if contrast.mean > 0 else 'lower'} {contrast.comparison}"


def _margin(contrast: Contrast, verdict: Verdict) -> str:
    """What the verdict says of the margin, which the contrasts of one subject share."""
    if contrast.margin is None:
        return ""
    where: dict[Verdict, str] = {"confirmed": "within", "not confirmed": "beyond", "undecided": "perhaps beyond"}
    return f", {where[verdict]} the margin of {contrast.margin:g}"


def _and(items: Iterable[str], last_joint: str = " and ") -> str:
    *most, last = items
    return f"{', '.join(most)}{last_joint}{last}" if most else last


def _from_how_few(own: Iterable[Claim]) -> str:
    """The most labels with which pre-training helps, as with all fewer that were tried."""
    by_labels = sorted((claim.labels, claim.verdict) for claim in own if claim.labels)
    helps = [labels for labels, _ in takewhile(lambda pair: pair[1] == "confirmed", by_labels)]
    rest = {
        verdict: [f"{labels:,}" for labels, found in by_labels[len(helps) :] if found == verdict]
        for verdict in ("confirmed", "undecided", "not confirmed")
    }
    lead = f"helps with up to {helps[-1]:,} labels" if helps else f"is not seen to help with {by_labels[0][0]:,} labels"
    says = {"confirmed": "it also helps with", "undecided": "it is undecided with", "not confirmed": "it hurts with"}
    parts = [f"{says[verdict]} {_and(counts)}" for verdict, counts in rest.items() if counts]
    return f"Pre-training {'; '.join([lead, *parts])}."


def _which_fits(best: dict[str, float], fits: dict[str, dict[str, float]]) -> str:
    names = {"table-1": "Table 1", "table-2": "Table 2", "table-3": "Table 3", "all": "all three together"}
    known = [
        f"{names[column]}: {reading} ({fit[column]:.3f})"
        for column in names
        for reading, fit in fits.items()
        if fit[column] == best.get(column)
    ]
    return (
        f"By that measure, the reading that fits best is, for {'; for '.join(known)}."
        if known
        else "Not all were run yet."
    )
