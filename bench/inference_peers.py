# mypy: disable-error-code="import-not-found, import-untyped"
"""Time the shipped classifiers, and the default one's peers: same weights, same machine, one and two threads, one image
and many.

    pip install '.[train]' tensorflow-cpu ai-edge-litert openvino ncnn executorch   # what is missing is left out
    python bench/inference_peers.py --out bench/results/inference_cpu.json --plot bench/results/inference_cpu.png

Every way takes a float32 array (N, 1, 28, 28) and gives an array of logits, through the library's own Python interface.
Before it is timed, its logits are compared with PyTorch's on test images: a way in float32 must agree to 1e-3, and what
eight bits cost in accuracy is written down. The larger classifier that ships has weights of its own.

Each way lives in a process of its own, which is stopped (SIGSTOP) while another is timed, so that no thread of an idle
one can take a CPU. A round times every way once, forwards and backwards in turns; a ratio is taken within a round, and
reported as the median and the range over the rounds.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from bars import Bar, draw
from numpy.typing import NDArray
from reports import write_report

import fmcae
from fmcae.data import load_dataset
from fmcae.preprocess import scale
from fmcae.runtime.machine import available_cpus, describe_machine
from fmcae.runtime.model import read_artefact, shipped_folder

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
Array = NDArray[np.float32]
Way = Callable[[Array], Array]
BASE = "fmcae fp32"
PACKAGES = ("onnxruntime", "torch", "tensorflow-cpu", "ai-edge-litert", "openvino", "ncnn", "executorch", "numpy")
CLASSIFIER = shipped_folder() / "classifier.onnx"
LARGE = "fmcae large"  # another network, and no bar of the plot, beside which the others would be too short to see
SHIPPED_WAYS = {BASE: "fashion-mnist", "fmcae int8": "fashion-mnist-int8", LARGE: "fashion-mnist-large"}
TOLERANCE = 1e-3  # the largest difference of a float32 way's logits


# --- the ways: each makes a function from an array to logits -----------------------------------------------------------


def shipped(name: str, threads: int, batch: int, work: Path) -> Way:
    return fmcae.load(name, threads=threads).classify


def onnx_runtime(threads: int, batch: int, work: Path) -> Way:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(CLASSIFIER), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["logits"], {"x": x})[0]


def litert(threads: int, work: Path, file: str, batch: int) -> Way:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(work / file), num_threads=threads)
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, (batch, 28, 28, 1))
    interpreter.allocate_tensors()
    output = interpreter.get_output_details()[0]["index"]

    def run(x: Array) -> Array:
        interpreter.set_tensor(index, x.reshape(-1, 28, 28, 1))
        interpreter.invoke()
        return interpreter.get_tensor(output)  # type: ignore[no-any-return]

    return run


def litert_fp32(threads: int, batch: int, work: Path) -> Way:
    return litert(threads, work, "classifier_fp32.tflite", batch)


def litert_int8(threads: int, batch: int, work: Path) -> Way:
    return litert(threads, work, "classifier_int8.tflite", batch)


def pytorch(threads: int, batch: int, work: Path) -> Way:
    return in_torch(torch_network(threads))


def pytorch_compiled(threads: int, batch: int, work: Path) -> Way:
    import torch

    return in_torch(torch.compile(torch_network(threads)))


def in_torch(network: Any) -> Way:
    import torch

    def run(x: Array) -> Array:
        with torch.inference_mode():
            return network(torch.from_numpy(x)).numpy()  # type: ignore[no-any-return]

    return run


def openvino(threads: int, batch: int, work: Path) -> Way:
    from openvino import Core

    core = Core()
    model = core.read_model(CLASSIFIER)
    model.reshape([batch, 1, 28, 28])
    hint = "LATENCY" if batch == 1 else "THROUGHPUT"
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", config).create_infer_request()
    return lambda x: request.infer([x], share_inputs=True, share_outputs=True)[0]


def ncnn(threads: int, batch: int, work: Path) -> Way:
    import ncnn as library

    net = library.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_storage = net.opt.use_bf16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
    net.load_param(str(work / "classifier.param"))
    net.load_model(str(work / "classifier.bin"))

    def one(image: Array) -> Array:
        extractor = net.create_extractor()
        extractor.input("x", library.Mat(image))
        return np.array(extractor.extract("logits")[1])

    return lambda x: np.stack([one(image) for image in x])  # it has no batches


def executorch(threads: int, batch: int, work: Path) -> Way:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    exported = torch.export.export(torch_network(threads), (torch.zeros(batch, 1, 28, 28),))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    (work / "classifier.pte").write_bytes(program.buffer)
    method = Runtime.get().load_program(program.buffer).load_method("forward")
    return lambda x: method.execute([torch.from_numpy(x)])[0].numpy()


WAYS: dict[str, tuple[Callable[[int, int, Path], Way], str | None]] = {
    **{way: (partial(shipped, name), None) for way, name in SHIPPED_WAYS.items()},
    "ONNX Runtime, plain session": (onnx_runtime, None),
    "LiteRT fp32": (litert_fp32, "classifier_fp32.tflite"),
    "LiteRT int8": (litert_int8, "classifier_int8.tflite"),
    "PyTorch": (pytorch, None),
    "PyTorch, compiled": (pytorch_compiled, None),
    "OpenVINO": (openvino, None),
    "ncnn": (ncnn, "classifier.bin"),
    "ExecuTorch, XNNPACK": (executorch, "classifier.pte"),
}


# --- the same weights in every format ------------------------------------------------------------------------------


def weights() -> dict[str, Array]:
    import onnx
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(CLASSIFIER).graph.initializer}


def torch_network(threads: int) -> Any:
    import torch

    from fmcae.train.config import NetworkConfig
    from fmcae.train.networks import Classifier

    torch.set_num_threads(threads)
    config = read_artefact(CLASSIFIER).card.training["config"]["network"]
    network = Classifier(NetworkConfig(**config)).eval()
    own = network.state_dict()
    network.load_state_dict({name: torch.from_numpy(np.array(weights()[name])) for name in own})
    return network


def write_tflite(work: Path) -> None:
    """LiteRT's files by TensorFlow's converter: float32, and dynamic-range int8, its recommended first step."""
    import tensorflow as tf

    layers, w = tf.keras.layers, weights()
    latent_dim = len(w["encoder.9.bias"])
    network = tf.keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(latent_dim, activation="relu"),
            layers.Dense(len(w["linear.bias"])),
        ]
    )
    linear = w["encoder.9.weight"].reshape(latent_dim, 32, 5, 5).transpose(2, 3, 1, 0).reshape(800, latent_dim)
    first, second = (w[f"encoder.{index}.weight"].transpose(2, 3, 1, 0) for index in (0, 4))
    network.set_weights(
        [
            first,
            w["encoder.0.bias"],
            second,
            w["encoder.4.bias"],
            linear,
            w["encoder.9.bias"],
            w["linear.weight"].T,
            w["linear.bias"],
        ]
    )
    for name, optimizations in (("fp32", []), ("int8", [tf.lite.Optimize.DEFAULT])):
        converter = tf.lite.TFLiteConverter.from_keras_model(network)
        converter.optimizations = optimizations
        (work / f"classifier_{name}.tflite").write_bytes(converter.convert())


def write_ncnn(work: Path) -> None:
    """Source: https://github.com/Tencent/ncnn/wiki/param-and-model-file-structure and operation-param-weight-table."""
    w = weights()
    (work / "classifier.param").write_text(
        "7767517\n7 7\n"
        "Input x 0 1 x 0=28 1=28 2=1\n"
        "Convolution conv1 1 1 x y1 0=16 1=3 5=1 6=144 9=1\n"
        "Pooling pool1 1 1 y1 p1 0=0 1=2 2=2 5=1\n"
        "Convolution conv2 1 1 p1 y2 0=32 1=3 5=1 6=4608 9=1\n"
        "Pooling pool2 1 1 y2 p2 0=0 1=2 2=2 5=1\n"
        f"InnerProduct linear 1 1 p2 z 0={len(w['encoder.9.bias'])} 1=1 2={w['encoder.9.weight'].size} 9=1\n"
        f"InnerProduct head 1 1 z logits 0={len(w['linear.bias'])} 1=1 2={w['linear.weight'].size}\n"
    )
    layers = ("encoder.0", "encoder.4", "encoder.9", "linear")
    is_float32 = bytes(4)
    parts = (is_float32 + w[f"{name}.weight"].tobytes() + w[f"{name}.bias"].tobytes() for name in layers)
    (work / "classifier.bin").write_bytes(b"".join(parts))


