"""Super-resolution: the image is seen on a coarser grid, by averages or by bicubic interpolation.

Keys's cubic kernel (1981, eq. 4, a = -1/2) is `k(u) = 3/2 |u|^3 - 5/2 |u|^2 + 1` for `|u| <= 1`,
`-1/2 |u|^3 + 5/2 |u|^2 - 4 |u| + 2` for `1 < |u| < 2`, and 0 elsewhere.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from fewstep.errors import UserError
from fewstep.operators.base import ShapedOperator, check_image
from fewstep.operators.closed_forms import Decomposed, ScaledIsometry


@dataclass(frozen=True, kw_only=True)
class AveragePool(ScaledIsometry):
    """`y_ij` = the mean of x in block (i, j) of `factor x factor` pixels; images `(c, h, w)` to `(c, h // factor, w // factor)`.

    Rows and columns that fill no whole block are not seen. `A A' = I / factor^2`. Raises `UserError` unless
    `1 <= factor <= min(h, w)`.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_factor(self, self.factor)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return _coarser(self, self.factor)

    @property
    def gain(self) -> float:
        return self.factor**-2

    def A(self, x: Tensor) -> Tensor:
        self.check_items(x)
        return avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        self.check_measurements(y)
        spread = y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1) / self.factor**2
        (_, h, w), (*_, rows, columns) = self.item_shape, spread.shape
        return pad(spread, (0, w - columns, 0, h - rows))


@dataclass(frozen=True, kw_only=True)
class Bicubic(Decomposed):
    """`Y = M_h X M_w'` of every channel: `(c, h, w)` to `(c, h // factor, w // factor)`, with `cubic_matrix` along each axis.

    The singular values are the products of those of the two matrices, which are decomposed once. Raises `UserError` unless
    `1 <= factor <= min(h, w)`.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_factor(self, self.factor)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return _coarser(self, self.factor)

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """The matrices `M_h` and `M_w` in double precision."""
        (_, h, w), (_, rows, columns) = check_image(self), self.y_shape
        return cubic_matrix(h, rows), cubic_matrix(w, columns)

    @cached_property
    def singular_values(self) -> Tensor:
        (_, s_h, _), (_, s_w, _) = self._svd
        return s_h[:, None] * s_w

    def A(self, x: Tensor) -> Tensor:
        self.check_items(x)
        rows, columns = (axis.to(x) for axis in self.axes)
        return rows @ x @ columns.T

    def A_adjoint(self, y: Tensor) -> Tensor:
        self.check_measurements(y)
        rows, columns = (axis.to(y) for axis in self.axes)
        return rows.T @ y @ columns

    def U_adjoint(self, y: Tensor) -> Tensor:
        (u_h, _, _), (u_w, _, _) = self._svd
        return u_h.to(y).T @ y @ u_w.to(y)

    def V(self, coefficients: Tensor) -> Tensor:
        (_, _, v_h), (_, _, v_w) = self._svd
        return v_h.to(coefficients).T @ coefficients @ v_w.to(coefficients)

    @cached_property
    def _svd(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [torch.linalg.svd(axis, full_matrices=False) for axis in self.axes]


def cubic_matrix(n: int, m: int) -> Tensor:
    """Row i holds the weights of the n pixels in pixel i of m <= n, `(m, n)`, in double precision; each row sums to 1.

    Pixel i lies at `u_i = (i + 1/2) n / m - 1/2` and has weights `k((j - u_i) m / n)`: the kernel is as wide as the coarser
    pixel, against aliasing. Beyond its edges the image goes on as in a mirror (`.. x_1 x_0 | x_0 x_1 ..`).
    """
    scale = n / m
    centre = (torch.arange(m, dtype=torch.float64) + 0.5) * scale - 0.5
    reach = int(2 * scale) + 2
    j = torch.arange(-reach, n + reach)
    weights = keys_cubic((j - centre[:, None]) / scale)
    period = j % (2 * n)
    mirrored = torch.where(period < n, period, 2 * n - 1 - period)
    matrix = torch.zeros(m, n, dtype=torch.float64).index_add_(1, mirrored, weights)
    return matrix / matrix.sum(1, keepdim=True)


def keys_cubic(u: Tensor) -> Tensor:
    """Keys's kernel k(u), elementwise."""
    u = u.abs()
    inner = (1.5 * u - 2.5) * u**2 + 1
    outer = ((-0.5 * u + 2.5) * u - 4) * u + 2
    return torch.where(u <= 1, inner, torch.where(u < 2, outer, 0))


def _check_factor(operator: ShapedOperator, factor: int) -> None:
    _, h, w = check_image(operator)
    if not 1 <= factor <= min(h, w):
        raise UserError(
            f"images of {h} x {w} pixels and a factor of {factor}: give a whole number from 1 to {min(h, w)}"
        )


def _coarser(operator: ShapedOperator, factor: int) -> tuple[int, ...]:
    c, h, w = check_image(operator)
    return c, h // factor, w // factor
