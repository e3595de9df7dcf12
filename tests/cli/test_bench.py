# mypy: disable-error-code="import-untyped"
import io
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest

from fmcae.runtime.timing import GraphTiming

if TYPE_CHECKING:
    from tests.conftest import Cli


QUICK = ("--seconds", "0.02", "--threads", "1")


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """What the comparison does to PyTorch's threads does not reach other tests."""
    if find_spec("torch") is None:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object, **__: Any) -> None:
        raise AssertionError("measured before the options were checked")

    monkeypatch.setattr("fmcae.runtime.timing.time_graph", measure)


def test_every_shipped_graph_is_measured(cli: "Cli") -> None:
    result = cli("bench", *QUICK, "--batch", "3,1,3", "--json")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert (values["schema_version"], values["provider"], values["threads"]) == (1, "cpu", 1)
    assert values["machine"]["onnxruntime"] == onnxruntime.__version__
    assert values["gpu"] is None
    assert [graph["graph"] for graph in values["graphs"]] == ["encoder", "decoder", "classifier"]
    for graph in values["graphs"]:
        assert graph["provider"] == "cpu" and set(graph["nodes"]) == {"CPUExecutionProvider"}
        assert [case["batch_size"] for case in graph["cases"]] == [1, 3]
        for case in graph["cases"]:
            latency = case["latencies"]["onnxruntime-cpu"]
            assert latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"]
            assert latency["images_per_s"] > 0 and latency["runs"] > 0
    assert "classifier, batch 3" in result.stderr and "classifier" not in result.stdout.split("graphs")[0]


@pytest.mark.train
def test_pytorch_is_timed_beside_it_with_the_artefacts_own_weights(cli: "Cli", shipped: Path) -> None:
    values = json.loads(cli("bench", *QUICK, "--batch", "2", "--model", shipped, "--json").stdout)
    assert not any("PyTorch:" in line for line in values["notes"])
    for graph in values["graphs"]:
        (case,) = graph["cases"]
        assert set(case["latencies"]) == {"onnxruntime-cpu", "pytorch-cpu"}
        ratio = case["ratios"]["pytorch-cpu"]
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]


def test_a_table_for_people(cli: "Cli", shipped: Path) -> None:
    result = cli("bench", *QUICK, "--batch", "1,2", "--model", shipped / "classifier.onnx")
    assert result.exit_code == 0
    for text in (
        "classifier",
        "p50 ms",
        "p99 ms",
        "images/s",
        "first run",
        "peak memory",
        "1 thread",
        "session created",
    ):
        assert text in result.stdout, text
    assert "encoder" not in result.stdout and "…" not in result.stdout
    assert f"ONNX Runtime {onnxruntime.__version__} ({onnxruntime.get_device()})" in result.stdout


