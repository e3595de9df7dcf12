import numpy as np
import pytest
import torch

from fmcae import metrics
from fmcae.data import load_dataset
from fmcae.errors import ProviderError, RunError, UsageError
from fmcae.preprocess import scale as scale_numpy
from fmcae.train.config import NetworkConfig, TrainConfig
from fmcae.train.loop import adopt_autoencoder, loss_of, resolve_device, scale, train
from fmcae.train.networks import Autoencoder, Classifier
from fmcae.train.progress import Progress
from fmcae.train.run import create_run, open_run

NETWORK = NetworkConfig(latent_dim=8)


@pytest.fixture(scope="module")
def dataset(sample):
    return load_dataset(sample)


def _weights(run):
    return {
        stage: {name: tensor.clone() for name, tensor in run.network(stage).state_dict().items()}
        for stage in ("autoencoder", "classifier")
    }


def _equal(first, second):
    return all(torch.equal(first[stage][name], second[stage][name]) for stage in first for name in first[stage])


class StopAt(Progress):
    """Stops a run as a signal would, after a number of mini-batches."""

    def __init__(self, steps):
        self.steps = steps

    def step(self, images, loss):
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt


def test_the_same_seed_gives_the_same_weights_and_another_does_not(dataset, tmp_path):
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
def whole_run(dataset, tmp_path_factory):
    run = create_run(tmp_path_factory.mktemp("whole") / "run", TrainConfig(NETWORK, epochs=2, seed=1), dataset)
    train(run, dataset)
    return run


@pytest.mark.parametrize("steps", [1, 15, 20, 35])  # ten steps an epoch, two epochs a stage
def test_a_stopped_run_resumes_to_the_same_bits(dataset, whole_run, tmp_path, steps):
    stopped = create_run(tmp_path / "stopped", whole_run.config, dataset)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, dataset, StopAt(steps))
    assert not stopped.finished
    train(stopped, dataset)
    assert _equal(_weights(whole_run), _weights(stopped))
    times = ("seconds", "images_per_second")
    first, second = (
        [{key: value for key, value in record.items() if key not in times} for record in run.metrics()]
        for run in (whole_run, stopped)
    )
    assert first == second
    assert not (stopped.folder / "checkpoint.safetensors").exists()


def test_a_damaged_checkpoint_is_named_not_used(dataset, tmp_path):
    run = create_run(tmp_path / "run", TrainConfig(NETWORK, epochs=2), dataset)
    with pytest.raises(KeyboardInterrupt):
        train(run, dataset, StopAt(15))
    checkpoint = run.folder / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors: is not a whole checkpoint"):
        train(run, dataset)


def test_other_data_are_refused(dataset, tmp_path):
    from dataclasses import replace

    run = create_run(tmp_path / "run", TrainConfig(NETWORK, epochs=1), dataset)
    with pytest.raises(RunError, match="was trained on fashion-mnist-sample with fingerprint"):
        train(run, replace(dataset, test=dataset.val))


def test_a_frozen_encoder_keeps_the_autoencoders_weights(dataset, trained_run, tmp_path):
    source = open_run(trained_run)
    config = TrainConfig(
        source.config.network,
        epochs=1,
        stage="classifier",
        autoencoder_from=str(trained_run),
        encoder_training="frozen",
    )
    run = create_run(tmp_path / "run", config, dataset)
    adopt_autoencoder(run, trained_run)
    train(run, dataset)
    encoder = source.network("autoencoder").encoder.state_dict()
    kept = run.network("classifier").encoder.state_dict()
    assert all(torch.equal(kept[name], encoder[name]) for name in encoder)
    config = TrainConfig(source.config.network, epochs=1, stage="classifier", autoencoder_from=str(trained_run))
    run = create_run(tmp_path / "tuned", config, dataset)
    adopt_autoencoder(run, trained_run)
    train(run, dataset)
    kept = run.network("classifier").encoder.state_dict()
    assert not any(torch.equal(kept[name], encoder[name]) for name in encoder)


def test_a_classifier_with_few_labels_sees_only_them(dataset, tmp_path):
    seen = []

    class Count(Progress):
        def step(self, images, loss):
            seen.append(images)

    config = TrainConfig(NETWORK, epochs=2, stage="classifier", encoder_init="random", labels=20, learning_rate=0.01)
    run = create_run(tmp_path / "run", config, dataset)
    train(run, dataset, Count())
    assert sum(seen) == 2 * 5_000
    last = [record for record in run.metrics() if "epoch" in record][-1]
    assert last["train_accuracy"] == 1 and last["val_accuracy"] < 0.9
    with pytest.raises(UsageError, match=r"labels \(=2000\) must be at most 1,000, the images of train"):
        create_run(tmp_path / "more", TrainConfig(NETWORK, labels=2_000), dataset)
    assert not (tmp_path / "more").exists()


def test_an_autoencoder_of_another_shape_is_not_adopted(dataset, trained_run, tmp_path):
    config = TrainConfig(NetworkConfig(latent_dim=99), stage="classifier", autoencoder_from=str(trained_run))
    run = create_run(tmp_path / "run", config, dataset)
    with pytest.raises(RunError, match="the autoencoder to start from cannot be used: .* does not fit"):
        adopt_autoencoder(run, trained_run)


def test_random_encoder_and_no_pooling_and_output_dropout_train(dataset, tmp_path):
    config = TrainConfig(NETWORK, epochs=1, stage="classifier", encoder_init="random")
    run = create_run(tmp_path / "random", config, dataset)
    train(run, dataset)
    assert run.finished and not run.weights("autoencoder").exists()
    network = NetworkConfig(latent_dim=4, pooling=False, output_dropout=True, dropout_position="before-pooling")
    run = create_run(tmp_path / "plain", TrainConfig(network, epochs=1, stage="autoencoder"), dataset)
    train(run, dataset)
    assert run.finished and not run.weights("classifier").exists()


def test_torch_and_numpy_agree_on_scale_and_loss(test_images):
    images = torch.from_numpy(np.array(test_images))
    assert np.array_equal(scale(images).numpy(), scale_numpy(test_images))
    every_byte = np.arange(784, dtype=np.uint8).reshape(1, 28, 28)
    assert np.array_equal(scale(torch.from_numpy(every_byte)).numpy(), scale_numpy(every_byte))
    x = scale(images[:50])
    labels = torch.arange(50) % 10
    with torch.no_grad():
        autoencoder, classifier = Autoencoder(NETWORK).eval(), Classifier(NETWORK).eval()
        x_hat, logits = autoencoder(x).numpy(), classifier(x).numpy()
        assert float(loss_of(autoencoder, x, labels)) == pytest.approx(metrics.mse(x.numpy(), x_hat), rel=1e-5)
        expected = metrics.cross_entropy(logits, labels.numpy())
        assert float(loss_of(classifier, x, labels)) == pytest.approx(expected, rel=1e-5)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(ProviderError, match=r"device \(=cuda\) is not available"):
        resolve_device("cuda")
    with pytest.raises(UsageError, match=r"device \(=tpu\) must be one of auto, cpu, cuda"):
        resolve_device("tpu")
