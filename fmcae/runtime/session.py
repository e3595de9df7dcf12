"""One graph in ONNX Runtime: the provider that really runs it, and its threads.

ONNX Runtime moves nodes that a provider cannot run to the CPU by itself. Here "cuda" means that CUDA runs every node, or an
error, and so do the other names: the provider is the session's only one, and is read back after the session is created.
"""

import contextlib
import io
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from fmcae.errors import ArtefactError, FmcaeError, ProviderError, UsageError, quoted
from fmcae.files import is_utf8
from fmcae.precision import PROVIDERS, Provider
from fmcae.runtime.machine import available_cpus, driver_obstacle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ModelSource: TypeAlias = bytes | str | Path  # a file's bytes, or its path
MAX_THREADS = 1_024  # far above what a graph of this size can use; ONNX Runtime itself starts any number

# Another build goes over the CPU build, whose record stays: without it the next `pip install .` would bring its files back.
INSTALL_CUDA = f"pip uninstall -y onnxruntime-gpu && pip install {quoted('onnxruntime-gpu[cuda,cudnn]')}"
INSTALL_OPENVINO = "pip uninstall -y onnxruntime-openvino && pip install onnxruntime-openvino"
INSTALL_DRIVER = "install NVIDIA's driver, or give the container the GPU (docker run --gpus all)"
# From 1.27 on, the packages of ONNX Runtime are built for CUDA 13.
INSTALL_CUDA_12 = f"pip install {quoted('onnxruntime-gpu[cuda,cudnn]<1.27')}"
_NEWER_DRIVER = f"install a newer NVIDIA driver or, for a driver that has CUDA 12, run  {INSTALL_CUDA_12}"
_OLD_GPU = f"on a GPU that is too old for CUDA 13, run  {INSTALL_CUDA_12}"
_OTHER_GPU = "let CUDA_VISIBLE_DEVICES name a GPU, or unset it"
_MORE_MEMORY = "end other programs that take the GPU's memory; nvidia-smi names them"
_REMEDIES = {  # by a part of the reason
    "CUDA failure 35:": _NEWER_DRIVER,
    "CUDA failure 222:": _NEWER_DRIVER,  # it cannot compile the kernels' intermediate code
    "undefined symbol: cuTensorMap": _NEWER_DRIVER,  # a function of the driver since CUDA 12
    "CUDA error cudaErrorInsufficientDriver:": _NEWER_DRIVER,
    "CUDA error cudaErrorUnsupportedPtxVersion:": _NEWER_DRIVER,
    "no kernel image is available": _OLD_GPU,
    "CUBLAS failure 8:": _OLD_GPU,  # of this architecture there are no kernels
    "CUDA failure 46:": "end the program that has the GPU for itself; nvidia-smi names it",
    "CUDA_VISIBLE_DEVICES": _OTHER_GPU,
    "CUDA failure 101:": _OTHER_GPU,
    "(CUDA error 802)": "start NVIDIA's fabric manager, which connects the GPUs of this machine",
    "(CUDA error 803)": "restart the machine: the driver's parts are of two versions",
    "(CUDA error 999)": "restart the machine, or see what nvidia-smi says",
    "out of memory": _MORE_MEMORY,
    "ALLOC_FAILED": _MORE_MEMORY,
    "CUBLAS failure 3:": _MORE_MEMORY,  # the same where cuBLAS does not name it
}


class _Facts(NamedTuple):
    title: str
    ort_name: str  # ONNX Runtime's name for it
    remedy: str  # what brings it
    options: dict[str, str]
    tried: bool  # by fmcae's authors, on hardware of its kind


