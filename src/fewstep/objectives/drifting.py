"""Drifting: a generator is trained along the field from its own samples to the data (arXiv 2602.04770)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fewstep.draws import Source, normal_like
from fewstep.drift_regression import DriftRegression
from fewstep.encoders.base import Encoder
from fewstep.errors import UserError
from fewstep.feature_drift import Clouds, FeatureDrift
from fewstep.models.generator import Generator
from fewstep.objectives.base import Batch, Loss, LossFunction, Objective
from fewstep.processes import gathered
from fewstep.ring_buffer import RingBuffer


@dataclass(frozen=True, kw_only=True)
class Drifting(Objective):
    """`|| x / S - sg( x / S + V~(x) ) ||^2 / C`, x = G(z), V~ the field from all x of the step to its data (section 3).

    `regression` has kernel, normalisation, temperatures and scales. With an `encoder` the same is done in each of its features,
    and the losses are summed; the items themselves are one of them. With `most_places`, maps with more places than that
    are seen by the means and deviations of their patches alone (`encoders.pooled`), which costs less.

    The negatives are the x of the step, without the point itself; or with `independent` a second batch of samples, without a
    gradient, so that x is no negative at all; with `queue` above 0 the latest so many samples of earlier steps stand beside them.
    On several processes the field is that of the joint batch. `per_sample` is a mean over components, other than the
    sums of most objectives; with one temperature and `equalise` it is exactly 1 in the mean: watch `drift_rms` in the log.

    Raises `UserError` for a batch of fewer than two, data and samples that are all one point, an encoder that is not frozen, and
    features that are not finite.
    """

    regression: DriftRegression = DriftRegression()
    encoder: Encoder | None = None
    most_places: int | None = None
    independent: bool = False
    queue: int = 0

    def __post_init__(self) -> None:
        if self.most_places is not None and self.most_places < 1:
            raise UserError(f"most_places counts from 1 up, or is None, not {self.most_places}")
        if self.queue < 0:
            raise UserError(f"a queue holds 0 items or more, not {self.queue}")

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
        )
        return _Drift(self, drift, RingBuffer(item_shape, self.queue) if self.queue else None)


class _Drift(nn.Module):
    """The objective with its queue, which is stored with a checkpoint; the drift's encoder is neither trained nor stored."""

    def __init__(self, config: Drifting, drift: FeatureDrift, queue: RingBuffer | None):
        super().__init__()
        self.config, self.drift, self.queue = config, drift, queue

    def forward(self, model: Generator, batch: Batch, generator: Source) -> Loss:
        x_0 = batch["x_0"]
        if model.num_classes or model.max_strength > 1:
            raise UserError(
                "Drifting trains neither classes nor a strength of guidance: take objectives.GuidedDrifting"
            )
        x = model(normal_like(x_0, generator))
        negatives = None
        if self.config.independent:
            with torch.no_grad():
                negatives = model(normal_like(x_0, generator))[None]
        beside = None if self.queue is None or not int(self.queue.held) else self.queue.all()[None].to(x)
        clouds = Clouds(x=x[None], positives=x_0[None], negatives=negatives, beside=beside)
        per_sample, raw, logs = self.drift(clouds, generator)
        if self.queue is not None:
            self.queue.push(gathered(x, generator))
        return Loss(per_sample=per_sample, raw=raw, logs=logs)
