"""Several objectives of one model at once."""

from dataclasses import dataclass

from torch import nn

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives.base import Batch, Loss, LossFunction, Objective
from fewstep.objectives.energy_score import EnergyScoreObjective
from fewstep.objectives.stmd import STMD


@dataclass(frozen=True, kw_only=True)
class Term:
    """An objective and its factor in the sum, above 0."""

    objective: Objective
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"the weight of a term is above 0, not {self.weight}: leave the term out")


@dataclass(frozen=True, kw_only=True)
class WeightedSum(Objective):
    """`sum_k weight_k loss_k`, each term with randomness of its own, in the order of the terms.

    The default is our hybrid: STMD, and the energy score of one-step draws where STMD trains least. `raw`, `bucket` and
    `times` are those of the first term; the log has every term's loss by its number and class. Raises `UserError` where
    there is no term.
    """

    terms: tuple[Term, ...] = (Term(objective=STMD(adaptive_power=0.0)), Term(objective=EnergyScoreObjective()))

    def __post_init__(self) -> None:
        if not self.terms:
            raise UserError("a sum of objectives needs at least one term")

    @property
    def sees_the_batch(self) -> bool:  # type: ignore[override]
        return any(term.objective.sees_the_batch for term in self.terms)

    @property
    def num_times(self) -> int:  # type: ignore[override]
        return self.terms[0].objective.num_times

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        return _sum(self, [term.objective for term in self.terms], model, batch, generator)

    def build(self) -> LossFunction:
        built = [term.objective.build() for term in self.terms]
        return _BuiltSum(self, built) if any(isinstance(b, nn.Module) for b in built) else self


class _BuiltSum(nn.Module):
    """A sum some of whose terms have weights or state of their own."""

    def __init__(self, config: WeightedSum, functions: list[LossFunction]):
        super().__init__()
        self.config, self.functions = config, functions
        self.modules_of_terms = nn.ModuleList(f for f in functions if isinstance(f, nn.Module))

    def forward(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        return _sum(self.config, self.functions, model, batch, generator)


def _sum(
    config: WeightedSum, functions: list[LossFunction], model: PosteriorFlow, batch: Batch, generator: Source
) -> Loss:
    losses = [function(model, batch, generator) for function in functions]
    weighted = [term.weight * loss.per_sample for term, loss in zip(config.terms, losses, strict=True)]
    total = weighted[0]
    for other in weighted[1:]:
        total = total + other
    logs = dict(losses[0].logs)
    for i, (term, loss) in enumerate(zip(config.terms, losses, strict=True)):
        logs[f"term_{i}_{type(term.objective).__name__}"] = loss.per_sample.detach()
    return Loss(per_sample=total, raw=losses[0].raw, logs=logs, times=losses[0].times)
