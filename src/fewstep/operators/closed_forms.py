"""Two kinds of linear operators whose inverse and prox are closed forms.

With `A = U diag(s) V*` (orthonormal columns, `s != 0`), `A_dagger = V diag(1 / s) U*`, and since
`(I + gamma A'A)^-1 A' = V diag(conj(s) / (1 + gamma |s|^2)) U*`,
`prox_l2(z, y, gamma) = z + V diag(gamma conj(s) / (1 + gamma |s|^2)) U* (y - A z)`.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.operators.base import LinearOperator
from fewstep.shapes import per_item


class ScaledIsometry(LinearOperator):
    """A linear operator with `A A' A = c A`, all of whose singular values are `sqrt(c)` or 0, `c = gain > 0`.

    `A_dagger y = A'y / c`; `prox_l2(z, y, gamma) = z + gamma / (1 + gamma c) A'(y - A z)`.
    """

    @property
    @abstractmethod
    def gain(self) -> float:
        """c, the square of the singular values."""

    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y) / self.gain

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        factor = self.check_prox(z, y, gamma)
        return z + per_item(factor / (1 + factor * self.gain), z) * self.A_adjoint(y - self.A(z))


@dataclass(frozen=True, kw_only=True)
class Decomposed(LinearOperator):
    """A linear operator `A = U diag(s) V*` with its singular values, complex ones too.

    A singular value of less than `cutoff` times the largest counts as 0 in `A_dagger`, and there alone: `A A_dagger A` is A
    to this share. `A_dagger` enlarges errors of y, among them the rounding of float32 (1e-7), by up to `1 / cutoff`.
    Raises `UserError` unless `0 < cutoff < 1`.
    """

    cutoff: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cutoff < 1:
            raise UserError(f"cutoff is a share of the largest singular value between 0 and 1, not {self.cutoff}")

    @property
    @abstractmethod
    def singular_values(self) -> Tensor:
        """s, in the shape of coefficients or in one that broadcasts to it, in double precision."""

    @abstractmethod
    def U_adjoint(self, y: Tensor) -> Tensor:
        """The coefficients `U* y` `(batch, ...)` of measurements."""

    @abstractmethod
    def V(self, coefficients: Tensor) -> Tensor:
        """The items of coefficients."""

    def A_adjoint(self, y: Tensor) -> Tensor:
        self.check_measurements(y)
        coefficients = self.U_adjoint(y)
        return self.V(self.singular_values.to(coefficients).conj() * coefficients)

    def A_dagger(self, y: Tensor) -> Tensor:
        self.check_measurements(y)
        coefficients, s = self.U_adjoint(y), self.singular_values
        kept = s.abs() > self.cutoff * s.abs().max()
        inverse = torch.where(kept, 1 / torch.where(kept, s, 1), 0)
        return self.V(inverse.to(coefficients) * coefficients)

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        factor = self.check_prox(z, y, gamma)
        coefficients = self.U_adjoint(y - self.A(z))
        s, factor = self.singular_values.to(coefficients), per_item(factor, coefficients)
        return z + self.V(factor * s.conj() / (1 + factor * s.abs().square()) * coefficients)
