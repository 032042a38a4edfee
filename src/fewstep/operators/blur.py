"""Blur: `y = k * x`, the convolution of every channel with a kernel, on a torus.

`y_i = sum_j k_j x_{i - j}` in both axes, indices of x modulo height and width and j counted from the middle of the kernel,
`(k_h // 2, k_w // 2)`. On a torus the Fourier transform makes it a product, and all that is asked of A a closed form; at the
edges of a picture, a frame of half the kernel's width sees the other side.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2

from fewstep.errors import UserError
from fewstep.operators.base import check_image
from fewstep.operators.closed_forms import Decomposed


class Blur(Decomposed):
    """`A = F* diag(F k) F`, F the unitary Fourier transform: items and measurements are images `(c, h, w)`.

    The kernel may be larger than the image, and is then laid round it.
    """

    @property
    @abstractmethod
    def kernel(self) -> Tensor:
        """k, `(k_h, k_w)`, in double precision."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_image(self)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.item_shape

    @cached_property
    def singular_values(self) -> Tensor:
        _, h, w = check_image(self)
        k_h, k_w = self.kernel.shape
        rows, columns = (torch.arange(k_h) - k_h // 2) % h, (torch.arange(k_w) - k_w // 2) % w
        torus = torch.zeros(h, w, dtype=torch.float64)
        torus.index_put_((rows[:, None], columns), self.kernel.double().cpu(), accumulate=True)
        return rfft2(torus)

    def A(self, x: Tensor) -> Tensor:
        self.check_items(x)
        coefficients = self.U_adjoint(x)
        return self.V(self.singular_values.to(coefficients) * coefficients)

    def U_adjoint(self, y: Tensor) -> Tensor:
        # half of the spectrum: the other half is its conjugate, and what multiplies it, too
        return rfft2(y, norm="ortho")

    def V(self, coefficients: Tensor) -> Tensor:
        return irfft2(coefficients, s=self.item_shape[1:], norm="ortho")


@dataclass(frozen=True, kw_only=True)
class GaussianBlur(Blur):
    """`k_ij ~ exp(-(i^2 + j^2) / (2 std^2))`, `|i|, |j| <= ceil(4 std)`, sum 1; std > 0 in pixels, `UserError` otherwise."""

    std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise UserError(f"a Gaussian blur has a standard deviation above 0, in pixels, not {self.std}")
        super().__post_init__()

    @cached_property
    def kernel(self) -> Tensor:
        reach = math.ceil(4 * self.std)
        line = (-torch.arange(-reach, reach + 1, dtype=torch.float64).square() / (2 * self.std**2)).exp()
        line = line / line.sum()
        return line[:, None] * line


@dataclass(frozen=True, kw_only=True)
class MotionBlur(Blur):
    """`k_p ~ max(0, 1 - the distance of pixel p from the path)`, sum 1: a straight path of `length` pixels.

    Its direction is `angle` degrees, 0 to the right and 90 upwards; an odd length at a multiple of 90 gives equal weights to
    `length` pixels. Raises `UserError` unless `1 <= length`.
    """

    length: float = 5.0
    angle: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.length < math.inf:
            raise UserError(f"a motion blur has a length of 1 pixel or more, not {self.length}")
        super().__post_init__()

    @cached_property
    def kernel(self) -> Tensor:
        half = (self.length - 1) / 2
        reach = math.ceil(half + 1)
        along = torch.arange(-reach, reach + 1, dtype=torch.float64)
        i, j = along[:, None], along  # rows count downwards
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        beyond = ((j * cos - i * sin).abs() - half).clamp_min(0)
        weights = (1 - torch.hypot(beyond, j * sin + i * cos)).clamp_min(0)
        return weights / weights.sum()


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelBlur(Blur):
    """The convolution with a given kernel `(k_h, k_w)`, as it is. Raises `UserError` for any other shape, NaN, or zeros only."""

    weights: Tensor

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or not self.weights.isfinite().all() or not self.weights.any():
            raise UserError(
                f"a kernel {tuple(self.weights.shape)}: give finite numbers of the shape (height, width), not all of them 0"
            )
        super().__post_init__()

    @cached_property
    def kernel(self) -> Tensor:
        return self.weights.detach().double()
