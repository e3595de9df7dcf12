"""Every promise that fmcae makes about CUDA, tried in one run of about ten minutes on a machine that has a GPU.

    pip install '.[train]' and the GPU build of ONNX Runtime, as README.md's paragraph on CUDA says, then
    python bench/cuda.py --data DIR --out bench/results/cuda

``--device cpu`` is a rehearsal on a machine without one. So is ``--device stubs``, of what needs ONNX Runtime alone, over
the stubs of tests/runtime/test_cuda_stubs.py, whose outputs are zeros that must be found wrong. Each step is a command, the
user's own where there is one, with the exit code that it must have; what it says goes to ``log.txt``, and the verdicts to
``summary.json``. Beside them are ``doctor.json``, ``bench.json`` (latency, node placement, break-even batch) with its
picture, ``sessions.json`` (full float32, TF32 and the CPU against the golden vectors; new batch sizes), ``training.json``
(what CUDA reported against float32 on the CPU), ``step.json`` (kernels and times of both recipes' steps, with and without
the CUDA graph, the teacher's in two memory layouts) and ``train_speed.json`` (the plain recipe on the same device).
"""

import argparse
import json
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # this checkout, whether or not it is installed
GRAPHS = [f"exports/fashion-mnist-paper/{name}.onnx" for name in ("encoder", "decoder", "classifier")]
GRAPHS += [f"exports/{name}/classifier.onnx" for name in ("fashion-mnist", "fashion-mnist-int8", "fashion-mnist-large")]
SAMPLE = "tests/data/fashion-mnist-sample"
FOREIGN = ("onnxruntime:", "without a CUDA graph")  # what nobody may read on stderr


