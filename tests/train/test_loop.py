import re
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from fmcae import metrics
from fmcae.data import Dataset
from fmcae.errors import ProviderError, RunError, UsageError
from fmcae.preprocess import scale as scale_numpy
from fmcae.train.backend import PlainBackend, backend_for, training_loss
from fmcae.train.config import NetworkConfig, TrainConfig
from fmcae.train.loop import _deterministic, best_epoch, resolve_device, train
from fmcae.train.measure import DeviceSplit, _batch_size, _mse_on_device, evaluate, scale
from fmcae.train.networks import Autoencoder, Classifier
from fmcae.train.progress import Progress
from fmcae.train.run import Run, create_run, open_run
from fmcae.train.weights import save_checkpoint

NETWORK = NetworkConfig(latent_dim=8)
Weights = dict[str, dict[str, Tensor]]


def _weights(run: Run) -> Weights:
    return {stage: dict(run.network(stage).state_dict()) for stage in ("autoencoder", "classifier")}


def _equal(first: Weights, second: Weights) -> bool:
    return all(torch.equal(first[stage][name], second[stage][name]) for stage in first for name in first[stage])


class StopAt(Progress):
    """Stops a run as a signal would, after a number of mini-batches."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def step(self, images: int, loss: Tensor) -> None:
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("undrawn")
def test_the_same_seed_gives_the_same_weights_and_another_does_not(dataset: Dataset, tmp_path: Path) -> None:
    weights = []
    for number, seed in enumerate((3, 3, 4)):
        run = create_run(tmp_path / str(number), TrainConfig(NETWORK, epochs=1, seed=seed), dataset)
        torch.manual_seed(number)  # the process's own random state must not matter, nor be touched
        before = torch.get_rng_state()
        train(run, dataset)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(_weights(run))
    assert _equal(weights[0], weights[1])
    assert not _equal(weights[0], weights[2])


@pytest.fixture(scope="module")
def whole_run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = create_run(tmp_path_factory.mktemp("whole") / "run", TrainConfig(NETWORK, epochs=2, seed=1), dataset)
    train(run, dataset)
    return run


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("steps", [1, 15, 20, 35])  # ten steps an epoch, two epochs a stage
def test_a_stopped_run_resumes_to_the_same_bits(dataset: Dataset, whole_run: Run, tmp_path: Path, steps: int) -> None:
    stopped = create_run(tmp_path / "stopped", whole_run.config, dataset)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, dataset, StopAt(steps))
    assert not stopped.finished
    train(stopped, dataset)
    assert _equal(_weights(whole_run), _weights(stopped))
    assert _without_times(whole_run) == _without_times(stopped)
    assert not (stopped.folder / "checkpoint.safetensors").exists()


# --- the best epoch, and an early stop ----------------------------------------------------------------------------

# a classifier whose validation accuracy rises and falls again, so that its patience ends before its epochs
UP_AND_DOWN = TrainConfig(
    NETWORK,
    stage="classifier",
    encoder_init="random",
    learning_rate=0.02,
    epochs=30,
    seed=0,
    keep="best",
    patience=2,
    class_weights=True,
)


@pytest.fixture(scope="module")
def best_run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = create_run(tmp_path_factory.mktemp("best") / "run", UP_AND_DOWN, dataset)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fmcae.train.loop._draw", lambda *_: None)
        train(run, dataset)
    return run


@pytest.mark.usefixtures("undrawn")
def test_the_best_epochs_weights_are_kept_and_tested(dataset: Dataset, best_run: Run, tmp_path: Path) -> None:
    *epochs, test = best_run.metrics()
    best = max(epochs, key=lambda record: (record["val_accuracy"], -record["val_cross_entropy"]))["epoch"]
    assert best_run.kept("classifier") == {"kept_epoch": best, "stopped_epoch": best + 2}
    assert best_run.finished and len(epochs) == best + 2 < 30 and best > 1
    shorter = replace(UP_AND_DOWN, epochs=best, keep="last", patience=None)
    run = create_run(tmp_path / "shorter", shorter, dataset)
    train(run, dataset)
    expected, found = load_file(run.weights("classifier")), load_file(best_run.weights("classifier"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert {**run.metrics()[-1], "stopped_epoch": best + 2} == test
    split = DeviceSplit.from_split(dataset.test, torch.device("cpu"))
    values, confusion = evaluate(PlainBackend(best_run.network("classifier")), split)
    assert confusion is not None and confusion.tolist() == test["confusion"]  # not weighted by class
    assert values["cross_entropy"] == pytest.approx(test["test_cross_entropy"], rel=1e-5)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("where", ["step", "checkpoint", "test", "weights"])
def test_a_run_that_keeps_the_best_resumes_to_the_same_bits_from_anywhere(
    dataset: Dataset, best_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run = create_run(tmp_path / "run", best_run.config, dataset)
    last = best_run.kept("classifier")["stopped_epoch"]
    places = {"checkpoint": "save_checkpoint", "test": "_test", "weights": "save_weights"}
    progress = StopAt(10 * (last - 1) + 5) if where == "step" else Progress()  # ten steps an epoch

    def stop(*arguments: Any) -> None:
        if where != "checkpoint" or arguments[2] == last:
            raise KeyboardInterrupt
        save_checkpoint(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if where in places:
            patch.setattr(f"fmcae.train.loop.{places[where]}", stop)
        train(run, dataset, progress)
    assert not run.finished
    train(run, dataset)
    assert run.weights("classifier").read_bytes() == best_run.weights("classifier").read_bytes()
    assert _without_times(run) == _without_times(best_run)


def test_an_early_stop_says_so_and_why(dataset: Dataset, best_run: Run, tmp_path: Path) -> None:
    notes: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    run = create_run(tmp_path / "run", replace(best_run.config, keep="last"), dataset)
    train(run, dataset, Notes())
    kept = best_run.kept("classifier")
    best, last = kept["kept_epoch"], kept["stopped_epoch"]
    assert run.kept("classifier") == {"kept_epoch": last, "stopped_epoch": last}
    assert notes == [
        f"classifier: stopped after epoch {last} of 30: none better by validation than epoch {best} in 2 more; "
        f"epoch {last} is kept"
    ]


VALUES = st.sampled_from([0.1, 0.2, 0.3, float("inf"), float("nan")])


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12))
@example([(0.3, 0.3), (0.3, 0.2), (0.3, 0.1), (0.2, 0.1), (0.3, 0.1)])
def test_the_best_epoch_is_the_first_of_the_best_ones(values: list[tuple[float, float]]) -> None:
    def goodness(value: float, sign: int) -> tuple[bool, float]:
        return (False, 0) if np.isnan(value) else (True, sign * value)

    of_error = [goodness(error, -1) for error, _ in values]
    of_accuracy = [(goodness(accuracy, 1), goodness(loss, -1)) for accuracy, loss in values]
    records: list[dict[str, Any]] = [{"stage": "another", "epoch": 1}]
    for number, (first, second) in enumerate(values, 1):
        records.append({"stage": "autoencoder", "epoch": number, "val_mse": first})
        records.append({"stage": "classifier", "epoch": number, "val_accuracy": first, "val_cross_entropy": second})
    assert best_epoch(records, "autoencoder") == of_error.index(max(of_error)) + 1
    assert best_epoch(records, "classifier") == of_accuracy.index(max(of_accuracy)) + 1


def test_metrics_that_lack_an_epoch_are_named_where_they_decide(dataset: Dataset, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", UP_AND_DOWN, dataset)
    with pytest.raises(KeyboardInterrupt):
        train(run, dataset, StopAt(25))
    run.write_metrics(run.metrics()[1:])
    with pytest.raises(RunError, match=r"metrics\.jsonl: is damaged: it lacks some of the classifier's 2 epochs"):
        train(run, dataset)


def _without_times(run: Run) -> list[dict[str, Any]]:
    times = ("seconds", "images_per_second")
    return [{key: value for key, value in record.items() if key not in times} for record in run.metrics()]


def test_a_damaged_checkpoint_is_named_not_used(dataset: Dataset, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", TrainConfig(NETWORK, epochs=2), dataset)
    with pytest.raises(KeyboardInterrupt):
        train(run, dataset, StopAt(15))
    checkpoint = run.folder / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors: is not a whole safetensors file"):
        train(run, dataset)


def test_other_data_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", TrainConfig(NETWORK, epochs=1), dataset)
    with pytest.raises(
        RunError, match=r"was trained on fashion-mnist-sample, 1,000 \+ 200 \+ 400 images, with fingerprint"
    ):
        train(run, replace(dataset, test=dataset.val))


@pytest.mark.usefixtures("undrawn")
def test_a_frozen_encoder_keeps_the_autoencoders_weights(dataset: Dataset, trained_run: Path, tmp_path: Path) -> None:
    source = open_run(trained_run)
    config = TrainConfig(
        source.config.network,
        epochs=1,
        stage="classifier",
        autoencoder_from=str(trained_run),
        encoder_training="frozen",
    )
    run = create_run(tmp_path / "run", config, dataset, trained_run)
    train(run, dataset)
    trained, kept = load_file(source.weights("autoencoder")), load_file(run.weights("classifier"))
    encoder = [name for name in kept if name.startswith("encoder.")]
    assert encoder and all(torch.equal(kept[name], trained[name]) for name in encoder)
    config = TrainConfig(source.config.network, epochs=1, stage="classifier", autoencoder_from=str(trained_run))
    run = create_run(tmp_path / "tuned", config, dataset, trained_run)
    train(run, dataset)
    tuned = load_file(run.weights("classifier"))
    assert not any(torch.equal(tuned[name], trained[name]) for name in encoder)


@pytest.mark.usefixtures("undrawn")
def test_a_classifier_with_few_labels_sees_only_them(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[int] = []

    class Count(Progress):
        def step(self, images: int, loss: Tensor) -> None:
            seen.append(images)

    config = TrainConfig(NETWORK, epochs=2, stage="classifier", encoder_init="random", labels=20, learning_rate=0.01)
    run = create_run(tmp_path / "run", config, dataset)
    train(run, dataset, Count())
    assert sum(seen) == 2 * 5_000
    last = [record for record in run.metrics() if "epoch" in record][-1]
    assert last["train_accuracy"] == 1 and last["val_accuracy"] < 0.9
    seen.clear()
    run = create_run(tmp_path / "equal", replace(config, steps_per_epoch=3, batch_size=9), dataset)
    train(run, dataset, Count())
    assert seen == [9] * 6  # of 20, so that an epoch ends within its second pass
    with pytest.raises(UsageError, match=r"labels \(=2000\) must be at most 1,000, the images of train"):
        create_run(tmp_path / "more", TrainConfig(NETWORK, labels=2_000), dataset)
    assert not (tmp_path / "more").exists()


@pytest.mark.usefixtures("undrawn")
def test_random_encoder_and_no_pooling_and_output_dropout_train(dataset: Dataset, tmp_path: Path) -> None:
    config = TrainConfig(NETWORK, epochs=1, stage="classifier", encoder_init="random")
    run = create_run(tmp_path / "random", config, dataset)
    train(run, dataset)
    assert run.finished and not run.weights("autoencoder").exists()
    network = NetworkConfig(latent_dim=4, pooling=False, output_dropout=True, dropout_position="before-pooling")
    run = create_run(tmp_path / "plain", TrainConfig(network, epochs=1, stage="autoencoder"), dataset)
    train(run, dataset)
    assert run.finished and not run.weights("classifier").exists()


@pytest.mark.usefixtures("undrawn")
def test_the_error_on_the_interior_is_measured_on_test(dataset: Dataset, tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", TrainConfig(NETWORK, epochs=1, stage="autoencoder"), dataset)
    train(run, dataset)
    x = scale(torch.from_numpy(np.array(dataset.test.images)))
    with torch.no_grad():
        squares = (x - run.network("autoencoder")(x)).double().square()
    tested = run.test_record("autoencoder")
    assert tested["test_mse"] == pytest.approx(squares.mean().item(), rel=1e-5)
    assert tested["test_interior_mse"] == pytest.approx(squares[:, :, :25, :25].mean().item(), rel=1e-5)


def test_torch_and_numpy_agree_on_scale_and_loss(test_images: NDArray[np.uint8]) -> None:
    images = torch.from_numpy(np.array(test_images))
    assert np.array_equal(scale(images).numpy(), scale_numpy(test_images))
    every_byte = np.arange(784, dtype=np.uint8).reshape(1, 28, 28)
    assert np.array_equal(scale(torch.from_numpy(every_byte)).numpy(), scale_numpy(every_byte))
    x = scale(images[:50])
    labels = torch.arange(50) % 10
    with torch.no_grad():
        autoencoder, classifier = Autoencoder(NETWORK).eval(), Classifier(NETWORK).eval()
        x_hat, logits = autoencoder(x).numpy(), classifier(x).numpy()
        assert float(training_loss(autoencoder, x, labels)) == pytest.approx(metrics.mse(x.numpy(), x_hat), rel=1e-5)
        expected = metrics.cross_entropy(logits, labels.numpy())
        assert float(training_loss(classifier, x, labels)) == pytest.approx(expected, rel=1e-5)


class ConstantBackend(PlainBackend):
    """Its outputs are numpy's memory, which tracemalloc counts."""

    def outputs(self, x: Tensor) -> Tensor:
        shape = x.shape if isinstance(self.network, Autoencoder) else (len(x), 10)
        return torch.from_numpy(np.full(tuple(shape), 0.5, np.float32))


