"""The robust recipe: a classifier that people can use on pictures of their own, in the paper's graph.

After the autoencoder come two stages. A teacher, a residual network, is trained on images that are changed as a user's
pictures may differ (:mod:`fmcae.train.augment`), and on negatives (:mod:`fmcae.train.negatives`). Then the classifier,
whose encoder starts from the autoencoder's, learns the teacher's labels beside the true ones, with batch normalization
that ends up in its weights. Both are moving averages over the steps of AdamW, whose learning rate rises and falls once.

The negatives are one more class, "unknown", whose logit is fixed at 0. So the networks keep one logit for each class,
and a picture's probability of being known is ``metrics.known_score`` of these.

Sources: Hinton, Vinyals and Dean 2015, arXiv:1503.02531 (distillation); Beyer et al. 2022, arXiv:2106.05237 (teacher
and student see the same changed image); Smith and Topin 2019, arXiv:1708.07120 (one cycle).
"""

import copy
import math
import time
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmcae.train.augment import augment
from fmcae.train.backend import PlainBackend, balanced_weights
from fmcae.train.config import RobustConfig
from fmcae.train.cpu import adam_state
from fmcae.train.cuda import Step, captured
from fmcae.train.measure import DeviceSplit, epoch_seed, evaluate, scale
from fmcae.train.negatives import negatives
from fmcae.train.networks import Autoencoder, Classifier, NormalizedClassifier, Teacher
from fmcae.train.progress import Progress
from fmcae.train.run import Run
from fmcae.train.weights import load_checkpoint, load_weights, save_checkpoint

Student: TypeAlias = NormalizedClassifier
WARM_UP = 0.2  # the share of the steps in which the learning rate rises
WITH_NEGATIVES = "train with negatives"  # a split
VIEW_BATCH = {"cpu": 250, "cuda": 1_000}  # images that are changed, and labelled, at a time


def train_stage(run: Run, stage: str, splits: dict[str, DeviceSplit], progress: Progress) -> Classifier | Teacher:
    """Train ``stage`` ("teacher" or "classifier") of a run with the robust recipe, from its checkpoint if it has one.

    The training images with their negatives stay in ``splits``, because the next stage takes the same.

    Returns:
        The network in evaluation mode; the classifier has the paper's layers.

    Raises:
        RunError: a file of the run is damaged.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(run.config.threads)
    try:
        return _Stage(run, stage, splits).train(progress)
    finally:
        torch.set_num_threads(before)


@dataclass
class Views:
    """Changed images with their labels, on the device, where they keep their place in memory.

    ``images`` is (N, 28, 28) uint8, ``labels`` (N,) int64, K for unknown, and ``soft_labels`` (N, K + 1) float32 are the
    teacher's probabilities at the distillation's temperature, None where there is no teacher.
    """

    images: Tensor
    labels: Tensor
    soft_labels: Tensor | None


class Average(nn.Module):
    """The moving average of a network's weights and buffers over its training steps, faster at first, when it is of few."""

    count: Tensor

    def __init__(self, network: Student | Teacher, decay: float) -> None:
        super().__init__()
        self.network, self.decay = copy.deepcopy(network), decay
        self.register_buffer("count", torch.zeros((), device=next(network.parameters()).device))

    @torch.no_grad()
    def update(self, network: Student | Teacher) -> None:
        """Move towards ``network``, whose first values are the average's first."""
        share = 1 - (self.count / (9 + self.count)).clamp_max(self.decay)
        self.count += 1
        for average, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(value, share)
            else:
                average.copy_(value)