class Trial:
    """The steps of one run, their verdicts and their output, in which each of ``places`` has its name for its path."""

    def __init__(self, out: Path, device: str, places: dict[str, str]) -> None:
        self.out, self.device, self.steps, self.began = out, device, list[dict[str, Any]](), time.perf_counter()
        self.places = dict(sorted(places.items(), key=lambda place: -len(place[0])))  # the longest first
        self.log = (out / "log.txt").open("w", encoding="utf-8")

    def step(
        self, name: str, *command: object, wanted: int = 0, refusal: str = "", limit: int = 120, keep: str = ""
    ) -> bool:
        """Run a command in a process of its own.

        Args:
            wanted: the exit code that it must have.
            refusal: words of a gate's error (exit code 5) with which it is right too.
            keep: the file that gets its stdout.
        """
        words = [str(word) for word in command]
        began = time.perf_counter()
        self.log.write(self.without_places(f"=== {name}: {shlex.join(words)}\n"))
        self.log.flush()
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=limit, check=False, env=environment())
            code, stdout, stderr = done.returncode, done.stdout, done.stderr
        except subprocess.TimeoutExpired:
            code, stdout, stderr = None, "", f"no end in {limit} s"
        stdout, stderr = self.without_places(stdout), self.without_places(stderr)
        self.log.write(stdout + stderr + "\n")
        self.log.flush()
        if keep and code is not None:  # a result of before stays where there is no new one
            (self.out / keep).write_text(stdout, encoding="utf-8")
        last = stderr.strip().splitlines()[-1:] or [""]
        right = code == wanted or (code == 5 and refusal != "" and refusal in last[0])
        wish = f"{wanted} or that {refusal}" if refusal else wanted
        return self.verdict(name, right, began, f"exit {code}, wanted {wish}. {last[0][:160]}", stderr)

    def without_places(self, text: str) -> str:
        for path, place in self.places.items():
            text = text.replace(path, place)
        return text

    def verdict(self, name: str, passed: bool, began: float, said: str, stderr: str = "") -> bool:
        """Note a step's end, failed where stderr has lines of ONNX Runtime's own, or says that no graph was captured."""
        foreign = [line for line in stderr.splitlines() if any(words in line for words in FOREIGN)]
        passed = passed and not foreign
        step = {"step": name, "passed": passed, "seconds": round(time.perf_counter() - began, 1), "said": said}
        self.steps.append(step | ({"foreign_lines_on_stderr": foreign} if foreign else {}))
        print(f"{'PASS' if passed else 'FAIL'} {name}: {step['seconds']} s, {said}", flush=True)
        self.write_summary()
        return passed

    def write_summary(self) -> None:
        """After every step, so that a run that is stopped leaves what it has seen."""
        summary = {
            "schema_version": 1,
            "what": "what fmcae promises about CUDA: each command ends with the wanted exit code and without foreign lines",
            "device": self.device,
            "passed": sum(step["passed"] for step in self.steps),
            "failed": sum(not step["passed"] for step in self.steps),
            "seconds": round(time.perf_counter() - self.began),
            "steps": self.steps,
            "machine": machine(self.device),
            "date": datetime.now(timezone.utc).date().isoformat(),
            "command": shlex.join(["python", "bench/cuda.py", "--device", self.device]),
        }
        (self.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def environment() -> dict[str, str]:
    """What every step sees: this checkout, as here."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "NO_COLOR": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu", "stubs"), default="cuda")
    parser.add_argument(
        "--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="gzipped IDX files"
    )
    parser.add_argument("--out", type=Path, help="default: bench/results/cuda; a rehearsal must name a folder")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)  # a step of this script, in its own process
    options = parser.parse_args()
    if options.part:
        name, *paths = options.part
        PARTS[name](options, *map(Path, paths))
        return
    if options.out is None:
        if options.device != "cuda":
            parser.error("--out must come with a rehearsal, whose results are none")
        options.out = Path("bench/results/cuda")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        named = ((sys.executable, "python"), (str(ROOT), "."), (str(Path.home()), "~"), (work, "WORK"))
        places = dict(named) | {str(options.data.resolve()): "DATA", str(options.out.resolve()): "OUT"}
        trial = Trial(options.out, options.device, places)
        try_all(trial, options, Path(work))
    failed = sum(not step["passed"] for step in trial.steps)
    print(f"{len(trial.steps) - failed} passed, {failed} failed, {time.perf_counter() - trial.began:.0f} s")
    sys.exit(failed > 0)


@cache
def machine(device: str) -> dict[str, Any]:
    from fmcae.runtime.machine import describe_machine

    facts = describe_machine()
    try:
        import torch
    except ImportError:  # half of the steps fail without it, and say so
        return facts
    facts |= {"torch": torch.__version__}
    if device != "cuda" or not torch.cuda.is_available():
        return facts
    cudnn: int = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return facts | {"cuda": torch.version.cuda, "cudnn": cudnn, "gpu": torch.cuda.get_device_name()}


def try_all(trial: Trial, options: argparse.Namespace, work: Path) -> None:
    device, data, out = options.device, options.data, options.out
    python, fmcae = [sys.executable], [sys.executable, "-m", "fmcae"]
    on, on_stubs = ["--provider", provider_of(device)], device == "stubs"
    step = trial.step

    def part(name: str, *paths: object, limit: int = 120, keep: str = "") -> bool:
        own = [*python, __file__, "--device", device, "--data", data, "--out", out, "--part", *paths]
        return step(name, *own, limit=limit, keep=keep)

    def goes_on(name: str, command: list[Any], whole: Path, run: Path, stage: str = "autoencoder") -> None:
        """Train what ``whole`` is once more, into ``run``, with a kill after an epoch of a stage."""
        began = time.perf_counter()
        killed = kill_after_an_epoch([*map(str, command), str(run)], run, stage)
        trial.verdict(f"kill -9: {name}", killed, began, f"killed between the {stage}'s first epoch and the run's end")
        step(f"resume: {name}", *fmcae, "train", "--quiet", "--resume", "--out", run)
        part(f"equal bit for bit: {name}", "equal", whole, run)

    step("doctor", *fmcae, "doctor", "--json", keep="doctor.json")
    part("doctor finds the provider working", "doctor")
    ships = ["exports/fashion-mnist", "exports/fashion-mnist-paper"]
    step("verify what ships", *fmcae, "verify", *on, *ships, wanted=5 if on_stubs else 0)
    int8 = [*fmcae, "verify", *on, "exports/fashion-mnist-int8"]
    step("int8 runs on the CPU alone", *int8, wanted=0 if device == "cpu" else 4)
    step("predict", *fmcae, "predict", *on, "exports/samples", "--json")
    sizes, seconds = ("1,16,256,1024", "0.3") if device == "cuda" else ("1,16", "0.01")
    bench = [*fmcae, "bench", *on, "--json", "--batch", sizes, "--seconds", seconds]
    bench += [] if on_stubs else ["--plot", out / "bench.png"]
    step("bench", *bench, keep="bench.json", limit=200)
    if on_stubs:
        part("sessions", "sessions", work / "fp16", keep="sessions.json")
        return

    train = [*fmcae, "train", "--quiet", "--device", device, "--data", data, "--epochs", "2", "--seed", "7", "--out"]
    step("train", *train, work / "a")
    step("train again", *train, work / "b")
    part("two runs are equal bit for bit", "equal", work / "a", work / "b")
    goes_on("the paper's recipe", train, work / "a", work / "c")
    chosen = [*train[:-1], "--keep", "best", "--patience", "1", "--class-weights", "--out"]
    step("train with class weights and keep the best", *chosen, work / "d")
    goes_on("the best is kept", chosen, work / "d", work / "e")
    robust = [*fmcae, "train", "--quiet", "--recipe", "robust", "--device", device, "--data", ROOT / SAMPLE]
    robust += ["--epochs", "2", "--seed", "7", "--out"]
    step("train with the robust recipe", *robust, work / "robust", limit=300)
    goes_on("the robust recipe", robust, work / "robust", work / "robust-2", "classifier")
    part("what was reported is true in float32 on the CPU", "metrics", work / "a", keep="training.json")

    step("export", *fmcae, "export", work / "a", "--data", data, "--out", work / "fp32")
    step("parity", *fmcae, "parity", work / "a", work / "fp32", *on, "--data", data, limit=300)
    half = [*fmcae, "export", work / "a", "--data", data, "--precision", "fp16", "--budget", "5", *on]
    step("export in fp16", *half, "--out", work / "fp16", refusal="it is slower than float32")
    if (work / "fp16").exists():
        step("verify fp16", *fmcae, "verify", *on, work / "fp16")
        step("verify fp16 on the CPU", *fmcae, "verify", work / "fp16")

    part("sessions", "sessions", work / "fp16", keep="sessions.json")
    part("a training step", "steps", work / "robust", keep="step.json", limit=200)
    part("a step that cannot be captured", "uncaptured")
    speed = [*python, "bench/train_speed.py", "--data", data, "--device", device, "--rounds", "3"]
    speed += [] if device == "cuda" else ["--batches", "10"]
    step("training beside the plain recipe", *speed, "--out", out / "train_speed.json", limit=300)
    study = [*fmcae, "study", "run", "--device", device, "--only", "table-1", "--seeds", "1", "--epochs", "1"]
    step("a study with four workers", *study, "--workers", "4", "--data", ROOT / SAMPLE, "--out", work / "study")


def provider_of(device: str) -> str:
    return "cpu" if device == "cpu" else "cuda"


def kill_after_an_epoch(command: list[str], run: Path, stage: str) -> bool:
    """Whether a training could be killed when a stage's first epoch was saved."""
    process, end = subprocess.Popen(command, stdout=DEVNULL, stderr=DEVNULL, env=environment()), time.monotonic() + 120
    while checkpoint_stage(run / "checkpoint.safetensors") != stage and process.poll() is None:
        if time.monotonic() > end:
            process.kill()
            process.wait()
            return False
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def checkpoint_stage(path: Path) -> str | None:
    """The stage that a checkpoint is of, as the header of its safetensors file says; None without one."""
    try:
        with path.open("rb") as file:
            stage: str = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]["stage"]
            return stage
    except FileNotFoundError:
        return None


