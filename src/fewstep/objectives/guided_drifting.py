"""Drifting by classes, with classifier-free guidance learnt in training (arXiv 2602.04770, section 3.4 and appendix A.7)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.draws import Shard, Source, normal, uniform
from fewstep.drift_regression import DriftRegression
from fewstep.encoders.base import Encoder
from fewstep.errors import UserError
from fewstep.feature_drift import Clouds, FeatureDrift
from fewstep.models.generator import Generator
from fewstep.objectives.base import Batch, Loss, LossFunction, Objective
from fewstep.processes import gathered
from fewstep.ring_buffer import RingBuffer
from fewstep.times import check_share


@dataclass(frozen=True, kw_only=True)
class GuidedDrifting(Objective):
    """`Drifting` in `groups` of one class c: `draws` samples `G(z, c, alpha)` against `positives` items of c.

    The negatives of a group are its own samples and `unconditional` items of any class, each of the weight `w = (alpha - 1)
    (draws - 1) / unconditional`, so that their law is `(q_c + (alpha - 1) p) / alpha` and the field is 0 at `q_c = alpha p_c -
    (alpha - 1) p`: guidance of strength alpha, by one evaluation of the network. (Where that is negative somewhere it is no law,
    and there is no zero.) `alpha ~ alpha^-power` on `[1, model.max_strength]`, and 1 with probability `plain_share`.

    Items come from queues of the latest `class_queue` of each class and the latest `queue` of all, filled by every batch; they
    are stored with a checkpoint. `num_classes` is that of the data; 0 makes groups of any items. `per_sample` is the mean of
    each group, `(groups,)`, whatever the batch. Raises `UserError` where a number is out of range, the data or the model have
    other classes, and where several processes do not divide the groups.
    """

    regression: DriftRegression = DriftRegression()
    encoder: Encoder | None = None
    most_places: int | None = None
    num_classes: int = 0
    groups: int = 8
    draws: int = 16
    positives: int = 16
    unconditional: int = 8
    class_queue: int = 128
    queue: int = 1000
    power: float = 3.0
    plain_share: float = 0.0

    def __post_init__(self) -> None:
        if min(self.groups, self.positives, self.unconditional) < 1 or self.draws < 2 or self.num_classes < 0:
            raise UserError(
                "groups, positives and unconditional items count from 1 up, draws from 2: a field needs others"
            )
        if self.class_queue < self.positives or self.queue < self.unconditional:
            raise UserError(
                f"a queue holds what a step asks for: at least {self.positives} of a class, {self.unconditional} of all"
            )
        if not abs(self.power) <= 100:
            raise UserError(f"the power of the law of strengths lies in [-100, 100], not {self.power}")
        check_share("plain_share", self.plain_share)

    @property
    def sees_the_batch(self) -> bool:
        return True

    def __call__(self, model: Generator, batch: Batch, generator: Source) -> Loss:
        return self.build(model.item_shape)(model, batch, generator)

    def build(self, item_shape: tuple[int, ...] = (), data: Path | None = None) -> LossFunction:
        drift = FeatureDrift(
            regression=self.regression,
            encoder=None if self.encoder is None else self.encoder.build(item_shape, data),
            most_places=self.most_places,
            by_group=True,
        )
        return _Guided(self, drift, item_shape)


class _Guided(nn.Module):
    """The objective with its queues, which are stored with a checkpoint; the drift's encoder is neither trained nor stored."""

    def __init__(self, config: GuidedDrifting, drift: FeatureDrift, item_shape: tuple[int, ...]):
        super().__init__()
        self.config, self.drift = config, drift
        self.by_class = RingBuffer(item_shape, config.class_queue, max(config.num_classes, 1))
        self.of_all = RingBuffer(item_shape, config.queue)

    def forward(self, model: Generator, batch: Batch, generator: Source) -> Loss:
        c = self.config
        self._push(model, batch, generator)
        k = self._own_groups(generator)
        x_0 = batch["x_0"]
        known = self._known()
        rows = known[(uniform((k,), generator, like=x_0) * len(known)).long().clamp_max(len(known) - 1)]
        alpha = strengths(k, model.max_strength, c.power, c.plain_share, generator, x_0)
        z = normal((k, c.draws, *model.item_shape), generator, like=x_0)
        labels = rows.repeat_interleave(c.draws) if c.num_classes else None
        x = model(z.flatten(0, 1), labels, alpha.repeat_interleave(c.draws)).reshape(z.shape)
        positives = self.by_class.draw(rows, min(c.positives, int(self.by_class.held[known].min())), generator).to(x)
        anyone = torch.zeros(k, dtype=torch.int64, device=x.device)
        beside = self.of_all.draw(anyone, min(c.unconditional, int(self.of_all.held)), generator).to(x)
        field = c.regression.field
        own = c.draws - int(field.exclude_self and field.normalisation != "sinkhorn")  # negatives that a sample has
        clouds = Clouds(
            x=x,
            positives=positives,
            beside=beside,
            beside_weight=(alpha - 1) * own / beside.shape[1],
        )
        per_sample, raw, logs = self.drift(clouds, generator)
        of_groups = [numbers.reshape(k, c.draws).mean(1) for numbers in (per_sample, raw, *logs.values())]
        return Loss(per_sample=of_groups[0], raw=of_groups[1], logs=dict(zip(logs, of_groups[2:], strict=True)))

    def _push(self, model: Generator, batch: Batch, generator: Source) -> None:
        c, x_0 = self.config, batch["x_0"]
        if model.num_classes != c.num_classes:
            raise UserError(
                f"the objective is of {c.num_classes} classes, the generator of {model.num_classes}: make them equal"
            )
        everyone = gathered(x_0, generator)
        self.of_all.push(everyone)
        if c.num_classes == 0:
            self.by_class.push(everyone)
            return
        if "labels" not in batch:
            raise UserError("the data has no labels: take objectives.Drifting, or num_classes = 0")
        labels = gathered(batch["labels"], generator)
        if labels.shape != everyone.shape[:1] or labels.is_floating_point():
            raise UserError(
                f"labels {labels.dtype} {tuple(labels.shape)} for {len(everyone)} items: give one integer for each"
            )
        if int(labels.min()) < 0 or int(labels.max()) >= c.num_classes:
            raise UserError(
                f"the data has labels {int(labels.min())} .. {int(labels.max())}, the objective {c.num_classes} classes: make "
                "them equal, and count from 0"
            )
        self.by_class.push(everyone, labels)

    def _own_groups(self, generator: Source) -> int:
        count = generator.count if isinstance(generator, Shard) else 1
        if self.config.groups % count:
            raise UserError(
                f"{self.config.groups} groups are not divisible by the {count} processes: change one of them"
            )
        return self.config.groups // count

    def _known(self) -> Tensor:
        """The classes whose queues hold all the positives that a group asks for; while there are none, those that hold any."""
        held = self.by_class.held
        enough = held >= self.config.positives
        return torch.nonzero(enough if enough.any() else held)[:, 0]


def strengths(n: int, high: float, power: float, plain_share: float, generator: Source, like: Tensor) -> Tensor:
    """`(n,)` strengths with density in proportion to `alpha^-power` on [1, high], or 1 with probability `plain_share`."""
    u, plain = uniform((n,), generator, like=like), uniform((n,), generator, like=like) < plain_share
    alpha = high**u if power == 1 else (1 + u * (high ** (1 - power) - 1)) ** (1 / (1 - power))
    return torch.where(plain, torch.ones_like(alpha), alpha.clamp(1, high))