@pytest.mark.parametrize("network", [Autoencoder(NETWORK), Classifier(NETWORK)])
def test_the_memory_of_an_evaluation_does_not_grow_with_the_split(network: Autoencoder | Classifier) -> None:
    def peak(count: int) -> int:
        split = DeviceSplit(torch.zeros((count, 28, 28), dtype=torch.uint8), torch.arange(count) % 10)
        tracemalloc.start()
        evaluate(ConstantBackend(network), split)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(12_000) < 1.1 * peak(2_000)


def test_an_evaluation_gives_the_metrics_of_all_outputs_at_once(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fmcae.train.measure.EVALUATION_BATCH", 64)  # the last batch is smaller
    split = DeviceSplit.from_split(dataset.test, torch.device("cpu"))
    x, labels = scale(split.images), dataset.test.labels
    autoencoder, classifier = Autoencoder(NETWORK).eval(), Classifier(NETWORK).eval()
    with torch.no_grad():
        x_hat, logits = autoencoder(x).numpy(), classifier(x).numpy()
    with backend_for(autoencoder, torch.device("cpu"), 2) as backend:
        values, confusion = evaluate(backend, split)
    assert values == {"mse": pytest.approx(metrics.mse(x.numpy(), x_hat), rel=1e-5)} and confusion is None
    values, confusion = evaluate(PlainBackend(classifier), split)
    assert values["cross_entropy"] == pytest.approx(metrics.cross_entropy(logits, labels), rel=1e-6)
    assert values["accuracy"] == metrics.accuracy(logits, labels)
    assert np.array_equal(confusion, metrics.confusion(logits, labels))  # type: ignore[arg-type]


def test_the_picture_of_reconstructions_computes_what_it_shows(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[Any, ...]] = []
    monkeypatch.setattr("fmcae.train.figures.draw_reconstructions", lambda *arguments: drawn.append(arguments))
    train(run := create_run(tmp_path / "run", TrainConfig(NETWORK, epochs=1, stage="autoencoder"), dataset), dataset)
    ((_, images, x_hat, captions),) = drawn
    firsts = [int(np.flatnonzero(dataset.val.labels == label)[0]) for label in range(10)]
    assert np.array_equal(images, dataset.val.images[firsts]) and tuple(captions) == dataset.class_names
    with torch.no_grad():
        expected = run.network("autoencoder")(scale(torch.from_numpy(np.array(images)))).numpy()
    assert np.allclose(x_hat, expected, atol=1e-5)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto", notes.append) == "cpu"
    for version, reason in (("13.0", "PyTorch finds no CUDA GPU"), (None, "this build of PyTorch has no CUDA")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(ProviderError, match=rf"device \(=cuda\) is not available: {reason}; run on --device cpu"):
            resolve_device("cuda")
    assert notes == []
    with pytest.raises(UsageError, match=r"device \(=tpu\) must be one of auto, cpu, cuda"):
        resolve_device("tpu")


def test_a_gpu_without_kernels_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    ones = torch.ones

    cause = "The NVIDIA driver on your system is too old (found version 12040)"

    def old_driver() -> bool:
        warnings.warn(f"CUDA initialization: {cause}. Please update", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    reason = f"PyTorch finds a GPU but cannot compute on it ({cause})"
    assert resolve_device("auto", notes.append) == "cpu" and notes == [f"training on the CPU: {reason}"]
    with pytest.raises(ProviderError, match=re.escape(reason)):
        resolve_device("cuda")
    cause = (
        "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions? Error 803: system has unsupported"
    )
    with pytest.raises(ProviderError, match=r"cannot compute on it \(Error 803: system has unsupported"):
        resolve_device("cuda")
    notes.clear()

    def refuse(size: int, device: str) -> Tensor:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device\nand more")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", refuse)
    reason = "PyTorch finds a GPU but cannot compute on it (CUDA error: no kernel image is available for execution"
    assert resolve_device("cpu", notes.append) == "cpu" and notes == []
    assert resolve_device("auto", notes.append) == "cpu"
    assert [note.removesuffix(" on the device)") for note in notes] == [f"training on the CPU: {reason}"]
    with pytest.raises(ProviderError, match=f"is not available: {re.escape(reason)}"):
        resolve_device("cuda")
    monkeypatch.setattr(torch, "ones", lambda size, device: ones(size))
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"


def test_a_run_that_was_begun_on_a_gpu_says_where_it_goes_on(dataset: Dataset, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    run = create_run(tmp_path / "run", TrainConfig(network=NETWORK, device="cuda"), dataset)
    with pytest.raises(ProviderError, match="; run on --device cpu"):
        train(run, dataset)
    run.checkpoint.touch()
    with pytest.raises(
        ProviderError, match=r"run was begun on a GPU: go on where there is one, or train into another folder"
    ):
        train(run, dataset)


def test_a_run_on_the_cpu_wakes_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def woken(*_: object) -> None:
        raise AssertionError("a GPU was asked")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", woken)
    with _deterministic(torch.device("cpu")):
        pass


def test_a_gpu_measures_larger_images_in_smaller_batches() -> None:
    sizes = {size: _batch_size(torch.empty(9, size, size, device="meta")) for size in (28, 56, 64)}
    assert sizes == {28: 2000, 56: 500, 64: 382}
    assert _batch_size(torch.empty(9, 64, 64)) == 1000


def test_the_error_that_a_gpu_adds_up_is_the_metric() -> None:
    x, x_hat = torch.rand(64, 1, 28, 28), torch.rand(64, 1, 28, 28)
    assert _mse_on_device(x, x_hat) == pytest.approx(metrics.mse(x.numpy(), x_hat.numpy()), rel=1e-12)
