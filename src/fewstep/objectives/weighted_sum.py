"""Several objectives of one model at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives.base import Batch, Loss, LossFunction, Objective
from fewstep.objectives.energy_score import EnergyScoreObjective
from fewstep.objectives.stmd import STMD


@dataclass(frozen=True, kw_only=True)
class WeightedSum(Objective):
    """`sum_k weights_k loss_k` over the `terms`, each with randomness of its own, in their order.

    The default is our hybrid: STMD, and the energy score of one-step draws where STMD trains least. `raw`, `bucket` and
    `times` are those of the first term; the log has every term's loss by its number and class. Raises `UserError` where
    there is no term, or the weights are not one for each, above 0.
    """

    terms: tuple[Objective, ...] = (STMD(adaptive_power=0.0), EnergyScoreObjective())
    weights: tuple[float, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not self.terms or len(self.terms) != len(self.weights) or not min(self.weights) > 0:
            raise UserError(
                f"a sum of objectives needs at least one term, and for each a weight above 0 (leave out what is to weigh "
                f"nothing): {len(self.terms)} terms, weights {self.weights}"
            )

    @property
    def sees_the_batch(self) -> bool:
        return any(term.sees_the_batch for term in self.terms)

    @property
    def num_times(self) -> int:
        return self.terms[0].num_times

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        return _sum(self, list(self.terms), model, batch, generator)

    def build(self, item_shape: tuple[int, ...] = (), data: Path | None = None) -> LossFunction:
        built = [term.build(item_shape, data) for term in self.terms]
        return self if built == list(self.terms) else _BuiltSum(self, built)


class _BuiltSum(nn.Module):
    """A sum some of whose terms are more than themselves when built: with weights or state of their own, or a teacher."""

    def __init__(self, config: WeightedSum, functions: list[LossFunction]):
        super().__init__()
        self.config, self.functions = config, functions
        self.modules_of_terms = nn.ModuleList(f for f in functions if isinstance(f, nn.Module))

    def forward(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        return _sum(self.config, self.functions, model, batch, generator)


def _sum(config: WeightedSum, functions: list[Any], model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
    losses = [function(model, batch, generator) for function in functions]
    weighted = [weight * loss.per_sample for weight, loss in zip(config.weights, losses, strict=True)]
    total = torch.stack(weighted).sum(0)
    logs = dict(losses[0].logs)
    for i, (term, loss) in enumerate(zip(config.terms, losses, strict=True)):
        logs[f"term_{i}_{type(term).__name__}"] = loss.per_sample.detach()
    return Loss(per_sample=total, raw=losses[0].raw, logs=logs, times=losses[0].times)
