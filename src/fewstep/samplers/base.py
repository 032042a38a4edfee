"""What every sampler is."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.times import Grid


class Sampler(ABC):
    """Turns noise into samples with a model; hyper-parameters are the fields of a frozen dataclass."""

    @abstractmethod
    def __call__(self, model: Any, noise: Tensor, generator: Source = None) -> Tensor:
        """`x_0` `(batch, ...)` from standard normal noise `(batch, ...)`; other randomness is drawn from the generator."""

    def with_steps(self, steps: int | None = None, flow_steps: int | None = None) -> Any:
        """The sampler with other numbers of steps; None leaves one as it is. `UserError` where it has no such number.

        A custom grid gives way to an even one where it does not have the new number of steps.
        """
        changes: dict[str, Any] = {
            name: value for name, value in (("steps", steps), ("flow_steps", flow_steps)) if value is not None
        }
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        unknown = [name for name in changes if name not in values]
        if unknown:
            raise UserError(f"{type(self).__name__} has no {', '.join(unknown)}")
        if steps is not None and isinstance(values.get("grid"), Grid):
            changes["grid"] = values["grid"].for_steps(steps)
        if (
            flow_steps is not None
            and values.get("flow_grid") is not None
            and len(values["flow_grid"]) != flow_steps + 1
        ):
            changes["flow_grid"] = None
        return dataclasses.replace(self, **changes) if changes else self  # type: ignore[type-var]
