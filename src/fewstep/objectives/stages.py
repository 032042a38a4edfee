"""One objective after another: a warm start."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives.base import Batch, Loss, LossFunction, Objective
from fewstep.objectives.stmd import STMD


@dataclass(frozen=True, kw_only=True)
class Stages(Objective):
    """`first` for the share `until` of the training's steps, then `second`.

    The batch's `progress` says where the training is; without it, it is in the second stage. For example
    `Stages(first=Distillation(teacher=..., frac_r_below_t=0.0))` starts the posterior's velocity from a denoiser. Raises
    `UserError` unless `0 < until < 1`.
    """

    first: Objective = STMD(adaptive_power=0.0, frac_r_below_t=0.0)
    second: Objective = STMD(adaptive_power=0.0)
    until: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.until < 1:
            raise UserError(
                f"until is the share of the training that the first stage takes, in (0, 1), not {self.until}"
            )

    @property
    def sees_the_batch(self) -> bool:
        return self.first.sees_the_batch or self.second.sees_the_batch

    @property
    def num_times(self) -> int:
        first, second = self.first.num_times, self.second.num_times
        return first if first == second else 0

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        return self._stage(batch, self.first, self.second)(model, batch, generator)

    def _stage(self, batch: Batch, first: LossFunction, second: LossFunction) -> LossFunction:
        return first if "progress" in batch and bool(batch["progress"][0] < self.until) else second

    def build(self, item_shape: tuple[int, ...] = (), data: Path | None = None) -> LossFunction:
        first, second = self.first.build(item_shape, data), self.second.build(item_shape, data)
        return self if (first, second) == (self.first, self.second) else _BuiltStages(self, first, second)


class _BuiltStages(nn.Module):
    """Two stages, one or both of which are more than themselves when built."""

    def __init__(self, config: Stages, first: LossFunction, second: LossFunction):
        super().__init__()
        self.config, self.first, self.second = config, first, second

    def forward(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        return self.config._stage(batch, self.first, self.second)(model, batch, generator)
