"""The folder of an export: what may be overwritten, and what is written beside the artefacts."""

from collections.abc import Collection, Mapping
from pathlib import Path

from fmcae.card import Kind
from fmcae.errors import ArtefactError, GateError, UsageError
from fmcae.export.model_card import model_card
from fmcae.files import is_leftover, replace_folder
from fmcae.metrics import ReliabilityBin
from fmcae.runtime.charts import reliability_png
from fmcae.runtime.graph_rules import check_graph
from fmcae.runtime.model import Artefact, file_name
from fmcae.runtime.verify import verify
from fmcae.train.run import CONFIG, METRICS, Run

MODEL_CARD = "MODEL_CARD.md"
RELIABILITY = "reliability.png"  # which the model card shows
PREDICT = "predict.py"
SAMPLE_CODE = Path(__file__).with_name("sample_code.py")


def check_folder(folder: Path, kinds: Collection[Kind]) -> None:
    """Check that ``folder`` is new, empty, or holds an earlier export of the same kinds.

    Graphs of two runs do not fit together, so an earlier export is replaced by one that has all of its graphs.

    Raises:
        UsageError: the folder holds something else, or is a file.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"out (={folder}) must be a folder; it is a file")
    graphs = {file_name(kind) for kind in kinds}
    present = {path.name for path in folder.iterdir() if not is_leftover(path)}
    # A run that has just begun has a configuration and no graph.
    foreign = sorted(
        present - graphs - {MODEL_CARD, RELIABILITY, PREDICT, CONFIG, METRICS} if present & graphs else present
    )
    if foreign:
        rule = "must be new, empty or hold an earlier export of the same kinds"
        raise UsageError(f"out (={folder}) {rule}; it holds {foreign[0]}")


def write_export(
    run: Run, artefacts: Mapping[Kind, Artefact], folder: Path, provider: str = "cpu", sample_code: bool = False
) -> list[Path]:
    """Verify the artefacts, then write them with a model card, its diagram and the run's configuration and metrics.

    Args:
        sample_code: write ``predict.py`` too, a program that runs ``picture.onnx``, which must be there, without fmcae.
            Without it, one that an earlier export left stays as it is.

    Returns:
        The files written, the artefacts first.

    Raises:
        GateError: an artefact does not reproduce its golden vectors, or would be refused when it is read; nothing is
            written.
        OSError: the folder cannot be written.
    """
    for kind, artefact in artefacts.items():
        try:
            check_graph(artefact.content, artefact.card.kind, artefact.card.x_shape)
        except ArtefactError as error:  # of a network that was changed, whose files would be refused
            raise GateError(f"{artefact.path.name}: {error}; nothing was written") from error
        if failure := verify(artefact, "cpu" if kind == "picture" else provider).failure:
            raise GateError(f"{artefact.path.name}: {failure}; nothing was written")
    files: dict[str, bytes | str] = {artefact.path.name: artefact.content for artefact in artefacts.values()}
    files[MODEL_CARD] = model_card(artefacts)
    if "classifier" in artefacts:
        calibration = artefacts["classifier"].card.calibration
        groups = [ReliabilityBin(**group) for group in calibration["reliability"]]
        files[RELIABILITY] = reliability_png(groups, calibration["ece_after"])
    if sample_code:
        files[PREDICT] = SAMPLE_CODE.read_text(encoding="utf-8")
    elif (folder / PREDICT).is_file():  # which somebody may have changed
        files[PREDICT] = (folder / PREDICT).read_bytes()
    files |= {name: (run.folder / name).read_bytes() for name in (CONFIG, METRICS)}
    replace_folder(folder, files)
    return [folder / name for name in files]