# --- one way in a process of its own -------------------------------------------------------------------------------


def work_as(name: str, threads: int, batch: int, work: Path) -> None:
    """Check one way's logits, then time it whenever a number of seconds comes in on stdin; answers are lines of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    facts: dict[str, Any]
    try:
        make, _ = WAYS[name]
        run = make(threads, batch, work)
        images, reference = np.load(work / "x.npy"), np.load(work / "reference.npy")
        labels = np.load(work / "labels.npy")
        count = len(images) // batch * batch
        outputs = np.concatenate([np.array(run(images[i : i + batch])) for i in range(0, count, batch)])
        facts = {
            "max_abs_difference": float(np.abs(outputs - reference[:count]).max()),
            "label_agreement": float((outputs.argmax(1) == reference[:count].argmax(1)).mean()),
            "accuracy": float((outputs.argmax(1) == labels[:count]).mean()),
            "images": count,
        }
    except Exception as error:
        facts = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}
    print(json.dumps(facts), file=answers, flush=True)
    if "error" in facts:
        return
    x = np.ascontiguousarray(images[:batch])
    for line in sys.stdin:
        print(json.dumps(median_us(lambda: run(x), float(line))), file=answers, flush=True)


class Worker:
    """A way's process, stopped whenever nothing is asked of it."""

    def __init__(self, name: str, threads: int, batch: int, work: Path) -> None:
        command = [sys.executable, __file__, "--worker", name, "--threads", str(threads), "--batch", str(batch)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [*command, "--work", str(work)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.facts: dict[str, Any] = self._answer() or {"error": f"its process ended with {self.process.wait()}"}
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGSTOP)

    def time_us(self, seconds: float) -> float:
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        print(seconds, file=self.process.stdin, flush=True)
        median: float = self._answer()
        self.process.send_signal(signal.SIGSTOP)
        return median

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None


def measure(threads: int, batch: int, rounds: int, seconds: float, work: Path) -> dict[str, Any]:
    """Time all ways at one number of threads and one batch size."""
    left_out, workers = {}, {}
    for name in WAYS:
        worker = Worker(name, threads, batch, work)
        is_exact = "int8" not in name and name != LARGE
        if "error" not in worker.facts and is_exact and worker.facts["max_abs_difference"] > TOLERANCE:
            worker.facts["error"] = f"its logits differ by {worker.facts['max_abs_difference']:.2g}"
        if "error" in worker.facts:
            left_out[name] = worker.facts["error"]
            worker.end()
        else:
            workers[name] = worker
    latency: dict[str, list[float]] = {name: [] for name in workers}
    for index in range(-1, rounds):  # one more to warm up
        for name in list(workers)[:: 1 if index % 2 == 0 else -1]:
            latency[name].append(workers[name].time_us(seconds))
    rows = {}
    for name, worker in workers.items():
        worker.end()
        times, base = np.array(latency[name][1:]), np.array(latency[BASE][1:])
        ratios = times / base
        rows[name] = {
            "latency_us": {"median": float(np.median(times)), "min": float(times.min()), "max": float(times.max())},
            "images_per_s": float(1e6 * batch / np.median(times)),
            "times_fmcae_fp32": {"median": float(np.median(ratios)), "min": ratios.min(), "max": ratios.max()},
            **worker.facts,
            "rounds_us": times.tolist(),
        }
    return {"threads": threads, "batch_size": batch, "rows": rows, "left_out": left_out}


def measure_call(rounds: int) -> dict[str, Any]:
    """Measure what ``Model.classify`` adds to the bare session's run of the same array."""
    model = fmcae.load(threads=1)
    session = model.session("classifier")
    cases = {}
    for batch in (1, 256):
        x = np.random.default_rng(0).random((batch, 1, 28, 28), np.float32)
        bare = partial(session.raw.run, [session.output_name], {session.input_name: x})
        classify = partial(model.classify, x)
        added = [median_us(classify, 0.3) - median_us(bare, 0.3) for _ in range(rounds + 1)][1:]  # the first warms up
        cases[str(batch)] = {"median": float(np.median(added)), "min": float(min(added)), "max": float(max(added))}
    return cases


def median_us(run: Callable[[], Any], seconds: float) -> float:
    times: list[int] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        began = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - began)
    return float(np.median(times)) / 1e3


