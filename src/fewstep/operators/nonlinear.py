"""Measurements that are not linear: A alone, and its gradient by autograd."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from fewstep.errors import UserError
from fewstep.operators.base import ShapedOperator, check_image


@dataclass(frozen=True, kw_only=True)
class HDRClip(ShapedOperator):
    """`A(x) = clip(gain x, -1, 1)`: an overexposed photograph. The gradient is `gain` inside and 0 where it is cut.

    Any item shape; raises `UserError` unless gain > 0.
    """

    gain: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gain < math.inf:
            raise UserError(f"a gain is a number above 0, not {self.gain}")

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.item_shape

    def A(self, x: Tensor) -> Tensor:
        self.check_items(x)
        return (self.gain * x).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class PhaseRetrieval(ShapedOperator):
    """`A(x) = |F P x|`: P pads every axis of n pixels with zeros to `ceil(oversampling n)`, F is the unitary Fourier transform.

    Over the last two axes of an image, else over the last one. x, -x and x turned by 180 degrees have the same magnitudes. The
    gradient of a magnitude of 0 is 0. Raises `UserError` unless oversampling >= 1.
    """

    oversampling: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.oversampling < math.inf:
            raise UserError(f"oversampling is a factor from 1 up, not {self.oversampling}")

    @property
    def y_shape(self) -> tuple[int, ...]:
        axes = 2 if len(self.item_shape) == 3 else 1
        return *self.item_shape[:-axes], *(math.ceil(self.oversampling * n) for n in self.item_shape[-axes:])

    def A(self, x: Tensor) -> Tensor:
        self.check_items(x)
        padded = self.y_shape[-2:] if len(self.item_shape) == 3 else self.y_shape[-1:]
        return torch.fft.fftn(x, s=padded, dim=tuple(range(-len(padded), 0)), norm="ortho").abs()


@dataclass(frozen=True, kw_only=True)
class Quantisation(ShapedOperator):
    """`A(x)` = the nearest of `levels` grey levels `-1, .., 1`, equally spaced. Any item shape.

    Its gradient is that of `clip(x, -1, 1)`, as if nothing were rounded (the straight-through estimate): the true one is 0.
    Raises `UserError` unless levels >= 2.
    """

    levels: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels < 2:
            raise UserError(f"quantisation needs 2 levels or more, not {self.levels}")

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.item_shape

    def A(self, x: Tensor) -> Tensor:
        self.check_items(x)
        step = 2 / (self.levels - 1)
        return _rounded((x.clamp(-1, 1) + 1) / step) * step - 1


@dataclass(frozen=True, kw_only=True)
class BlockQuantisation(ShapedOperator):
    """As in JPEG: the coefficients of the cosine transform of each block of 8 x 8 pixels, rounded to multiples of `step`.

    The transform is orthonormal, `step` is one number for all frequencies and channels, in the units of x. A size that is no
    multiple of 8 is filled up with its last row or column, and cut again. The gradient is that of the identity, as if nothing
    were rounded. Raises `UserError` unless step > 0, and for items that are no images.
    """

    step: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_image(self)
        if not 0 < self.step < math.inf:
            raise UserError(f"a step is a number above 0, not {self.step}")

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.item_shape

    def A(self, x: Tensor) -> Tensor:
        self.check_items(x)
        _, h, w = check_image(self)
        filled = pad(x, (0, -w % 8, 0, -h % 8), mode="replicate")
        dct = cosine_matrix(8).to(x)
        blocks = filled.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
        seen = dct.T @ (_rounded(dct @ blocks @ dct.T / self.step) * self.step) @ dct
        return seen.transpose(-3, -2).flatten(-4, -3).flatten(-2)[..., :h, :w]


def cosine_matrix(n: int) -> Tensor:
    """The orthonormal cosine transform of n numbers, `c_k cos(pi (j + 1/2) k / n)` at `(k, j)`, in double precision."""
    k = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * k[:, None] * (k + 0.5)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def _rounded(x: Tensor) -> Tensor:
    """The nearest whole numbers, with the gradient of x."""
    return x + (x.round() - x).detach()
