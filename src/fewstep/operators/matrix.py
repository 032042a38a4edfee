"""Any linear operator that fits in memory: a matrix."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.operators.closed_forms import Decomposed
from fewstep.shapes import flat


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix(Decomposed):
    """`y = M x` for flattened items: M is `(m, d)`, d the number of entries of an item, y `(batch, m)`.

    Decomposed once. Raises `UserError` where M does not fit the items or is not finite.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        d = math.prod(self.item_shape)
        if self.matrix.ndim != 2 or self.matrix.shape[1] != d or not len(self.matrix):
            raise UserError(
                f"a matrix {tuple(self.matrix.shape)} for items {self.item_shape}: give one of shape (m, {d})"
            )
        if not self.matrix.isfinite().all():
            raise UserError("the matrix holds NaN or infinity: give finite numbers")

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (len(self.matrix),)

    @cached_property
    def singular_values(self) -> Tensor:
        return self._svd[1]

    def A(self, x: Tensor) -> Tensor:
        self.check_items(x)
        return flat(x) @ self.matrix.detach().to(x).T

    def A_adjoint(self, y: Tensor) -> Tensor:
        self.check_measurements(y)
        return (y @ self.matrix.detach().to(y)).reshape(-1, *self.item_shape)

    def U_adjoint(self, y: Tensor) -> Tensor:
        return y @ self._svd[0].to(y)

    def V(self, coefficients: Tensor) -> Tensor:
        return (coefficients @ self._svd[2].to(coefficients)).reshape(-1, *self.item_shape)

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.linalg.svd(self.matrix.detach().double(), full_matrices=False)
