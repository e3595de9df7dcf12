# mypy: disable-error-code="import-untyped"
import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import fmcae
from fmcae.errors import ArtefactError, FmcaeError, ProviderError, UsageError
from fmcae.precision import Provider
from fmcae.runtime import session as session_module
from fmcae.runtime.doctor import PROBE_MODEL, PROBE_X, PROBE_Y
from fmcae.runtime.machine import available_cpus
from fmcae.runtime.model import shipped_folder
from fmcae.runtime.session import (
    INSTALL_CUDA,
    INSTALL_CUDA_12,
    ORT_NAMES,
    PROVIDER_FACTS,
    Session,
    import_onnxruntime,
    short_reason,
)

X = np.array(PROBE_X, np.float32)
# What onnxruntime-gpu 1.31 says, to the letter but for the machine's name.
SIGNATURE = (
    "std::conditional_t<THRW, void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, "
    "SUCCTYPE, const char*, const char*, int) [with ERRTYPE = {type}; bool THRW = true; SUCCTYPE = {type}; "
    "std::conditional_t<THRW, void, common::Status> = void] "
)
CALLS = "".join(
    f"/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:{line} {SIGNATURE}" for line in (154, 146)
)
ARENA = (
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, "
    "bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size {size}\n"
)
OLD_DRIVER = CALLS.format(type="cudaError") + (
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=0 ; hostname=host ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=355 ; "
    "expr=cudaSetDevice(info_.device_id); \n\n"
)
NO_CUBLAS = (
    "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: "
    + CALLS.format(type="cublasStatus_t")
    + "CUBLAS failure 1: Unknown cuBLAS error status ; GPU=0 ; hostname=host ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=245 ; "
    "expr=cublasCreate(&cublas_handle_); \n\n"
)
OLD_GPU, OLD_DRIVER_FOR_PTX, NO_MEMORY_FOR_CUBLAS, NO_MEMORY_FOR_CUDNN = (  # as the same build puts other failures
    OLD_DRIVER.replace("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version", failure)
    for failure in (
        "CUDA failure 209: no kernel image is available for execution on the device",
        "CUDA failure 222: the provided PTX was compiled with an unsupported toolchain.",
        "CUBLAS failure 3: Unknown cuBLAS error status",
        "CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED",
    )
)
NO_CUDNN = (
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Non-zero status code returned while running Conv node. Name:'node_conv2d' "
    "Status Message: /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_kernel.h:296 static cudnnContext* "
    "onnxruntime::cuda::CudaKernel::RequireCudnnHandle(cudnnHandle_t) [ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : cuDNN is "
    "unavailable or disabled for CUDA Execution Provider: dlopen failed for libcudnn.so: libcudnn.so: cannot open shared "
    "object file: No such file or directory\n"
)
NO_MEMORY = "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: " + ARENA.format(size=5120)
NO_MEMORY_LATER = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Name:'node_conv2d' "
    "Status Message: " + ARENA.format(size=1105920000)
)
OLD_GPU_LATER = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Relu node. Name:'node_relu' "
    "Status Message: CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device"
)
NO_BATCH = (  # of onnxruntime-openvino 1.24.1
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running OpenVINO-EP-subgraph_1 node. "
    "Name:'OpenVINOExecutionProvider_OpenVINO-EP-subgraph_1_0' Status Message: /onnxruntime/onnxruntime/core/providers/"
    "openvino/ov_interface.cc:28 auto onnxruntime::openvino_ep::OvExceptionBoundary(Func&&, std::format_string<Args ...>&&, "
    "Args&& ...) [with bool typed = false; Func = OVInferRequest::Infer()::<lambda()>; Args = {}; std::format_string<Args "
    "...> = std::basic_format_string<char>] [OpenVINO-EP] In Error Couldn't start Inference: Exception from src/inference/"
    "src/cpp/infer_request.cpp:224:\nException from src/plugins/intel_cpu/src/node.cpp:792:\nBatch size is zero.\n\n\n\n"
)


