"""Weights that look at the times only: how large the error is at these times, learnt beside the model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.networks.embedding import TimesEmbedding
from fewstep.objectives.base import Batch, Loss, LossFunction, Objective
from fewstep.objectives.stmd import STMD


@dataclass(frozen=True, kw_only=True)
class LearnedWeight(Objective):
    """`exp(-s(times)) loss + s(times)`, `s` a small network that starts at 0 (Karras et al. 2024, arXiv 2312.02696, eq. 14).

    At its best `s` is the log of the mean loss at these times, so that every interval of them counts the same. Unlike the
    adaptive weight (eq. 73) it does not look at the residual of the single draw, and so leaves the minimiser where it is.
    The times are those that the objective names in `Loss.times`: `(t, t - r, tau)` for STMD. `width` units. Called without
    `build`, s is 0. Raises `UserError` for an objective that names no times.
    """

    objective: Objective = STMD(adaptive_power=0.0)
    width: int = 64

    def __post_init__(self) -> None:
        if self.objective.num_times == 0:
            raise UserError(f"{type(self.objective).__name__} names no times that a weight could look at")

    @property
    def sees_the_batch(self) -> bool:
        return self.objective.sees_the_batch

    @property
    def num_times(self) -> int:
        return self.objective.num_times

    def __call__(self, model: Any, batch: Batch, generator: Source) -> Loss:
        return self.objective(model, batch, generator)

    def build(self, item_shape: tuple[int, ...] = (), data: Path | None = None) -> LossFunction:
        return _Weighted(self.objective.build(item_shape, data), self.num_times, self.width)


class _Weighted(nn.Module):
    """The objective and its network `s`."""

    def __init__(self, function: LossFunction, times: int, width: int):
        super().__init__()
        self.function = function
        self.log_error = TimesEmbedding(times, 1, width=width, features=16, blocks=1, max_frequency=10.0)
        nn.init.zeros_(self.log_error.out.weight)
        nn.init.zeros_(self.log_error.out.bias)

    def forward(self, model: Any, batch: Batch, generator: Source) -> Loss:
        loss = self.function(model, batch, generator)
        s = self.log_error(cast(Tensor, loss.times))[:, 0]
        logs = loss.logs | {"log_error": s.detach()}
        return replace(loss, per_sample=(-s).exp() * loss.per_sample + s, logs=logs)