PROVIDER_FACTS: dict[Provider, _Facts] = {
    "cpu": _Facts("the CPU", "CPUExecutionProvider", "run  pip install --force-reinstall onnxruntime", {}, True),
    # The heuristic search, because the exhaustive one times every cuDNN algorithm again for each new batch size and may
    # choose another next time.
    "cuda": _Facts(
        "CUDA",
        "CUDAExecutionProvider",
        f"with an NVIDIA driver, run  {INSTALL_CUDA}",
        {"cudnn_conv_algo_search": "HEURISTIC"},
        True,
    ),
    # FP32, because OpenVINO itself takes bfloat16 where a CPU has it.
    "openvino": _Facts(
        "OpenVINO",
        "OpenVINOExecutionProvider",
        f"run  {INSTALL_OPENVINO}",
        {"device_type": "CPU", "precision": "FP32"},
        True,
    ),
    "tensorrt": _Facts(
        "TensorRT",
        "TensorrtExecutionProvider",
        f"with an NVIDIA driver and TensorRT's libraries, run  {INSTALL_CUDA}",
        {},
        False,
    ),
    "dml": _Facts("DirectML", "DmlExecutionProvider", "on Windows, run  pip install onnxruntime-directml", {}, False),
    # The older format may compute in half precision.
    "coreml": _Facts(
        "Core ML",
        "CoreMLExecutionProvider",
        "on macOS, run  pip install onnxruntime",
        {"ModelFormat": "MLProgram"},
        False,
    ),
}
ORT_NAMES: dict[Provider, str] = {name: facts.ort_name for name, facts in PROVIDER_FACTS.items()}
NVIDIA: tuple[Provider, ...] = ("cuda", "tensorrt")
_NO_CPU_NODES = "session.disable_cpu_ep_fallback"
# How long a thread looks out for work before it sleeps. If it slept at once, two threads would take longer for one image
# than one does, because operators follow each other faster than a thread wakes; if it never slept, a CPU would be busy.
_SPIN_MICROSECONDS = 100
_SPIN_DURATION_SINCE = "1.26"  # the version of ONNX Runtime; in older ones spinning has no end
_THREAD_BYTES = (8 + 64) << 20  # the address space of a thread's stack and of its heap
_RUNTIME_BYTES = 128 << 20  # the address space of ONNX Runtime itself
_THREADS_LIMITED = "more may not start, by a limit on memory (ulimit -v) or on processes (ulimit -u)"
_LOG_FATAL = 4  # of ONNX Runtime's severities the highest


class Session:
    """One ONNX graph with one input and one output, ready to run on the provider that was asked for.

    Attributes:
        provider: one of PROVIDERS, read back from ONNX Runtime after creation.
        threads: the CPU threads of one operator.
        raw: the :class:`onnxruntime.InferenceSession` itself.
    """

    def __init__(
        self, model: ModelSource, *, provider: str = "cpu", threads: int | None = None, profile_prefix: str = ""
    ) -> None:
        """
        Args:
            model: an ONNX file, or its bytes.
            provider: one of PROVIDERS; none falls back to the CPU, not even for single nodes.
            threads: None for all that :func:`available_cpus` counts and memory has room for. Between runs they sleep.
            profile_prefix: where ``raw.end_profiling()`` writes ONNX Runtime's profile; empty for no profile.

        Raises:
            UsageError: the provider is unknown, or threads is out of range.
            ProviderError: the provider cannot run here, and the message says how to get it; or it cannot run every node.
            ArtefactError: the model cannot be read, or has not exactly one input and one output.
            FmcaeError: memory has no room for so many threads.
        """
        wanted = check_provider(provider)
        self.threads = check_threads(threads)
        ort = import_onnxruntime()
        if (most := _threads_with_room(self.threads)) < self.threads:
            raise FmcaeError(f"threads (={self.threads}) must be at most {most} here: {_THREADS_LIMITED}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1  # the graphs are chains: there is nothing to run side by side
        if release(ort.__version__) >= release(_SPIN_DURATION_SINCE):
            options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS))
        else:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _LOG_FATAL  # what goes wrong arrives as an exception
        options.enable_profiling = bool(profile_prefix)
        options.profile_file_prefix = profile_prefix

        self.raw: Any = _create_on_cpu(ort, model, options) if wanted == "cpu" else _create(wanted, ort, model, options)
        self.provider = next(known for known in PROVIDERS if ORT_NAMES[known] == self.raw.get_providers()[0])
        inputs, outputs = self.raw.get_inputs(), self.raw.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            found = f"must have one input and one output, not {len(inputs)} and {len(outputs)}"
            raise ArtefactError(f"{_name_of(model)} {found}: it is no artefact of fmcae")
        self.input_name, self.output_name = inputs[0].name, outputs[0].name
        self._output_names = [self.output_name]
        # ONNX Runtime's own object below its Python one, whose checks take 1 µs and are made here after a failure
        self._run = getattr(self.raw, "_sess", self.raw).run
        if self.provider == "dml":  # DirectML allows one run of a session at a time
            self._run = _one_at_a_time(self._run)

    def run(self, x: "NDArray[np.float32]") -> "NDArray[np.float32]":
        """The graph's output for ``x``, a float32 array of the input's shape. Safe to call from several threads.

        Raises:
            UsageError: ONNX Runtime does not take ``x``: its shape or dtype is not the graph's.
        """
        try:
            if not x.dtype.isnative:  # whose bytes ONNX Runtime would take as they are
                raise TypeError("another byte order")
            return self._run(self._output_names, {self.input_name: x}, None)[0]  # type: ignore[no-any-return]
        except Exception as error:
            raise self._explain(x, error) from error

    def _explain(self, x: Any, error: Exception) -> FmcaeError:
        """Find the reason only after a failure, so that a run that succeeds pays for no check."""
        sizes = self.raw.get_inputs()[0].shape  # a free one is a name or None
        wanted = f"{self.input_name} must be an array {_shape(sizes)} float32"
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            return UsageError(f"{wanted}, not {type(x).__name__}")
        expected = [size if isinstance(size, int) else found for size, found in zip(sizes, x.shape, strict=False)]
        if str(x.dtype) != "float32" or len(x.shape) != len(sizes) or list(x.shape) != expected:
            return UsageError(f"{wanted}, not {_shape(x.shape)} {x.dtype}")
        reason = short_reason(error)
        remedy = _remedy_of(reason) if self.provider in NVIDIA else None
        if remedy in (None, _MORE_MEMORY):
            advice = f"; {remedy}" if remedy else ""
            return FmcaeError(f"ONNX Runtime failed on {self.provider}: {reason}{advice}")
        return _cannot_run(self.provider, reason)