def part(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field; behind a message's bytes it is added to the message or merged into it."""
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize("name", [None, "model.onnx", "\udcff.onnx"])  # the last is no valid UTF-8
def test_a_model_runs_from_bytes_and_from_a_file(tmp_path: Path, name: str | None) -> None:
    path = tmp_path / (name or "unused.onnx")
    path.write_bytes(PROBE_MODEL)
    session = Session(path if name else PROBE_MODEL, threads=3)
    y = session.run(np.repeat(X, 2, axis=0))
    assert y.dtype == np.float32 and y.tolist() == PROBE_Y * 2
    assert (session.provider, session.threads, session.input_name, session.output_name) == ("cpu", 3, "x", "y")


def test_threads_reach_onnx_runtime() -> None:
    options = Session(PROBE_MODEL, threads=2).raw.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert Session(PROBE_MODEL).threads == available_cpus()


def test_threads_sleep_between_runs() -> None:
    model = fmcae.load(threads=4)
    model.classify(np.zeros((64, 1, 28, 28), np.float32))
    began = time.process_time()
    time.sleep(0.05)
    assert time.process_time() - began < 0.02


@pytest.mark.parametrize(
    ("version", "key", "value"),
    [
        ("1.19.2", "allow_spinning", "0"),
        ("1.25.1", "allow_spinning", "0"),
        ("1.26.0", "spin_duration_us", "100"),
        ("2.0.0", "spin_duration_us", "100"),
    ],
)
def test_threads_of_an_onnx_runtime_that_would_spin_for_ever_do_not_spin(
    monkeypatch: pytest.MonkeyPatch, version: str, key: str, value: str
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    options = Session(PROBE_MODEL).raw.get_session_options()
    assert options.get_session_config_entry(f"session.intra_op.{key}") == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, r"threads \(=0\) must be an integer from 1 to 1,024"),
        ({"threads": 1025}, r"threads \(=1025\) must be an integer from 1 to 1,024"),
        ({"threads": "2"}, r"threads \(=2\) must be an integer"),
        ({"threads": True}, r"threads \(=True\) must be an integer"),
        ({"provider": "tpu"}, r"provider \(=tpu\) must be one of cpu, cuda"),
        ({"provider": "CUDA"}, r"provider \(=CUDA\) must be one of cpu, cuda"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Session(PROBE_MODEL, **options)


def test_files_that_cannot_be_run_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("hello")
    with pytest.raises(
        ArtefactError, match=r"text\.onnx is no ONNX model that runs here: .*[Pp]rotobuf parsing failed"
    ):
        Session(text)
    with pytest.raises(ArtefactError, match=r"missing\.onnx: No such file"):
        Session(tmp_path / "missing.onnx")
    with pytest.raises(ArtefactError, match=r"Is a directory|Permission denied"):
        Session(tmp_path)
    with pytest.raises(ArtefactError, match="the model of 0 bytes is no ONNX model"):
        Session(b"")
    two_outputs = PROBE_MODEL + part(7, part(12, part(1, b"f") + part(2, part(1, b"\x08\x01"))))
    with pytest.raises(ArtefactError, match="must have one input and one output, not 1 and 2"):
        Session(two_outputs)
    assert capfd.readouterr() == ("", ""), "ONNX Runtime's own lines must not reach the user"


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (X[0], r"\(1, 3, 3\) float32"),
        (X[:, :, :2], r"\(1, 1, 2, 3\) float32"),
        (X.astype(np.float64), r"\(1, 1, 3, 3\) float64"),
        ([[1.0]], "list"),
        (None, "NoneType"),
    ],
)
def test_inputs_that_do_not_fit_are_named(x: Any, found: str) -> None:
    with pytest.raises(UsageError, match=r"x must be an array \(N, 1, 3, 3\) float32, not " + found):
        Session(PROBE_MODEL).run(x)


