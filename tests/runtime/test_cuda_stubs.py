"""ONNX Runtime's real CUDA build over stubs of CUDA's libraries, on a machine without a GPU.

Sessions, the nodes' placement, options, copies and errors are real; kernels compute nothing, and every output is zero.
The build is installed beside, once; where it or the tools that make the stubs cannot be had, the tests are skipped.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from fmcae.runtime.model import read_artefact
from fmcae.runtime.session import INSTALL_CUDA, INSTALL_CUDA_12, INSTALL_DRIVER

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the stubs are made for Linux on x86-64"
)
REPOSITORY = Path(__file__).parents[2]
GPU_BUILD = "onnxruntime-gpu==1.31.*"  # for CUDA 13, of which the stubs are
SAMPLE = "tests/data/fashion-mnist-sample"
CUDNN = "libcudnn.so.9"  # which is not linked
MORE_MEMORY = "end other programs that take the GPU's memory; nvidia-smi names them"

OnCuda: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def gpu_build(environment: Callable[..., Path]) -> Path:
    """The Python of an environment that has the CUDA build and none of NVIDIA's packages."""
    missing = [tool for tool in ("gcc", "nm", "readelf") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    project = (REPOSITORY / "pyproject.toml").read_text()
    declared = project.split("\ndependencies = [")[1].split("\n]")[0]
    others = [name for name in re.findall(r'"(.+?)"', declared) if not name.startswith("onnxruntime")]
    return environment("onnxruntime-gpu", GPU_BUILD, *others)


@pytest.fixture(scope="module")
def stubs(gpu_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all libraries that the build needs, which are one under many names."""
    (build,) = gpu_build.parents[1].glob("lib/*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so")
    folder = tmp_path_factory.mktemp("stubs")
    symbols = re.findall(r" U (_*cu\w+)(?:@(\S+))?", output_of("nm", "-D", "--undefined-only", build))
    looked_up = re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", build.read_bytes())  # when ONNX Runtime starts
    names = {"cuInit", *(name for name, _ in symbols), *(name.decode() for name in looked_up)}
    returns_0 = [f"__attribute__((weak)) long {name}() {{ return 0; }}\n" for name in sorted(names)]
    (folder / "others.c").write_text("".join(returns_0))
    versions = {version: "; ".join(name for name, of in symbols if of == version) for _, version in symbols if version}
    (folder / "versions").write_text("".join(f"{version} {{ {names}; }};\n" for version, names in versions.items()))
    sources = [Path(__file__).with_name("cuda_stubs.c"), folder / "others.c"]
    script = f"-Wl,--version-script={folder / 'versions'}"
    output_of("gcc", "-shared", "-fPIC", "-w", "-o", folder / "stubs.so", *sources, script)
    for library in (*re.findall(r"\[(libcu.*)\]", output_of("readelf", "-d", build)), CUDNN):
        (folder / library).symlink_to(folder / "stubs.so")
    return folder


def output_of(*command: object) -> str:
    return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture
def on_cuda(gpu_build: Path, stubs: Path, tmp_path: Path) -> OnCuda:
    """Run Python over the stubs: ``on_cuda("-m", "fmcae", "bench", without="libcuda.so.1", memory=0)``.

    ``without`` is a library that is left out; other keywords are the settings that cuda_stubs.c lists.
    """

    def run(*arguments: object, without: str = "", **settings: object) -> "subprocess.CompletedProcess[str]":
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        for path in stubs.glob("lib*"):
            if path.name != without:
                (folder / path.name).symlink_to(path)
        variables = {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        variables |= {f"STUB_{name.upper()}": str(value) for name, value in settings.items()}

        def python(*arguments: object) -> "subprocess.CompletedProcess[str]":
            command = [str(gpu_build), *map(str, arguments)]
            return subprocess.run(command, env=os.environ | variables, cwd=REPOSITORY, capture_output=True, text=True)

        if without and python("-c", f"import ctypes; ctypes.CDLL({without!r})").returncode == 0:
            pytest.skip(f"this machine has a {without} of its own")
        return python(*arguments)

    return run


def test_doctor_bench_and_every_other_promise_about_cuda_can_be_rehearsed(on_cuda: OnCuda, tmp_path: Path) -> None:
    result = on_cuda("bench/cuda.py", "--device", "stubs", "--out", tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    said = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    assert (said["summary"]["device"], said["summary"]["passed"], said["summary"]["failed"]) == ("stubs", 7, 0)

    probes = {probe["provider"]: probe for probe in said["doctor"]["probes"]}
    assert list(said["doctor"]["onnxruntime_distributions"]) == ["onnxruntime-gpu"]
    assert said["doctor"]["problems"] == [] and probes["cpu"]["works"]
    assert "CUDAExecutionProvider" in probes["cuda"]["listed"]
    # a session was created, read back and run, and nobody takes its zeros for an output
    assert probes["cuda"]["reason"] == "it computes [[0.0, 0.0]] where [[2.75, 1.6875]] is right"

    series = {"onnxruntime-cuda", "onnxruntime-cuda-resident", "onnxruntime-cpu"}
    assert said["bench"]["provider"] == "cuda" and len(said["bench"]["graphs"]) == 3
    for graph in said["bench"]["graphs"]:
        assert graph["provider"] == "cuda" and list(graph["nodes"]) == ["CUDAExecutionProvider"]
        assert {"Gemm", "Relu"} < set(graph["nodes"]["CUDAExecutionProvider"])
        assert set(graph["cuda_beats_cpu_from"]) == series - {"onnxruntime-cpu"}
        for case in graph["cases"]:
            assert set(case["latencies"]) == series and case["after_other_size_ms"] > 0

    graphs = {name: facts for name, facts in said["sessions"].items() if name.endswith(".onnx")}
    assert "has no kernel for QLinearConv" in graphs.pop("exports/fashion-mnist-int8/classifier.onnx")["refused"]
    for facts in graphs.values():
        assert facts["providers"][0] == "CUDAExecutionProvider" and list(facts["nodes"]) == ["CUDAExecutionProvider"]
        assert facts["golden_difference_on_cpu"] < 1e-4 < 0.5 < facts["golden_difference"]


def test_cuda_gives_its_own_numbers_and_never_the_cpus(on_cuda: OnCuda) -> None:
    result = on_cuda("-m", "fmcae", "verify", "fashion-mnist-paper", "--provider", "cuda", "--json")
    assert result.returncode == 5 and result.stderr.startswith("error: 3 of 3 files failed; the first: ")
    for found in json.loads(result.stdout)["results"]:
        largest = np.abs(read_artefact(found["file"]).golden.outputs).max()
        assert (found["provider"], found["passed"]) == ("cuda", False)
        assert found["max_abs"] == pytest.approx(largest)
    result = on_cuda("-m", "fmcae", "predict", "exports/samples/bag.png", "--provider", "cuda", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    (prediction,) = json.loads(result.stdout)["predictions"]
    assert (prediction["provider"], prediction["probabilities"]) == ("cuda", [pytest.approx(0.1)] * 10)


def test_int8_is_refused_with_its_operators(on_cuda: OnCuda) -> None:
    path = "exports/fashion-mnist-int8/classifier.onnx"
    result = on_cuda("-m", "fmcae", "bench", "--model", path, "--provider", "cuda")
    said = f"error: {path}: --provider cuda must be cpu, which int8 is made for\n"
    assert (result.returncode, result.stdout, result.stderr) == (4, "", said)
    # what the card says is not all: the session itself finds out
    result = on_cuda("-c", f"from fmcae.runtime.session import Session; Session({path!r}, provider='cuda')")
    operators = "QLinearConv, NhwcMaxPool, MatMulIntegerToFloat"
    reason = f"does not run on cuda alone: CUDA has no kernel for {operators}, which would run on the CPU"
    assert result.stderr.splitlines()[-1] == f"fmcae.errors.ProviderError: {path} {reason}"


@pytest.mark.parametrize(
    ("settings", "verb", "reason", "remedy"),
    [
        ({"without": "libcuda.so.1"}, ["bench"], "no NVIDIA driver is found", INSTALL_DRIVER),
        (
            {"without": CUDNN},
            ["predict", "exports/samples/bag.png"],
            rf"libraries are missing \({CUDNN}: cannot open shared object file: No such file or directory\)",
            INSTALL_CUDA,
        ),
        (
            {"without": "libcublasLt.so.13"},
            ["verify"],
            r"libraries are missing \(libcublasLt\.so\.13: cannot open shared object file: No such file or directory\)",
            INSTALL_CUDA,
        ),
        (
            {"set_device": 35},
            ["bench", "--json"],
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
            INSTALL_CUDA_12,
        ),
        (
            {"memory": 0},
            ["evaluate", SAMPLE],
            r"out of memory, there is no room for [\d,]+ bytes",
            "nvidia-smi names them",
        ),
        (
            {"launch": 209},
            ["verify"],
            "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device",
            INSTALL_CUDA_12,
        ),
        ({"init": 803}, ["bench"], r"the NVIDIA driver does not start \(CUDA error 803\)", "of two versions"),
    ],
    ids=["no driver", "no cuDNN", "no cuBLAS", "an old driver", "no memory", "an old GPU", "a driver of two versions"],
)
def test_what_keeps_cuda_from_starting_is_one_line_with_its_remedy(
    on_cuda: OnCuda, settings: dict[str, object], verb: Sequence[str], reason: str, remedy: str
) -> None:
    result = on_cuda("-m", "fmcae", *verb, "--provider", "cuda", **settings)
    assert (result.returncode, result.stdout) == (4, "")
    said = rf"error: (\S+\.onnx: )?CUDA cannot run here: {reason}; to get it, .*{re.escape(remedy)}\n"
    assert re.fullmatch(said, result.stderr)


def test_cudnn_without_what_it_opens_is_missing(on_cuda: OnCuda, stubs: Path, tmp_path: Path) -> None:
    """NVIDIA's own ends the process where its first call finds none of the libraries to which it is the door."""
    (tmp_path / "door.c").write_text('const char *opens = "libcudnn_graph.so";')
    door = tmp_path / "door" / CUDNN
    door.parent.mkdir()
    output_of("gcc", "-shared", "-fPIC", f"-Wl,-soname,{CUDNN}", "-o", door, tmp_path / "door.c", stubs / "stubs.so")
    program = f"""
import ctypes
ctypes.CDLL({str(door)!r})  # as ONNX Runtime loads what pip installed
import fmcae
fmcae.load(provider="cuda").predict("exports/samples/bag.png")
"""
    result = on_cuda("-c", program, without=CUDNN)
    assert result.stderr.splitlines()[-1].startswith(
        "fmcae.errors.ProviderError: CUDA cannot run here: libraries are missing (libcudnn_graph.so.9: cannot open shared"
    )


def test_memory_that_ends_in_a_run_is_one_line(on_cuda: OnCuda) -> None:
    result = on_cuda("-m", "fmcae", "bench", "--provider", "cuda", "--batch", "1024", memory=4_000_000)
    said = r"error: encoder\.onnx: ONNX Runtime failed on cuda: out of memory, there is no room for [\d,]+ bytes"
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(rf"encoder, cold start\n{said}; {MORE_MEMORY}\n", result.stderr)
    result = on_cuda("-m", "fmcae", "verify", "fashion-mnist-large", "--provider", "cuda", memory=5_000_000)
    said = r"error: .*classifier\.onnx: ONNX Runtime failed on cuda: out of memory, there is no room for [\d,]+ bytes"
    assert (result.returncode, result.stdout) == (1, "") and re.fullmatch(f"{said}; {MORE_MEMORY}\n", result.stderr)


def test_float32_leaves_tensor_cores_out_and_half_precision_does_not(on_cuda: OnCuda) -> None:
    program = """
from fmcae.runtime.doctor import PROBE_MODEL
from fmcae.runtime.session import Session
half = bytes([58, 14, 42, 12, 16, 10, 66, 4]) + b"half" + bytes([74, 2, 0, 0])  # a scalar beside the other weights
for model in (PROBE_MODEL, PROBE_MODEL + half):
    options = Session(model, provider="cuda").raw.get_provider_options()["CUDAExecutionProvider"]
    print(options["use_tf32"], options["cudnn_conv_algo_search"])
"""
    result = on_cuda("-c", program)
    assert (result.stdout, result.stderr) == ("0 HEURISTIC\n1 HEURISTIC\n", "")


@pytest.mark.parametrize(("tensor_cores", "plans"), [(0, 2), (1, 4)], ids=["plain plans", "none without tensor cores"])
def test_ten_pictures_run_as_sixteen_and_plans_in_vain_print_nothing(
    on_cuda: OnCuda, tmp_path: Path, tensor_cores: int, plans: int
) -> None:
    log = tmp_path / "log"
    command = ("-m", "fmcae", "predict", "exports/samples", "--provider", "cuda")
    result = on_cuda(*command, log=log, tensor_cores=tensor_cores)
    assert (result.returncode, result.stdout.count("\n"), result.stderr) == (0, 10, "")
    happened = log.read_text().splitlines()
    # ONNX Runtime plans each of the two convolutions once more where the first plan must not be taken
    assert happened[-plans - 1 :] == [f"copy {16 * 28 * 28 * 4}", *["plan"] * plans]


def test_batches_of_nearly_one_size_share_their_plans(on_cuda: OnCuda, tmp_path: Path) -> None:
    program = """
import numpy as np, fmcae
model = fmcae.load(provider="cuda")
for size in (8, 5, 7, 6):
    assert model.classify(np.zeros((size, 1, 28, 28), np.float32)).shape == (size, 10)
"""
    result = on_cuda("-c", program, log=tmp_path / "log")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    copy = f"copy {8 * 28 * 28 * 4}"
    assert (tmp_path / "log").read_text().splitlines()[-6:] == [copy, "plan", "plan", copy, copy, copy]
