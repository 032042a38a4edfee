"""Numbers that say how sure they are: an estimate with its standard error, and a bound with the terms it is made of."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over random draws and the standard error of that mean; 0 where the number is exact."""

    value: float
    standard_error: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """The mean of independent `values` `(n,)`, n >= 2; the standard error is too large where they are stratified."""
        values = values.detach().double()
        return cls(value=values.mean().item(), standard_error=values.std().item() / math.sqrt(len(values)))

    def upper(self, errors: float = 4.0) -> float:
        """`value + errors * standard_error`."""
        return self.value + errors * self.standard_error

    def lower(self, errors: float = 4.0) -> float:
        """`value - errors * standard_error`."""
        return self.value - errors * self.standard_error


@dataclass(frozen=True, kw_only=True)
class Certificate(Estimate):
    """An upper bound on a *squared* Wasserstein-2 distance, in the squared units of the data.

    `terms`: what the bound is made of. `estimates`: the terms that are neither given nor unbiased means but sampled
    extremes, such as a Lipschitz constant seen on some states; where there are none, `upper()` exceeds the distance but
    for chance (and but for what the function that made it says it assumes).
    """

    terms: dict[str, float] = field(default_factory=dict)
    estimates: tuple[str, ...] = ()

    @property
    def w2(self) -> float:
        """The bound on the distance itself."""
        return math.sqrt(max(self.value, 0.0))


def stratified_times(n: int, generator: torch.Generator | None) -> Tensor:
    """One uniform time in each of n equal intervals of [0, 1], in random order, float64: `mean e(t)` is unbiased."""
    jitter = torch.rand(n, generator=generator, dtype=torch.float64)
    return (torch.arange(n, dtype=torch.float64) + jitter)[torch.randperm(n, generator=generator)] / n


def check_draws(name: str, n: int) -> None:
    """`UserError` where a number of draws is less than 2: a standard error needs two."""
    if n < 2:
        raise UserError(f"{name} is at least 2, so that there is a standard error, not {n}")


def positive(name: str, value: float | int) -> float | int:
    """The value; `UserError` where it is negative or NaN."""
    if not value >= 0:
        raise UserError(f"{name} is not negative, but {value} was given")
    return value