def test_other_failures_of_a_run_keep_their_reason() -> None:
    session = Session(PROBE_MODEL)

    def fail(*_: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : out of device memory")

    session._run = fail
    with pytest.raises(FmcaeError, match="ONNX Runtime failed on cpu: out of device memory"):
        session.run(X)


# CUDA: what a machine without it says, and what is asked of one with it; test_cuda_stubs.py has the real build


NO_FALLBACK = "session.disable_cpu_ep_fallback"


class FakeOrt(SimpleNamespace):
    """A GPU build of onnxruntime on a machine that has none: its sessions say CUDA and run on the CPU.

    Attributes:
        starts: whether CUDA starts.
        lacks: the operators that CUDA has no kernel for.
        error: what creating a session on CUDA raises.
        tells: whether this version tells which nodes run where.
    """

    def __init__(
        self, starts: bool = True, lacks: tuple[str, ...] = (), error: str | None = None, tells: bool = True
    ) -> None:
        super().__init__(
            SessionOptions=onnxruntime.SessionOptions,
            get_available_providers=lambda: list(ORT_NAMES.values()),
            preload_dlls=lambda: print("Failed to load libcublas.so"),
            __file__="nowhere/__init__.py",  # a GPU build has a library there that misses others
            __version__=onnxruntime.__version__,
            asked=[],
            severities=[],
        )
        self.starts, self.lacks, self.error, self.tells = starts, lacks, error, tells

    def set_default_logger_severity(self, severity: int) -> None:
        self.severities.append(severity)
        onnxruntime.set_default_logger_severity(severity)

    def InferenceSession(self, model: bytes | str, options: Any, providers: list[Any], enable_fallback: int) -> Any:
        self.asked.append((providers, enable_fallback))
        on_cuda = providers != [ORT_NAMES["cpu"]]  # or on another provider
        name = providers[0][0]
        if on_cuda and self.error:
            raise RuntimeError(self.error)
        if on_cuda and options.get_session_config_entry(NO_FALLBACK) == "1":
            if self.lacks or not self.starts:
                raise RuntimeError(
                    "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default "
                    "CPU EP, but fallback to CPU EP has been explicitly disabled by the user."
                )
            options.add_session_config_entry(NO_FALLBACK, "0")
        session = onnxruntime.InferenceSession(model, options, providers=[ORT_NAMES["cpu"]])
        if on_cuda:
            session.get_providers = lambda: [name] * self.starts + [ORT_NAMES["cpu"]]
            session.get_provider_graph_assignment_info = self._assignment if self.tells else list
        return session

    def _assignment(self) -> list[SimpleNamespace]:
        nodes = [SimpleNamespace(op_type=operator) for operator in self.lacks]
        on_cpu = SimpleNamespace(ep_name=ORT_NAMES["cpu"], get_nodes=lambda: nodes)
        on_cuda = SimpleNamespace(ep_name=ORT_NAMES["cuda"], get_nodes=lambda: [SimpleNamespace(op_type="Relu")])
        return [on_cuda, on_cpu]


@pytest.fixture
def fake_ort(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeOrt]:
    def install(driver: str | None = None, **facts: Any) -> FakeOrt:
        ort = FakeOrt(**facts)
        monkeypatch.setattr(session_module, "import_onnxruntime", lambda: ort)
        monkeypatch.setattr(session_module, "driver_obstacle", lambda: driver)
        monkeypatch.setattr(session_module, "_cudnn_obstacle", lambda: None)
        return ort

    return install


def test_cuda_runs_alone_in_full_float32_and_is_read_back(
    fake_ort: Callable[..., FakeOrt], capfd: pytest.CaptureFixture[str]
) -> None:
    ort = fake_ort()
    session = Session(PROBE_MODEL, provider="cuda")
    assert session.provider == "cuda"
    (([(name, options)], enable_fallback),) = ort.asked
    assert (name, options["use_tf32"], enable_fallback) == (ORT_NAMES["cuda"], "0", 0)
    assert ort.severities == [4], "what CUDA reports while its sessions run must not reach the user"
    assert capfd.readouterr() == ("", ""), "what preload_dlls prints must not reach the user"


def test_half_precision_may_use_tensor_cores(fake_ort: Callable[..., FakeOrt], tmp_path: Path) -> None:
    half = b"\x10\x0a" + part(8, b"half") + part(9, b"\0\0")  # a scalar
    path = tmp_path / "half.onnx"
    path.write_bytes(PROBE_MODEL + part(7, part(5, half)))
    for model in (path, path.read_bytes()):
        ort = fake_ort()
        Session(model, provider="cuda")
        (([(_, options)], _),) = ort.asked
        assert options["use_tf32"] == "1"


@pytest.mark.parametrize(
    ("provider", "options"),
    [
        ("openvino", {"device_type": "CPU", "precision": "FP32", "num_of_threads": "3"}),
        ("tensorrt", {}),
        ("dml", {}),
        ("coreml", {"ModelFormat": "MLProgram"}),
    ],
)
def test_other_providers_go_through_the_same_door(
    fake_ort: Callable[..., FakeOrt], provider: Provider, options: dict[str, str]
) -> None:
    ort = fake_ort()
    session = Session(PROBE_MODEL, provider=provider, threads=3)
    assert session.provider == provider and session.run(X).tolist() == PROBE_Y
    assert ort.asked == [([(ORT_NAMES[provider], options)], 0)]
    title = PROVIDER_FACTS[provider].title
    fake_ort(lacks=("QLinearConv",))
    with pytest.raises(ProviderError, match=f"does not run on {provider} alone: {title} has no kernel for QLinearConv"):
        Session(PROBE_MODEL, provider=provider)
    fake_ort(starts=False)
    with pytest.raises(ProviderError, match=f"{title} cannot run here: ONNX Runtime could not start it; to get it, "):
        Session(PROBE_MODEL, provider=provider)
    fake_ort().get_available_providers = lambda: [ORT_NAMES["cpu"]]
    with pytest.raises(ProviderError, match=f"installed has no {ORT_NAMES[provider]}; to get it, .*pip install"):
        Session(PROBE_MODEL, provider=provider)


def test_runs_on_directml_wait_for_each_other(fake_ort: Callable[..., FakeOrt]) -> None:
    fake_ort()
    names = [Session(PROBE_MODEL, provider=provider)._run.__qualname__ for provider in ("coreml", "dml")]
    assert [name.startswith("_one_at_a_time") for name in names] == [False, True]
    running = most = 0

    def run() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1

    one_at_a_time = session_module._one_at_a_time(run)
    with ThreadPoolExecutor(4) as pool:
        for finished in [pool.submit(one_at_a_time) for _ in range(4)]:
            finished.result()
    assert most == 1


@pytest.mark.parametrize(
    ("tells", "operators"), [(True, "QLinearConv, NhwcMaxPool"), (False, "some of its nodes")], ids=["told", "not told"]
)
def test_a_graph_that_would_run_on_the_cpu_in_part_is_refused(
    fake_ort: Callable[..., FakeOrt], tells: bool, operators: str, tmp_path: Path
) -> None:
    path = tmp_path / "probe.onnx"
    path.write_bytes(PROBE_MODEL)
    fake_ort(lacks=("QLinearConv", "NhwcMaxPool", "QLinearConv"), tells=tells)
    with pytest.raises(ProviderError, match="does not run on cuda alone") as caught:
        Session(path, provider="cuda")
    assert str(caught.value).startswith(str(path))
    assert f"CUDA has no kernel for {operators}, which would run on the CPU" in str(caught.value)


def test_a_cuda_that_does_not_start_is_not_blamed_on_the_graph(fake_ort: Callable[..., FakeOrt]) -> None:
    fake_ort(starts=False)
    with pytest.raises(ProviderError, match="CUDA cannot run here: ONNX Runtime could not start it; to get it"):
        Session(PROBE_MODEL, provider="cuda")


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (OLD_DRIVER, "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version", INSTALL_CUDA_12),
        (NO_MEMORY, "out of memory, there is no room for 5,120 bytes", "nvidia-smi names them"),
        (NO_CUBLAS, "CUBLAS failure 1: Unknown cuBLAS error status", INSTALL_CUDA),
        (
            OLD_GPU,
            "CUDA failure 209: no kernel image is available for execution on the device",
            f"; to get it, on a GPU that is too old for CUDA 13, run  {INSTALL_CUDA_12}",
        ),
        (
            OLD_DRIVER_FOR_PTX,
            "CUDA failure 222: the provided PTX was compiled with an unsupported toolchain.",
            INSTALL_CUDA_12,
        ),
        (NO_MEMORY_FOR_CUBLAS, "CUBLAS failure 3: Unknown cuBLAS error status", "nvidia-smi names them"),
        (NO_MEMORY_FOR_CUDNN, "CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED", "nvidia-smi names them"),
    ],
    ids=["an old driver", "no memory", "cuBLAS", "an old GPU", "PTX", "cuBLAS' memory", "cuDNN's memory"],
)
def test_a_session_that_cuda_refuses_is_an_error_with_its_reason_and_remedy(
    fake_ort: Callable[..., FakeOrt], error: str, reason: str, remedy: str
) -> None:
    fake_ort(error=error)
    with pytest.raises(ProviderError) as caught:
        Session(PROBE_MODEL, provider="cuda")
    assert str(caught.value).startswith(f"CUDA cannot run here: {reason}; to get it, ")
    assert str(caught.value).endswith(remedy)
    with pytest.raises(ArtefactError, match="the model of 5 bytes is no ONNX model"):
        Session(b"hello", provider="cuda")
    with pytest.raises(ArtefactError, match="missing: No such file"):
        Session("missing", provider="cuda")


