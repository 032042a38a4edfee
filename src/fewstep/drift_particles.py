"""Drifting without a network: points that move along the field."""

from collections.abc import Iterator

from torch import Tensor

from fewstep.drift import DriftingField
from fewstep.errors import UserError


def move(field: DriftingField, x: Tensor, positives: Tensor, rate: float, steps: int) -> Iterator[Tensor]:
    """`x <- x + rate V(x)`, x `(.., n, d)` its own negatives, positives `(.., m, d)`; yields x after each step.

    At a small rate the points follow the flow that training a generator approximates. Raises `UserError` unless the rate is above
    0 and there is a step.
    """
    if not 0 < rate < float("inf") or steps < 1:
        raise UserError(f"points move at a finite rate above 0, one step at least: not {rate}, {steps} steps")
    for _ in range(steps):
        x = x + rate * field(x, positives)
        yield x