class _Stage:
    """The training of one stage."""

    def __init__(self, run: Run, stage: str, splits: dict[str, DeviceSplit]) -> None:
        assert run.config.robust is not None
        self.run, self.stage, self.val = run, stage, splits["val"]
        self.settings: RobustConfig = run.config.robust
        self.device = splits["train"].labels.device
        self.data = _with_negatives(splits, run)
        self.network, self.teacher = self._networks(splits["train"].images)
        count, classes = len(self.data.labels), run.config.network.class_count + 1
        self.class_weights: Tensor | None = None
        if run.config.class_weights:  # those of the known; an unknown counts as the mean image
            self.class_weights = F.pad(balanced_weights(splits["train"].labels, classes - 1), (0, 1), value=1.0)
        self.views = Views(
            torch.zeros_like(self.data.images),
            torch.zeros_like(self.data.labels),
            None if self.teacher is None else torch.zeros(count, classes, device=self.device),
        )
        self.averaged = Average(self.network, self.settings.average_decay)
        self.both = nn.ModuleDict({"network": self.network, "average": self.averaged})  # what a checkpoint holds
        is_teacher = stage == "teacher"
        self.epochs = run.config.epochs_of(stage)
        self.learning_rate = (
            self.settings.teacher_learning_rate if is_teacher else self.settings.classifier_learning_rate
        )
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=torch.zeros((), device=self.device),  # a tensor, so that a captured step reads what is set outside it
            weight_decay=self.settings.weight_decay,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        for parameter in self.network.parameters():
            self.optimizer.state[parameter] = adam_state(parameter)

    def _networks(self, images: Tensor) -> tuple[Student | Teacher, Teacher | None]:
        config = self.run.config.network
        if self.stage == "teacher":
            return Teacher(config).to(self.device), None
        autoencoder, teacher = Autoencoder(config), Teacher(config)
        load_weights(autoencoder, self.run.weights("autoencoder"))
        load_weights(teacher, self.run.weights("teacher"))
        active = _active_units(autoencoder.to(self.device).eval(), images)
        return NormalizedClassifier(config, autoencoder.encoder, active).to(self.device), teacher.to(self.device).eval()

    def train(self, progress: Progress) -> Classifier | Teacher:
        run, stage, count = self.run, self.stage, len(self.data.labels)
        done = load_checkpoint(run.checkpoint, stage, self.both, self.optimizer.state)
        records = [old for old in run.metrics() if old["stage"] != stage or old.get("epoch", np.inf) <= done]
        progress.stage(stage, self.epochs, done + 1, count)
        step = self.step_for(progress)
        view_epochs = 1 if self.teacher is None else self.settings.view_epochs
        for epoch in range(done + 1, self.epochs + 1):
            started = time.perf_counter()
            if epoch == done + 1 or (epoch - 1) % view_epochs == 0:
                # seeded by their first epoch, so that a run that goes on between makes the same ones again
                torch.manual_seed(epoch_seed(run.config, stage, epoch - (epoch - 1) % view_epochs))
                self._make_views()
            torch.manual_seed(epoch_seed(run.config, stage, epoch) + 1)
            loss = self._train_epoch(step, epoch, progress)
            seconds = time.perf_counter() - started
            record: dict[str, Any] = {"stage": stage, "epoch": epoch, "train_loss": loss, **self._measure()}
            record |= {"seconds": round(seconds, 3), "images_per_second": round(count / seconds)}
            records.append(record)
            run.write_metrics(records)
            save_checkpoint(run.checkpoint, stage, epoch, self.both, self.optimizer.state)
            progress.record(record)
        return self._result()

    def step_for(self, progress: Progress) -> Step:
        """Return what trains once on the views at indices (B,)."""
        self.network.train()
        moments = (value for own in self.optimizer.state.values() for value in own.values())
        state = [*self.both.state_dict().values(), *moments]
        batch_size = min(self.settings.batch_size, len(self.views.labels))
        return captured(self._step, state, batch_size, progress)

    @torch.no_grad()
    def _make_views(self) -> None:
        """Change every image once, and let the teacher label it."""
        order, views = torch.randperm(len(self.data.labels)).to(self.device), self.views
        views.labels.copy_(self.data.labels[order])
        start = 0
        for batch in torch.split(order, VIEW_BATCH[self.device.type]):
            x = augment(scale(self.data.images[batch]), self.settings.strong_share)
            image = x.mul(255).round().to(torch.uint8)[:, 0]
            views.images[start : start + len(batch)] = image
            if self.teacher is not None and views.soft_labels is not None:
                logits = with_unknown(self.teacher(scale(image))) / self.settings.distillation_temperature
                views.soft_labels[start : start + len(batch)] = torch.softmax(logits, dim=1)
            start += len(batch)

    def _train_epoch(self, step: Step, epoch: int, progress: Progress) -> float:
        """Go over the views in shuffled batches, and return the mean loss."""
        order = torch.randperm(len(self.views.labels)).to(self.device)
        batches = torch.split(order, self.settings.batch_size)
        if len(batches) > 1 and len(batches[-1]) < 2:
            batches = batches[:-1]  # batch normalization needs two images
        total = torch.zeros((), device=self.device)
        for index, batch in enumerate(batches):
            progressed = ((epoch - 1) * len(batches) + index) / (self.epochs * len(batches))
            self.optimizer.param_groups[0]["lr"].fill_(self.learning_rate * one_cycle(progressed))
            loss = step(batch)
            total += loss
            progress.step(len(batch), loss)
        return float(total / len(batches))

    def _step(self, batch: Tensor) -> Tensor:
        """Train once on the views at indices (B,), and return the loss."""
        images = torch.index_select(self.views.images, 0, batch)
        loss = self._loss(with_unknown(self.network(scale(images))), batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.averaged.update(self.network)
        return loss.detach()

    def _loss(self, logits: Tensor, batch: Tensor) -> Tensor:
        own = F.cross_entropy(logits, torch.index_select(self.views.labels, 0, batch), self.class_weights)
        if self.views.soft_labels is None:
            return own
        temperature, weight = self.settings.distillation_temperature, self.settings.distillation
        soft_labels = torch.index_select(self.views.soft_labels, 0, batch)
        soft = F.cross_entropy(logits / temperature, soft_labels) * temperature**2
        return (1 - weight) * own + weight * soft

    def _result(self) -> Classifier | Teacher:
        network = self.averaged.network.eval()
        if isinstance(network, NormalizedClassifier):
            return network.folded().eval()
        assert isinstance(network, Teacher)
        return network

    def _measure(self) -> dict[str, float]:
        """The average's metrics on the validation images, and its accuracy on the same images mirrored."""
        backend = PlainBackend(self._result())
        mirrored = DeviceSplit(self.val.images.flip(-1), self.val.labels)
        values = {f"val_{name}": value for name, value in evaluate(backend, self.val)[0].items()}
        return values | {"val_mirrored_accuracy": evaluate(backend, mirrored)[0]["accuracy"]}


def with_unknown(logits: Tensor) -> Tensor:
    """Add the logit of the class "unknown", which is 0: (N, K) -> (N, K + 1)."""
    return F.pad(logits, (0, 1))


def one_cycle(progressed: float) -> float:
    """The learning rate as a share of the highest, at ``progressed`` in [0, 1] of the training: up, then down, to 0."""
    if progressed < WARM_UP:
        return 0.05 + 0.95 * progressed / WARM_UP
    return (1 + math.cos(math.pi * (progressed - WARM_UP) / (1 - WARM_UP))) / 2


@torch.no_grad()
def _active_units(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """Which units of z (latent_dim,) are above 0 for any of the images; all of them if none is.

    Of the paper's 128 two fifths never are. Left out of the classifier, they make it a third smaller in eight bits.
    """
    largest = torch.stack([autoencoder.encoder(scale(batch)).amax(0) for batch in torch.split(images, 1000)]).amax(0)
    return largest > 0 if (largest > 0).any() else torch.ones_like(largest)


def _with_negatives(splits: dict[str, DeviceSplit], run: Run) -> DeviceSplit:
    """The training images and, as class K, the negatives, which take minutes to draw: ``splits`` keeps both."""
    if WITH_NEGATIVES not in splits:
        assert run.config.robust is not None
        train = splits["train"]
        count = min(run.config.robust.negatives, len(train.labels))
        drawn = torch.from_numpy(negatives(train.images.cpu().numpy(), count, run.config.seed)).to(train.images.device)
        unknown = torch.full((count,), run.config.network.class_count, device=train.labels.device)
        splits[WITH_NEGATIVES] = DeviceSplit(torch.cat([train.images, drawn]), torch.cat([train.labels, unknown]))
    return splits[WITH_NEGATIVES]