def test_without_a_driver_the_driver_is_asked_for(fake_ort: Callable[..., FakeOrt]) -> None:
    fake_ort(driver="no NVIDIA driver is found")
    with pytest.raises(ProviderError, match="no NVIDIA driver is found; to get it, install NVIDIA's driver") as caught:
        Session(PROBE_MODEL, provider="cuda")
    assert caught.value.exit_code == 4 and "pip" not in str(caught.value)


def test_the_cpu_build_names_the_command_for_the_other(fake_ort: Callable[..., FakeOrt]) -> None:
    ort = fake_ort(driver="the NVIDIA driver finds no GPU")
    ort.get_available_providers = lambda: [ORT_NAMES["cpu"]]
    with pytest.raises(ProviderError) as caught:
        Session(PROBE_MODEL, provider="cuda")
    assert "installed has no CUDAExecutionProvider, and the NVIDIA driver finds no GPU; to get it" in str(caught.value)
    assert INSTALL_CUDA in str(caught.value)


@pytest.mark.parametrize(
    ("message", "reason", "remedy"),
    [
        ("libcublasLt.so.13: cannot open shared object file: No such file or directory", "are missing", INSTALL_CUDA),
        ("libonnxruntime_providers_cuda.so: undefined symbol: cuTensorMapEncodeTiled", "do not load", INSTALL_CUDA_12),
    ],
    ids=["missing", "an old driver"],
)
def test_a_library_that_does_not_load_is_named_by_the_loader(
    fake_ort: Callable[..., FakeOrt],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    message: str,
    reason: str,
    remedy: str,
) -> None:
    ort = fake_ort(starts=False)
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi/libonnxruntime_providers_cuda.so").touch()
    ort.__dict__["__file__"] = str(tmp_path / "__init__.py")

    def refuse(path: str) -> None:
        raise OSError(message)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(ProviderError) as caught:
        Session(PROBE_MODEL, provider="cuda")
    assert f"CUDA cannot run here: libraries {reason} ({message}); to get it, " in str(caught.value)
    assert str(caught.value).endswith(remedy)