def print_case(case: dict[str, Any]) -> None:
    print(f"{case['threads']} thread(s), batch {case['batch_size']}")
    for name, row in sorted(case["rows"].items(), key=lambda item: item[1]["latency_us"]["median"]):
        ratio = row["times_fmcae_fp32"]
        spread = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
        print(f"  {name:30}{row['latency_us']['median']:10.1f} us  {spread:>20} of {BASE}'s", flush=True)
    for name, reason in case["left_out"].items():
        print(f"  {name:30}left out: {reason}", flush=True)


def draw_report(report: dict[str, Any], path: Path) -> None:
    panels = {
        f"{case['threads']} thread{'s' * (case['threads'] > 1)}, batch {case['batch_size']}": {
            name: Bar(
                median=row["times_fmcae_fp32"]["median"],
                low=row["times_fmcae_fp32"]["min"],
                high=row["times_fmcae_fp32"]["max"],
                note=f"{row['latency_us']['median'] / case['batch_size']:.1f} µs",
                is_own=name.startswith("fmcae"),
            )
            for name, row in case["rows"].items()
            if name != LARGE
        }
        for case in report["cases"]
    }
    label = "latency as a multiple of fmcae fp32's (median and range of rounds); beside the bars: µs per image"
    draw(panels, 2, label, path, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="gzipped IDX files of Fashion-MNIST")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.15, help="time of one way in one round")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    parser.add_argument("--plot", type=Path, help="draw the result here as PNG")
    parser.add_argument("--from", dest="source", type=Path, help="draw this result, and measure nothing")
    for name in ("worker", "threads", "batch", "work"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "files":
        (write_tflite if options.threads == "tflite" else write_ncnn)(Path(options.work))
    elif options.worker:
        work_as(options.worker, int(options.threads), int(options.batch), Path(options.work))
    elif options.source:
        draw_report(json.loads(options.source.read_text()), options.plot)
    else:
        compare_all(options)


def compare_all(options: argparse.Namespace) -> None:
    test = load_dataset(options.data).test
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        np.save(work / "x.npy", scale(test.images))
        np.save(work / "labels.npy", test.labels)
        np.save(work / "reference.npy", in_torch(torch_network(available_cpus()))(scale(test.images)))
        for kind in ("tflite", "ncnn"):  # in a process of its own: TensorFlow's threads stay out of this one
            command = [sys.executable, __file__, "--worker", "files", "--threads", kind, "--work", folder]
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        cases = []
        for threads in (1, 2):
            for batch in (1, 256):
                cases.append(measure(threads, batch, options.rounds, options.seconds, work))
                print_case(cases[-1])
        files = {name: work / file for name, (_, file) in WAYS.items() if file}
        files |= {way: shipped_folder(name) / "classifier.onnx" for way, name in SHIPPED_WAYS.items()}
        sizes = {name: path.stat().st_size for name, path in files.items() if path.is_file()}
    report = write_report(
        options.out,
        "latency of one call of the shipped classifier, array in, logits out; ratios within each round",
        rounds=options.rounds,
        seconds_a_timing=options.seconds,
        cases=cases,
        classify_adds_us=measure_call(options.rounds),
        size_bytes=sizes,
        packages={name: installed(name) for name in PACKAGES},
        machine=describe_machine(),
    )
    print(f"Model.classify adds, in us, by batch size: {report['classify_adds_us']}")
    if options.plot:
        draw_report(report, options.plot)


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