def check_doctor(options: argparse.Namespace) -> None:
    probes = json.loads((options.out / "doctor.json").read_text(encoding="utf-8"))["probes"]
    probe = next(probe for probe in probes if probe["provider"] == provider_of(options.device))
    wanted = "it computes [[0.0, 0.0]] where [[2.75, 1.6875]] is right" if options.device == "stubs" else None
    sys.exit(None if probe["reason"] == wanted else probe["reason"])


def check_equal(options: argparse.Namespace, first: Path, second: Path) -> None:
    names = {path.name for path in first.glob("*.safetensors")}
    if not names or names != {path.name for path in second.glob("*.safetensors")}:
        sys.exit("there are no weights, or not the same ones")
    for path in (first / name for name in sorted(names)):
        if path.read_bytes() != (second / path.name).read_bytes():
            sys.exit(f"the {path.stem}'s weights differ")


def check_metrics(options: argparse.Namespace, folder: Path) -> None:
    """What the run reported of the test split, beside the same weights in float32 on the CPU, and its epochs' times."""
    import torch

    from fmcae.data import load_dataset
    from fmcae.train.backend import PlainBackend
    from fmcae.train.measure import DeviceSplit, evaluate
    from fmcae.train.run import open_run

    run = open_run(folder)
    test = DeviceSplit.from_split(load_dataset(options.data).test, torch.device("cpu"))
    facts, worst = [], 0.0
    for record in run.metrics():
        if "epoch" in record:
            facts.append({name: record[name] for name in ("stage", "epoch", "seconds", "images_per_second")})
            continue
        found = evaluate(PlainBackend(run.network(record["stage"])), test)[0]
        reported = {name: record[f"test_{name}"] for name in found}
        facts.append({"stage": record["stage"], "reported": reported, "float32_on_cpu": found})
        worst = max(worst, *(abs(found[name] - reported[name]) for name in found))
    print(json.dumps({"largest_difference": worst, "records": facts}, indent=1))
    if worst > 2e-5:  # TF32 shows at 1e-4; one image of the test split is 1e-4 of accuracy
        sys.exit(f"the reported metrics differ by {worst}")