def _one_at_a_time(run: Callable[..., Any]) -> Callable[..., Any]:
    lock = threading.Lock()

    def locked(*arguments: Any) -> Any:
        with lock:
            return run(*arguments)

    return locked


def check_provider(provider: str) -> Provider:
    """Return ``provider`` itself, or raise UsageError if it is none of PROVIDERS."""
    if provider not in PROVIDERS:
        raise UsageError(f"provider (={provider}) must be one of {', '.join(PROVIDERS)}")
    return provider


def check_threads(threads: int | None) -> int:
    """Return ``threads`` itself, or for None the available CPUs, or fewer where memory has no room for a thread on each.

    Raises:
        UsageError: it is no integer in range.
    """
    if threads is None:
        return _threads_with_room(available_cpus(), _RUNTIME_BYTES)
    if not isinstance(threads, Integral) or isinstance(threads, bool) or not 1 <= threads <= MAX_THREADS:
        raise UsageError(f"threads (={threads}) must be an integer from 1 to {MAX_THREADS:,}")
    return int(threads)


def import_onnxruntime() -> Any:
    """The ``onnxruntime`` module, imported at the first use because that takes a good part of a cold start.

    Raises:
        FmcaeError: it is missing or broken; the message has the command that mends it.
        MemoryError: there is no room for it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the GPU build warns where CUDA is missing; the CPU needs none
            onnxruntime: Any = import_module("onnxruntime")
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C came while the library started
            raise KeyboardInterrupt from error
        if lacks_memory(error):
            raise MemoryError from error
        command = "pip install --force-reinstall onnxruntime"
        raise FmcaeError(f"ONNX Runtime cannot be imported ({short_reason(error)}): run  {command}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        # pip removes the files that the CPU and the GPU package have in common when one of the two is uninstalled.
        raise FmcaeError("ONNX Runtime's files are incomplete; fmcae doctor names the command that mends it")
    onnxruntime.disable_telemetry_events()  # nothing that a user did not ask for leaves the machine
    return onnxruntime


def release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version of ONNX Runtime, to be compared."""
    return tuple(map(int, version.split(".")[:2]))


