import json
from dataclasses import replace
from typing import Any

import pytest

from fmcae.errors import UsageError
from fmcae.train.config import ROBUST, NetworkConfig, TrainConfig


def test_the_defaults_are_the_papers_optimum() -> None:
    config = TrainConfig()
    assert (config.network.latent_dim, config.network.dropout, config.learning_rate) == (128, 0.1, 0.001)
    assert (config.batch_size, config.epochs) == (100, 30)


def test_survives_json() -> None:
    config = TrainConfig(NetworkConfig(64, 0.2, pooling=False), seed=7, stage="autoencoder")
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    network = NetworkConfig(decoder_padding=False, latent_activation=False, decoder_relu=False)
    config = TrainConfig(network, labels=300, keep="best", patience=3, class_weights=True, steps_per_epoch=9)
    assert config.to_json()["network"]["decoder_padding"] is False
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_network_of_another_shape_survives_json() -> None:
    config = TrainConfig(NetworkConfig(channels=3, size=64))
    assert config.to_json()["network"] | {"channels": 3, "size": 64} == config.to_json()["network"]
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(("name", "value"), [("channels", 3), ("size", 56)])
def test_the_robust_recipe_is_for_grey_images_of_28_pixels(name: str, value: int) -> None:
    with pytest.raises(UsageError, match=rf"{name} \(={value}\) must come with recipe=paper, not recipe=robust"):
        TrainConfig(NetworkConfig(**{name: value}), robust=ROBUST)  # type: ignore[arg-type]


def test_a_missing_key_takes_its_default_and_an_unknown_one_is_refused() -> None:
    assert TrainConfig.from_json({"seed": 3, "network": {"latent_dim": 8}}) == TrainConfig(NetworkConfig(8), seed=3)
    with pytest.raises(UsageError, match="TrainConfig has no momentum, wings"):
        TrainConfig.from_json({"wings": 2, "momentum": 0.9})
    with pytest.raises(UsageError, match="NetworkConfig has no depth"):
        TrainConfig.from_json({"network": {"depth": 3}})


@pytest.mark.parametrize(("labels", "passes"), [(None, 1), (1, 5000), (100, 50), (300, 16), (3000, 1), (50_000, 1)])
def test_an_epoch_with_few_labels_goes_over_them_again(labels: int | None, passes: int) -> None:
    assert TrainConfig(labels=labels).passes == passes
    count = labels or 50_000
    assert TrainConfig(labels=labels).images_of_epoch("classifier", count) == passes * count
    equal = TrainConfig(labels=labels, steps_per_epoch=7)
    assert equal.images_of_epoch("classifier", count) == 700 and equal.images_of_epoch("autoencoder", 40) == 40


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"latent_dim": 0}, r"latent_dim \(=0\) must be an integer from 1"),
        ({"dropout": 1.0}, r"dropout \(=1.0\) must be at least 0 and below 1"),
        ({"dropout": float("nan")}, r"dropout \(=nan\)"),
        ({"dropout_position": "never"}, r"dropout_position \(=never\) must be one of before-pooling, after-pooling"),
        ({"class_count": 1}, r"class_count \(=1\)"),
        ({"dropout": "0.1"}, r"dropout \(=0.1\) must be a float"),
        ({"pooling": "yes"}, r"pooling \(=yes\) must be a bool"),
        ({"channels": 2}, r"channels \(=2\) must be one of 1, 3"),
        ({"channels": True}, r"channels \(=True\) must be one of 1, 3"),
        ({"size": 32}, r"size \(=32\) must be one of 28, 56, 64"),
        ({"size": 64.0}, r"size \(=64.0\) must be one of 28, 56, 64"),
        ({"decoder_relu": 1}, r"decoder_relu \(=1\) must be a bool"),
        ({"pooling": False, "decoder_padding": False}, r"decoder_padding \(=False\) must come with pooling"),
    ],
)
def test_a_network_out_of_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NetworkConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate \(=0.0\) must be above 0"),
        ({"learning_rate": float("inf")}, r"learning_rate \(=inf\)"),
        ({"batch_size": 0}, r"batch_size \(=0\)"),
        ({"epochs": 0}, r"epochs \(=0\)"),
        ({"seed": -1}, r"seed \(=-1\)"),
        ({"threads": 0}, r"threads \(=0\)"),
        ({"device": "tpu"}, r"device \(=tpu\) must be one of cpu, cuda"),
        ({"stage": "third"}, r"stage \(=third\)"),
        ({"stage": "classifier"}, r"stage \(=classifier\) must come with autoencoder_from \(--from\)"),
        ({"steps_per_epoch": 0}, r"steps_per_epoch \(=0\) must be an integer from 1 to 10,000"),
        ({"steps_per_epoch": 9, "stage": "autoencoder"}, r"steps_per_epoch \(=9\) must come with a classifier"),
        ({"steps_per_epoch": 9, "robust": ROBUST}, r"steps_per_epoch \(=9\) must come with recipe=paper"),
        ({"keep": "first"}, r"keep \(=first\) must be one of last, best"),
        ({"patience": 0}, r"patience \(=0\) must be an integer from 1 to 10,000"),
        ({"class_weights": 2}, r"class_weights \(=2\) must be a bool"),
        ({"class_weights": True, "stage": "autoencoder"}, r"class_weights \(=True\) must come with a classifier"),
        ({"keep": "best", "robust": ROBUST}, r"keep \(=best\) must come with recipe=paper, not recipe=robust"),
        ({"patience": 5, "robust": ROBUST}, r"patience \(=5\) must come with recipe=paper, not recipe=robust"),
        ({"labels": 0}, r"labels \(=0\) must be an integer from 1"),
        ({"labels": 9, "stage": "autoencoder"}, r"labels \(=9\) must come with a classifier, not stage=autoencoder"),
        ({"encoder_init": "random"}, r"encoder_init \(--encoder\) \(=random\) must come with stage=classifier"),
        ({"autoencoder_from": "runs/a"}, r"autoencoder_from \(--from\) \(=runs/a\) must come with stage=classifier"),
        (
            {"stage": "autoencoder", "encoder_training": "frozen"},
            r"encoder_training \(--freeze-encoder\) \(=frozen\) must come with a classifier, not stage=autoencoder",
        ),
    ],
)
def test_a_run_out_of_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**values)


def test_a_recipe_is_data() -> None:
    assert (TrainConfig().recipe, TrainConfig(robust=ROBUST).recipe) == ("paper", "robust")
    assert "robust" not in TrainConfig().to_json()  # the paper's runs are described as before
    config = TrainConfig(robust=replace(ROBUST, strong_share=0.25))
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.stages == ("autoencoder", "teacher", "classifier")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strong_share": 1.5}, r"strong_share \(=1\.5\) must be from 0 to 1"),
        ({"teacher_epochs": 0}, r"teacher_epochs \(=0\) must be an integer from 1"),
        ({"distillation_temperature": 0}, r"distillation_temperature \(=0\) must be above 0"),
        ({"negatives": 2.5}, r"negatives \(=2\.5\) must be an integer"),
    ],
)
def test_a_recipes_setting_out_of_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(ROBUST, **values)


def test_the_robust_recipe_takes_a_decoder_with_and_without_the_edge() -> None:
    for padding in (True, False):
        config = TrainConfig(NetworkConfig(decoder_padding=padding), robust=ROBUST)
        assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