def measure_sessions(options: argparse.Namespace, half: Path) -> None:
    """Every shipped graph, and one in fp16, on the device: nodes, differences and times."""
    from fmcae.errors import ProviderError
    from fmcae.runtime.session import import_onnxruntime

    ort = import_onnxruntime()
    facts: dict[str, Any] = {"onnxruntime": ort.__version__, "build": ort.get_build_info()}
    for path in [*map(Path, GRAPHS), *half.glob("classifier.onnx")]:
        name = f"fp16/{path.name}" if half in path.parents else str(path)
        try:
            facts[name] = measure_session(path, options.device)
        except ProviderError as error:
            facts[name] = {"refused": str(error)}
    print(json.dumps(facts, indent=1))
    for graph in GRAPHS:
        difference = facts[graph].get("golden_difference", 0 if "-int8/" in graph else math.inf)  # int8 is refused
        if difference > 1e-4 and options.device != "stubs":
            sys.exit(f"{graph}: outputs differ from the golden ones by {difference}, or it is refused")


def measure_session(path: Path, device: str) -> dict[str, Any]:
    import numpy as np

    from fmcae.runtime.model import read_artefact
    from fmcae.runtime.session import ORT_NAMES, Session, import_onnxruntime
    from fmcae.runtime.timing import node_placement, random_input, resident_runner

    provider, count = provider_of(device), 100 if device == "cuda" else 3
    session, on_cpu, golden = Session(path, provider=provider), Session(path), read_artefact(path).golden
    one, two, many = (random_input(session, size) for size in (1, 2, 256))

    def difference(y: Any) -> float:
        return float(np.abs(y - golden.outputs).max())

    def microseconds(run: Callable[[], object]) -> float:
        """The median time of a call, after one that is not counted."""
        run()
        times = []
        for _ in range(count):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return round(1e6 * statistics.median(times), 1)

    new_sizes = []
    for size in (1, 3, 5, 8, 13):  # each new one builds the convolutions' plans again
        x, began = random_input(session, size), time.perf_counter()
        session.run(x)
        new_sizes.append(round(1e6 * (time.perf_counter() - began), 1))
    row: dict[str, Any] = {
        "providers": session.raw.get_providers(),
        "nodes": node_placement(path, provider),
        "golden_difference": difference(session.run(golden.inputs)),
        "golden_difference_on_cpu": difference(on_cpu.run(golden.inputs)),
        "us_first_run_of_batch_1_3_5_8_13": new_sizes,
        "us_batch_1": microseconds(lambda: session.run(one)),
        "us_batch_1_and_2_in_turns": microseconds(lambda: (session.run(one), session.run(two))),
        "us_batch_256": microseconds(lambda: session.run(many)),
        "us_batch_256_resident": microseconds(resident_runner(session, many)),
        "us_batch_256_on_cpu": microseconds(lambda: on_cpu.run(many)),
    }
    for tf32 in ("0", "1") if provider == "cuda" else ():
        quiet = import_onnxruntime().SessionOptions()
        quiet.log_severity_level = 4
        providers = [(ORT_NAMES["cuda"], {"use_tf32": tf32})]
        raw = import_onnxruntime().InferenceSession(str(path), quiet, providers=providers)
        row[f"golden_difference_use_tf32_{tf32}"] = difference(raw.run(None, {session.input_name: golden.inputs})[0])
        row[f"us_batch_256_use_tf32_{tf32}"] = microseconds(partial(raw.run, None, {session.input_name: many}))
    return row