@pytest.mark.skipif(sys.platform != "linux", reason="only there is cuDNN looked for")
def test_a_missing_cudnn_is_found_before_the_first_run(
    fake_ort: Callable[..., FakeOrt], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = session_module._cudnn_obstacle
    fake_ort()
    monkeypatch.setattr(session_module, "_cudnn_obstacle", find)

    def refuse(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(ProviderError, match=r"libraries are missing \(libcudnn\.so\.9: cannot open .*pip install"):
        Session(PROBE_MODEL, provider="cuda")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    assert Session(PROBE_MODEL, provider="cuda").provider == "cuda"


@pytest.mark.skipif(
    ORT_NAMES["openvino"] not in onnxruntime.get_available_providers(), reason="onnxruntime-openvino is not installed"
)
def test_openvino_gives_what_was_shipped_and_refuses_int8(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("encoder", "decoder", "classifier"):
        outcome = fmcae.verify(shipped_folder() / f"{kind}.onnx", provider="openvino")
        assert outcome.passed and outcome.provider == "openvino"
    operators = "QLinearConv, NhwcMaxPool, Flatten, MatMulIntegerToFloat"
    with pytest.raises(ProviderError, match=f"on openvino alone: OpenVINO has no kernel for {operators}, which"):
        Session(shipped_folder("fashion-mnist-int8") / "classifier.onnx", provider="openvino")
    assert capfd.readouterr() == ("", "")


# the module itself


def test_importing_it_does_not_import_onnx_runtime() -> None:
    code = (
        "import sys, fmcae.runtime.session; print([n for n in ('onnxruntime', 'numpy', 'torch') if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_missing_or_half_removed_onnx_runtime_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FmcaeError, match=r"cannot be imported .* pip install --force-reinstall onnxruntime"):
        import_onnxruntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    with pytest.raises(FmcaeError, match="files are incomplete; fmcae doctor"):
        import_onnxruntime()


def test_reasons_are_one_short_line() -> None:
    assert short_reason(RuntimeError("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : a : b\nc")) == "a : b"
    assert short_reason(RuntimeError()) == "RuntimeError"
    assert short_reason(RuntimeError("x" * 500)) == "x" * 199 + "…"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (OLD_DRIVER, "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"),
        (NO_CUBLAS, "CUBLAS failure 1: Unknown cuBLAS error status"),
        (
            NO_CUDNN,
            "cuDNN is unavailable or disabled for CUDA Execution Provider: dlopen failed for libcudnn.so: "
            "libcudnn.so: cannot open shared object file: No such file or directory",
        ),
        (NO_MEMORY_LATER, "out of memory, there is no room for 1,105,920,000 bytes"),
        (
            OLD_GPU_LATER,
            "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device",
        ),
        (NO_BATCH, "Batch size is zero."),
    ],
    ids=["an old driver", "cuBLAS", "cuDNN", "memory", "an old GPU", "OpenVINO"],
)
def test_reasons_behind_signatures_are_found(message: str, reason: str) -> None:
    assert len(message) > 200 and short_reason(RuntimeError(message)) == reason