def short_reason(error: BaseException, limit: int = 200) -> str:
    """An exception of ONNX Runtime or the dynamic loader as one line, without its codes and C++ signatures."""
    import re

    message = str(error)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    # The causes stand behind C++ signatures of many hundred characters.
    if cause := re.search(r"\w+ failure \d+: [^;\n]*|CUDA error \w+:[^;\n]*|cuDNN is unavailable.*", message):
        text = cause[0].strip()
    elif size := re.search(r"Failed to allocate memory for requested buffer of size (\d+)", message):
        text = f"out of memory, there is no room for {int(size[1]):,} bytes"
    elif text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]  # [ONNXRuntimeError] : 7 : INVALID_PROTOBUF : what happened
        text = text.partition(" Status Message: ")[2] or text  # behind the node that was running
        if "[OpenVINO-EP]" in text:
            text = lines[-1]  # the innermost of OpenVINO's exceptions
    return text if len(text) <= limit else text[: limit - 1] + "…"


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception, which may be of any class, says that there is no room for a library."""
    return str(error).rstrip().endswith(("failed to map segment from shared object", "std::bad_alloc"))


def _threads_with_room(threads: int, reserved: int = 0) -> int:
    """As many of the threads as fit into the address space: ONNX Runtime hangs or crashes if only some of them start."""
    if threads <= 2 or sys.platform != "linux":
        return threads  # it starts one fewer than it has, and says so if not even the first does
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return threads
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return min(threads, 1 + max(0, limit - used - reserved) // _THREAD_BYTES)


def _create_on_cpu(ort: Any, model: ModelSource, options: Any) -> Any:
    try:
        if not isinstance(model, bytes):
            open(model, "rb").close()  # a clearer reason than ONNX Runtime's for a missing or unreadable file
        return ort.InferenceSession(_openable(model), options, providers=[ORT_NAMES["cpu"]], enable_fallback=0)
    except OSError as error:
        raise ArtefactError(f"{model!s}: {error.strerror or error}") from error
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this one
        if lacks_memory(error):
            raise MemoryError from error
        if "pthread_create" in str(error):
            raise FmcaeError(f"threads (={options.intra_op_num_threads}) must be 1 here: {_THREADS_LIMITED}") from error
        raise ArtefactError(f"{_name_of(model)} is no ONNX model that runs here: {short_reason(error)}") from error


def _create(wanted: Provider, ort: Any, model: ModelSource, options: Any) -> Any:
    """A session in which ``wanted``, which is not the CPU, runs every node."""
    title, name = PROVIDER_FACTS[wanted].title, ORT_NAMES[wanted]
    driver = None
    if wanted in NVIDIA:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            ort.preload_dlls()  # finds the CUDA libraries that pip installed; not before version 1.21
        driver = driver_obstacle()
    if name not in ort.get_available_providers():
        build = f"the build of ONNX Runtime that is installed has no {name}"
        there = [known for known in PROVIDERS if ORT_NAMES[known] in ort.get_available_providers()]
        others = [PROVIDER_FACTS[known].title for known in there if known not in ("cpu", "coreml")]
        apart = f"in an environment of its own (the build here brings {others[0]}), " if others else ""
        raise _cannot_run(wanted, f"{build}, and {driver}" if driver else build, apart + PROVIDER_FACTS[wanted].remedy)
    if driver:
        raise _cannot_run(wanted, driver, _remedy_of(driver) or INSTALL_DRIVER)
    if wanted in NVIDIA and (obstacle := _cudnn_obstacle()):
        raise _cannot_run(wanted, obstacle)

    # What a provider reports at its start, and CUDA when it plans a convolution, comes from the default logger, not the
    # session's, and each plan that is tried in vain is a red line there. Its level cannot be asked for, to be set again.
    ort.set_default_logger_severity(_LOG_FATAL)
    options.add_session_config_entry(_NO_CPU_NODES, "1")
    try:
        provider = (name, _provider_options(wanted, model, options.intra_op_num_threads))
        create = partial(ort.InferenceSession, _openable(model), options, [provider], enable_fallback=0)
        session = create()
    except Exception as error:
        options.add_session_config_entry(_NO_CPU_NODES, "0")
        _create_on_cpu(ort, model, options)  # raises if it is the model that is broken
        if "fallback to CPU" not in str(error):
            raise _cannot_run(wanted, _library_obstacle(wanted, ort) or short_reason(error)) from error
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            session = create()
        except Exception as second:
            raise _cannot_run(wanted, short_reason(second)) from second
        if session.get_providers()[0] == name:
            reason = f"{title} has no kernel for {_cpu_operators(session)}, which would run on the CPU"
            raise ProviderError(f"{_name_of(model)} does not run on {wanted} alone: {reason}") from error
    if session.get_providers()[0] != name:
        raise _cannot_run(wanted, _library_obstacle(wanted, ort) or "ONNX Runtime could not start it")
    return session


def _provider_options(wanted: Provider, model: ModelSource, threads: int) -> dict[str, str]:
    options = PROVIDER_FACTS[wanted].options
    if wanted == "cuda":
        return options | {"use_tf32": str(int(_tf32_is_right(model)))}
    return options | ({"num_of_threads": str(threads)} if wanted == "openvino" else {})


def _tf32_is_right(model: ModelSource) -> bool:
    """Whether TF32 is right for a graph.

    Not for float32, which is the same here as on the CPU and in the parity evidence: TF32 keeps 10 bits of mantissa. Half
    precision has no more, and without TF32 ONNX Runtime leaves out all plans on tensor cores.
    """
    from fmcae.runtime.graph_rules import has_half_weights

    return has_half_weights(model if isinstance(model, bytes) else Path(model).read_bytes())


def _cpu_operators(session: Any) -> str:
    """The operators that run on the CPU beside another provider, if ONNX Runtime tells."""
    list_parts = getattr(session, "get_provider_graph_assignment_info", list)  # since 1.24
    nodes = (node.op_type for part in list_parts() if part.ep_name == ORT_NAMES["cpu"] for node in part.get_nodes())
    return ", ".join(dict.fromkeys(nodes)) or "some of its nodes"


def _cannot_run(wanted: Provider, obstacle: str, remedy: str | None = None) -> ProviderError:
    facts = PROVIDER_FACTS[wanted]
    remedy = remedy or _remedy_of(obstacle) or facts.remedy
    return ProviderError(f"{facts.title} cannot run here: {obstacle}; to get it, {remedy}")


def _remedy_of(obstacle: str) -> str | None:
    return next((command for part, command in _REMEDIES.items() if part in obstacle), None)


def _cudnn_obstacle() -> str | None:
    """That cuDNN cannot be loaded, which newer versions of ONNX Runtime would only find at the first convolution."""
    if sys.platform != "linux":
        return None
    if obstacle := _loader_obstacle("libcudnn.so.9"):
        return obstacle
    # NVIDIA's is a door to other libraries, beside it or where the loader looks, and ends the process without them
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        door = next(Path(line.split(maxsplit=5)[5]) for line in maps if "/libcudnn.so.9" in line)
        is_door = b"libcudnn_graph.so" in door.read_bytes()
    except (OSError, StopIteration):  # the system does not tell where it lies
        return None
    if not is_door:
        return None
    first = door.with_name("libcudnn_graph.so.9")
    return _loader_obstacle(str(first) if first.exists() else first.name)


def _library_obstacle(wanted: Provider, ort: Any) -> str | None:
    """The library whose absence kept ONNX Runtime's own library of a provider from loading, named by the loader."""
    # only after ONNX Runtime has failed: loaded before, its library would start without its host and crash
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{wanted}.so"
    return _loader_obstacle(str(library)) if library.exists() else None


def _loader_obstacle(library: str) -> str | None:
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError as error:
        what = "are missing" if "cannot open shared object" in str(error) else "do not load"
        return f"libraries {what} ({short_reason(error)})"
    return None


def _openable(model: ModelSource) -> ModelSource:
    """The model itself, or the bytes of a file whose path is not UTF-8, because ONNX Runtime does not open it."""
    return model if isinstance(model, bytes) or is_utf8(str(model)) else Path(model).read_bytes()


def _name_of(model: ModelSource) -> str:
    return f"the model of {len(model):,} bytes" if isinstance(model, bytes) else str(model)


def _shape(shape: Any) -> str:
    return "(" + ", ".join(str(size) if isinstance(size, int) else "N" for size in shape) + ")"