class Training(NamedTuple):
    """A network in training: what takes the indices (B,) of a batch, and what takes an epoch's number."""

    network: Any
    step: Callable[[Any], object]
    epoch: Callable[[int], object]
    images: int
    batch_size: int


def paper_training(backend: Any, split: Any, progress: Any) -> Training:
    import numpy as np

    from fmcae.train import loop
    from fmcae.train.backend import optimizer_for
    from fmcae.train.progress import Progress

    step = loop.step_for(backend, optimizer_for(backend, 1e-3), split, 100, progress)
    no_keys = np.zeros(0, np.uint32)
    epoch = partial(loop.train_epoch, step, backend.network, split, 100, Progress())
    return Training(backend.network, lambda batch: step(batch, no_keys), lambda _: epoch(), len(split.labels), 100)


@contextmanager
def capturing(wanted: bool) -> Iterator[None]:
    """Begin trainings whose steps are captured, or run one by one."""
    from fmcae.train import cuda, loop, robust

    for module in (loop, robust):
        module.captured = cuda.captured if wanted else lambda step, *_: step  # type: ignore[attr-defined]
    yield
    for module in (loop, robust):
        module.captured = cuda.captured  # type: ignore[attr-defined]


def trained(training: Training, epochs: int) -> tuple[dict[str, Any], list[float]]:
    """The weights after so many epochs, and each epoch's seconds, as if it had 50,000 images."""
    import torch

    seconds = []
    for epoch in range(1, epochs + 1):
        torch.manual_seed(epoch)
        began = time.perf_counter()
        training.epoch(epoch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) * 50_000 / training.images)
    return {name: value.cpu().clone() for name, value in training.network.state_dict().items()}, seconds


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return all(bool((first[name] == second[name]).all()) for name in first)


