"""What a measurement `y = A(x_0) + noise` is, in deepinv's names and conventions.

Items x are `(batch, *item_shape)`, an image `(batch, channels, height, width)` or a vector `(batch, d)`; measurements y are
`(batch, *y_shape)`. With `<., .>` the sum over all entries of an item, a linear A has moreover
- the adjoint, `<A x, y> = <x, A_adjoint y>`;
- the Moore-Penrose inverse: of all x at which `||A x - y||` is least, `A_dagger y` is the one whose `||x||` is least;
- `prox_l2(z, y, gamma) = argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2`, gamma >= 0 one number or one per item `(batch,)`.
  It is the mean of x given y where `x ~ N(z, r^2 I)`, `y ~ N(A x, sigma^2 I)` and `gamma = r^2 / sigma^2`.

Whatever has these methods is an operator, so that a physics of deepinv is one as it stands. Ours moreover know their shapes,
and check them. Every A is differentiable by autograd and computes in the dtype and on the device of what it is given.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.operators.conjugate_gradients import conjugate_gradients
from fewstep.shapes import per_item


@runtime_checkable  # for the type checks of the test run
class Operator(Protocol):
    """What maps items x to clean measurements: `A(x)`."""

    def A(self, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class Linear(Operator, Protocol):
    """A linear operator: what `is_linear` finds."""

    def A_adjoint(self, y: Tensor, /) -> Tensor: ...

    def A_dagger(self, y: Tensor, /) -> Tensor: ...

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float, /) -> Tensor: ...


def is_linear(operator: Operator) -> TypeGuard[Linear]:
    """Whether the operator offers `A_adjoint`, `A_dagger` and `prox_l2`.

    All three, because deepinv gives its phase retrieval the first two: an adjoint and an inverse of its linear part.
    """
    # the methods are asked for because deepinv's physics are none of our classes
    return all(callable(getattr(operator, name, None)) for name in ("A_adjoint", "A_dagger", "prox_l2"))


def check_observation(operator: Operator, y: Tensor) -> None:
    """`UserError` where y holds NaN or infinity or, where the operator knows its shapes, does not fit it."""
    if isinstance(operator, ShapedOperator):
        operator.check_measurements(y)
    bad = int((~y.isfinite()).reshape(len(y), -1).any(1).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(y)} measurements hold NaN or infinity, finite numbers expected: set missing entries to 0 and "
            "leave them out with an Inpainting mask, or drop these measurements"
        )


@dataclass(frozen=True, kw_only=True)
class ShapedOperator(ABC):
    """An operator for items of the shape `item_shape`. Raises `UserError` for anything else."""

    item_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.item_shape or min(self.item_shape) < 1:
            raise UserError(
                f"items of shape {self.item_shape}: give item_shape=(channels, height, width) or (d,), 1 or more of each"
            )

    @property
    @abstractmethod
    def y_shape(self) -> tuple[int, ...]:
        """The shape of one measurement."""

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:
        """The clean measurements `(batch, *y_shape)` of items `(batch, *item_shape)`."""

    def check_items(self, x: Tensor) -> None:
        """`UserError` unless x is `(batch, *item_shape)`."""
        _check(x, self.item_shape, f"{type(self).__name__} for items {self.item_shape}")

    def check_measurements(self, y: Tensor) -> None:
        """`UserError` unless y is `(batch, *y_shape)`."""
        _check(y, self.y_shape, f"{type(self).__name__} with measurements {self.y_shape}")


class LinearOperator(ShapedOperator):
    """A linear operator: from A and its adjoint, `A_dagger` and `prox_l2` follow by conjugate gradients.

    They stop at `tolerance`, a share of `||A_adjoint y||` for the inverse, or warn after `iterations` (see
    `conjugate_gradients`). A subclass overrides them where it has a closed form.
    """

    # no fields: a closed form has no use for them, and a subclass that has one may declare them as fields
    tolerance = 1e-6
    iterations = 1000

    @abstractmethod
    def A_adjoint(self, y: Tensor) -> Tensor:
        """The x, `(batch, *item_shape)`, with `<x, .> = <y, A .>`."""

    def A_dagger(self, y: Tensor) -> Tensor:
        """Of all x at which `||A x - y||` is least, the one whose `||x||` is least."""
        self.check_measurements(y)
        return self._solve(lambda x: self.A_adjoint(self.A(x)), self.A_adjoint(y))

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """`argmin_x gamma/2 ||A x - y||^2 + 1/2 ||x - z||^2`: `(I + gamma A'A) (x - z) = gamma A'(y - A z)`."""
        factor = per_item(self.check_prox(z, y, gamma), z)
        return z + self._solve(lambda x: x + factor * self.A_adjoint(self.A(x)), factor * self.A_adjoint(y - self.A(z)))

    def check_prox(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        """The factor gamma as a tensor, `()` or `(batch,)`. `UserError` where z, y and gamma do not fit each other."""
        self.check_items(z)
        self.check_measurements(y)
        if len(z) != len(y):
            raise UserError(f"{len(z)} items and {len(y)} measurements: give one measurement for each item")
        factor = torch.as_tensor(gamma, dtype=z.dtype, device=z.device)
        if factor.shape not in ((), (len(z),)) or not ((factor >= 0) & factor.isfinite()).all():
            raise UserError(f"gamma is a finite number from 0 up, or one for each of the {len(z)} items, not {gamma}")
        return factor

    def _solve(self, matrix: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
        return conjugate_gradients(matrix, b, tolerance=self.tolerance, iterations=self.iterations)


def check_image(operator: ShapedOperator) -> tuple[int, int, int]:
    """Channels, height and width of the operator's items. `UserError` where they are no images."""
    if len(operator.item_shape) != 3:
        raise UserError(
            f"{type(operator).__name__} is for images, given items {operator.item_shape}: "
            "give item_shape=(channels, height, width)"
        )
    c, h, w = operator.item_shape
    return c, h, w


def _check(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(x.shape[1:]) != shape:
        raise UserError(f"{what}, given {tuple(x.shape)}: give (batch, {', '.join(map(str, shape))})")
    if not x.is_floating_point():
        raise UserError(f"{what}, given {x.dtype}: give floating-point numbers, images in [-1, 1]")