def test_without_pytorch_it_says_so(cli: "Cli", shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fmcae.cli.bench.find_spec", lambda name: None)
    result = cli("bench", *QUICK, "--batch", "1", "--model", shipped / "encoder.onnx")
    assert "no comparison with PyTorch: it is not installed" in result.stdout
    assert "pytorch-cpu" not in result.stdout


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this is a GPU build")
def test_cuda_that_does_not_run_exits_4_before_any_measurement(cli: "Cli", no_measurement: None) -> None:
    result = cli("bench", "--provider", "cuda")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "the build of ONNX Runtime that is installed has no CUDAExecutionProvider" in result.stderr
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch", "0"), "--batch 0 must be from 1 to 65,536"),
        (("--batch", "1,65537"), "--batch 65537 must be from 1 to 65,536"),
        (("--batch", "1;2"), "--batch '1;2' must be whole numbers with commas between them"),
        (("--batch", ","), "--batch , must be whole numbers"),
        (("--seconds", "0"), "'--seconds': 0.0 is not in the range 0.001<=x<=3600"),
        (("--seconds", "nan"), "--seconds nan must be a number from 0.001 to 3600"),
        (("--threads", "0"), "'--threads': 0 is not in the range 1<=x<=1024"),
        (("--provider", "tpu"), "'--provider': 'tpu' is not one of 'cpu', 'cuda'"),
    ],
)
def test_options_out_of_range_are_named(
    cli: "Cli", no_measurement: None, options: tuple[str, ...], message: str
) -> None:
    result = cli("bench", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_a_missing_model_is_named(cli: "Cli", no_measurement: None, tmp_path: Path) -> None:
    result = cli("bench", "--model", tmp_path / "missing.onnx")
    assert result.exit_code == 1 and "missing.onnx: cannot be read" in result.stderr


@pytest.mark.train
@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_plot_is_an_image_of_every_graph(
    cli: "Cli", shipped: Path, tmp_path: Path, suffix: str, magic: bytes
) -> None:
    path = tmp_path / f"bench.{suffix}"
    result = cli("bench", *QUICK, "--batch", "1,4", "--model", shipped, "--plot", path)
    assert result.exit_code == 0
    content = path.read_bytes()
    assert content.startswith(magic)
    if suffix == "svg":
        assert b"<!-- classifier -->" in content and b"<!-- images per second -->" in content


@pytest.mark.train
def test_a_plot_that_cannot_be_written_is_named_before_the_measurement(
    cli: "Cli", no_measurement: None, tmp_path: Path
) -> None:
    result = cli("bench", "--plot", tmp_path / "bench.bmp")
    assert result.exit_code == 2 and "must end in one of .png, .svg, .pdf" in result.stderr
    result = cli("bench", "--plot", tmp_path / "missing" / "bench.png")
    assert result.exit_code == 2 and "must be a file in a folder that exists" in result.stderr


def test_without_matplotlib_the_plot_is_refused_with_the_command(
    cli: "Cli", no_measurement: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = cli("bench", "--plot", tmp_path / "bench.png")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "matplotlib" in result.stderr and "pip install '.[plot]'" in result.stderr


@pytest.mark.train
def test_all_series_can_be_drawn(tmp_path: Path) -> None:
    """A report that no CUDA and no OpenVINO has made: the drawing needs none."""
    from fmcae.cli.bench_plot import STYLES, draw

    latency = {"p50_ms": 1.0, "p99_ms": 2.0, "images_per_s": 1000.0}
    series = [*STYLES, "onnxruntime-openvino"]
    cases = [{"batch_size": size, "latencies": dict.fromkeys(series, latency)} for size in (1, 64)]
    report = {
        "graphs": [{"graph": "classifier", "cases": cases}],
        "machine": {"cpu": "A CPU", "onnxruntime": "1.30.0", "torch": "2.15.0"},
        "gpu": {"name": "A GPU"},
        "provider": "cuda",
        "threads": 2,
        "notes": ["? too few CPUs were free"],
    }
    draw(report, tmp_path / "cuda.svg")
    content = (tmp_path / "cuda.svg").read_text()
    assert "A GPU" in content and "<!-- too few CPUs were free -->" in content
    assert all(f"<!-- {name} -->" in content for name in series)


@pytest.fixture
def contended_graph() -> GraphTiming:
    """A graph's timing on a busy machine, in which the second batch size had the CPUs for itself."""
    from fmcae.runtime.timing import Case, ColdStart, Latency, Ratio

    def case(size: int, wait: float) -> Case:
        latencies = dict.fromkeys(("onnxruntime-cpu", "pytorch-cpu"), Latency(3, 0.123, 45.6, 7890.0, 1_234_567.0))
        return Case(size, latencies, {"pytorch-cpu": Ratio(685, 546, 1005)}, wait)

    return GraphTiming(
        "classifier", "c.onnx", 4096, "cpu", 2, {}, ColdStart(1, 1, 1, ()), (case(1, 0.48), case(1024, 0.01)), {}
    )


def test_a_change_of_the_batch_size_is_shown_where_it_costs_time(contended_graph: GraphTiming) -> None:
    from dataclasses import replace

    from fmcae.cli.bench_tables import _facts

    assert not any("another batch size" in line for line in _facts(contended_graph))
    cases = tuple(replace(case, after_other_size_ms=12.345) for case in contended_graph.cases)
    (line,) = (line for line in _facts(replace(contended_graph, cases=cases)) if "another batch size" in line)
    assert line.endswith("when CUDA plans the convolutions anew: 1: 12.3 ms, 1,024: 12.3 ms")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_terminal_is_too_narrow_for_a_number_and_busy_cpus_mark_the_ratio(
    contended_graph: GraphTiming, width: int
) -> None:
    from rich.console import Console

    from fmcae.cli.bench_tables import print_table

    output = io.StringIO()
    console = Console(width=width, file=output)
    print_table(console, contended_graph)
    text = " ".join(output.getvalue().split())
    assert "…" not in text and text.count("0.123 45.6 7,890 1,234,567") == 4
    assert text.count("685 (546–1,005)") == 2 and text.count("685 (546–1,005) ?") == 1


def test_busy_cpus_are_a_note(contended_graph: GraphTiming, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from fmcae.cli.bench import _waiting_notes

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    (note,) = _waiting_notes([contended_graph])
    assert note.startswith("? too few CPUs were free") and "48% of their time" in note and "OMP_WAIT_POLICY" in note
    cases = tuple(replace(case, ratios={}) for case in contended_graph.cases)
    (note,) = _waiting_notes([replace(contended_graph, cases=cases)])
    assert note.startswith("too few CPUs were free:") and "PyTorch" not in note
    assert _waiting_notes([replace(contended_graph, cases=contended_graph.cases[1:])]) == []
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert "OMP_WAIT_POLICY=PASSIVE is set" in _waiting_notes([contended_graph])[0]


@pytest.mark.parametrize(
    ("value", "text"), [(0.04132, "0.041"), (1.0714, "1.07"), (25.84, "25.8"), (247.3, "247"), (12345.6, "12,346")]
)
def test_times_have_three_digits(value: float, text: str) -> None:
    from fmcae.cli.bench_tables import digits

    assert digits(value) == text
    assert digits(0.951, 2) == "0.95" and digits(15.6, 2) == "16"