def measure_steps(options: argparse.Namespace, folder: Path) -> None:
    """Each training step as it is captured and as it is not: an epoch's seconds, kernels, the device's own time.

    ``folder`` has a run of the robust recipe, whose teacher is also timed with channels before pixels in memory.
    """
    import torch
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    from fmcae.cli.progress import Lines
    from fmcae.data import load_dataset
    from fmcae.train import loop, robust
    from fmcae.train.backend import PlainBackend
    from fmcae.train.config import NetworkConfig
    from fmcae.train.measure import DeviceSplit, evaluate
    from fmcae.train.networks import Autoencoder, Classifier, Teacher
    from fmcae.train.progress import Progress
    from fmcae.train.run import open_run

    class ChannelsFirst(Teacher):
        def __init__(self, config: NetworkConfig) -> None:
            super().__init__(config)
            self.to(memory_format=torch.contiguous_format)

    device, dataset, facts = torch.device(options.device), load_dataset(options.data), dict[str, Any]()
    on_cuda = device.type == "cuda"
    split = DeviceSplit.from_split(dataset.train, device)

    def first(count: int) -> DeviceSplit:
        return DeviceSplit(split.images[:count], split.labels[:count])

    def paper(kind: type[Autoencoder | Classifier]) -> Training:
        images = first(50_000 if on_cuda else 1_000)
        return paper_training(PlainBackend(kind(NetworkConfig()).to(device)), images, Lines())

    # The first stage draws as many negatives, a few milliseconds of the CPU each, and keeps them here for the others.
    robust_splits = dict.fromkeys(("train", "val"), first(7_500 if on_cuda else 200))

    def robust_stage(name: str, teacher: type[Teacher] = Teacher) -> Training:
        robust.Teacher = teacher  # type: ignore[attr-defined]
        stage = robust._Stage(open_run(folder), name, robust_splits)
        robust.Teacher = Teacher  # type: ignore[attr-defined]
        step = stage.step_for(Lines())
        stage._make_views()
        epoch = partial(stage._train_epoch, step, progress=Progress())
        return Training(stage.both, step, epoch, len(stage.views.labels), stage.settings.batch_size)

    kinds: dict[str, Callable[[], Training]] = {
        "autoencoder": partial(paper, Autoencoder),
        "classifier": partial(paper, Classifier),
        "robust teacher": partial(robust_stage, "teacher"),
        "robust teacher, channels first": partial(robust_stage, "teacher", ChannelsFirst),
        "robust classifier": partial(robust_stage, "classifier"),
    }
    steps = 10 if on_cuda else 1
    with loop._deterministic(device):
        for name, begin in kinds.items():
            rows, weights = dict[str, Any](), {}
            for way in ("captured", "one by one"):
                torch.manual_seed(0)
                with capturing(way == "captured"):
                    training = begin()
                weights[way], seconds = trained(training, 4 if on_cuda else 2)
                batch = torch.arange(training.batch_size, device=device)
                with profile(
                    activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
                ) as profiled:
                    for _ in range(steps):
                        training.step(batch)
                calls = [event.name for event in profiled.events() or []]
                starts = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemsetAsync", "cudaMemcpyAsync")
                on_device = [  # operators on the CPU have their kernels' times too
                    event.time_range.elapsed_us()
                    for event in profiled.events() or []
                    if event.device_type == DeviceType.CUDA and not event.is_user_annotation
                ]
                rows[way] = {
                    "epoch_s": seconds,
                    "epoch_s_median": statistics.median(seconds[1:]),
                    "calls_a_step": {start: sum(call.startswith(start) for call in calls) / steps for start in starts},
                    "device_us_a_step": sum(on_device) / steps,
                }
            if isinstance(training.network, Autoencoder | Classifier):
                began = time.perf_counter()
                evaluate(PlainBackend(training.network), first(training.images))
                rows["evaluate_s"] = (time.perf_counter() - began) * 50_000 / training.images
            facts[name] = rows | {"same_weights_both_ways": equal(*weights.values())}
    print(json.dumps(facts, indent=1))
    if not all(rows["same_weights_both_ways"] for rows in facts.values()):
        sys.exit("the captured step gives other weights")
    if on_cuda and not all(
        rows[way]["device_us_a_step"] for rows in facts.values() for way in ("captured", "one by one")
    ):
        sys.exit("the profiler saw nothing that the GPU did")


def check_uncaptured(options: argparse.Namespace) -> None:
    """A step that waits for the device, as none in a graph may, trains on to the same weights; the next is captured."""
    import torch

    from fmcae.data import load_dataset
    from fmcae.train import loop
    from fmcae.train.backend import PlainBackend
    from fmcae.train.config import NetworkConfig
    from fmcae.train.measure import DeviceSplit
    from fmcae.train.networks import Classifier
    from fmcae.train.progress import Progress

    class Waiting(PlainBackend):
        def backward(self, *arguments: Any) -> torch.Tensor:
            loss = super().backward(*arguments)
            loss.item()
            return loss

    class Kept(Progress):
        def warn(self, text: str) -> None:
            said.append(text)

    device, said, weights = torch.device(options.device), list[str](), list[dict[str, Any]]()
    whole = DeviceSplit.from_split(load_dataset(options.data).train, device)
    split = DeviceSplit(whole.images[:1_050], whole.labels[:1_050])  # the last batch is smaller
    with loop._deterministic(device):
        for backend, captured in ((Waiting, True), (PlainBackend, True), (PlainBackend, False)):
            torch.manual_seed(0)
            with capturing(captured):
                training = paper_training(backend(Classifier(NetworkConfig()).to(device)), split, Kept())
            weights.append(trained(training, 2)[0])
    print(json.dumps({"said": said}))
    if len(said) != (device.type == "cuda") or any("previous error" in text for text in said):
        sys.exit("a capture that fails must be said once, with its cause")
    if not equal(weights[0], weights[2]) or not equal(weights[1], weights[2]):
        sys.exit("the weights differ")


PARTS: dict[str, Callable[..., None]] = {
    "doctor": check_doctor,
    "equal": check_equal,
    "metrics": check_metrics,
    "sessions": measure_sessions,
    "steps": measure_steps,
    "uncaptured": check_uncaptured,
}

if __name__ == "__main__":
    main()
