"""What every sampler is."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.models.base import Model
from fewstep.times import Grid


class Sampler(ABC):
    """Turns noise into samples with a model; hyper-parameters are the fields of a frozen dataclass.

    `draws_from` is the kind of model that it takes.
    """

    draws_from: ClassVar[type[Model]] = Model

    @abstractmethod
    def __call__(self, model: Any, noise: Tensor, generator: Source = None) -> Tensor:
        """`x_0` `(batch, ...)` from standard normal noise `(batch, ...)`; other randomness is drawn from the generator."""

    @property
    @abstractmethod
    def nfe(self) -> int:
        """Network evaluations for each sample."""

    @property
    def takes_steps(self) -> bool:
        """Whether its number of steps can be chosen; it is 1 where not."""
        return True

    def with_nfe(self, budget: int) -> Any:
        """The sampler with the largest number of steps whose `nfe` is within the budget; at least 1 step."""
        if not self.takes_steps:
            return self
        steps = 1
        while self.with_steps(steps + 1).nfe <= budget:
            steps += 1
        return self.with_steps(steps)

    def with_steps(self, steps: int | None = None, flow_steps: int | None = None) -> Any:
        """The sampler with other numbers of steps; None leaves one as it is. `UserError` where it has no such number.

        A custom grid gives way to an even one where it does not have the new number of steps. A sampler that wraps
        another one (a field `sampler`) hands the number of steps on.
        """
        changes: dict[str, Any] = {
            name: value for name, value in (("steps", steps), ("flow_steps", flow_steps)) if value is not None
        }
        if not self.takes_steps and set(changes.values()) <= {1}:
            return self
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        if isinstance(inner := values.get("sampler"), Sampler) and flow_steps is None:
            return dataclasses.replace(self, sampler=inner.with_steps(steps))  # type: ignore[type-var]
        wrapped = isinstance(values.get("sampler"), Sampler)  # its numbers of steps are the inner one's
        unknown = [name for name in changes if name not in values and not (wrapped and name == "steps")]
        if unknown and not self.takes_steps:
            raise UserError(
                f"{type(self).__name__} has no {', '.join(unknown)}: it is one call of the network; leave it out"
            )
        if unknown:
            raise UserError(f"{type(self).__name__} has no {', '.join(unknown)}: it takes the posterior's mean or a derivative, "
                            "not draws by a flow; leave it out")  # fmt: skip
        if steps is not None and isinstance(values.get("grid"), Grid):
            changes["grid"] = values["grid"].for_steps(steps)
        if (
            flow_steps is not None
            and values.get("flow_grid") is not None
            and len(values["flow_grid"]) != flow_steps + 1
        ):
            changes["flow_grid"] = None
        return dataclasses.replace(self, **changes) if changes else self  # type: ignore[type-var]


def step_counts(sampler: Sampler) -> dict[str, int]:
    """N and M of a sampler, `{"steps", "flow_steps"}`; of one that wraps another, the inner one's N."""
    if not sampler.takes_steps:
        return {"steps": 1, "flow_steps": 1}
    fields = vars(sampler)
    if isinstance(inner := fields.get("sampler"), Sampler):
        return step_counts(inner) | {"flow_steps": 1}
    return {"steps": fields["steps"], "flow_steps": fields.get("flow_steps", 1)}


def check_steps(steps: int, grid: Grid) -> None:
    """`UserError` where the number of steps is not a whole number from 1 up, or the grid is none."""
    if not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps is a whole number from 1 up, not {steps}")
    if not isinstance(grid, Grid):
        raise UserError(f"grid is a fewstep.times.Grid, such as LogSNRGrid() or CustomGrid(times=...), not {grid!r}")


def check_model(sampler: Sampler, model: Any) -> None:
    """`UserError` where the model is not of the kind that the sampler draws from."""
    if not isinstance(model, sampler.draws_from):
        raise UserError(
            f"{type(sampler).__name__} draws from a {sampler.draws_from.__name__}, and {type(model).__name__} is none: "
            "use the sampler that the model was saved with"
        )
