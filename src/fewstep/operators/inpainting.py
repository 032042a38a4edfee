"""Inpainting: some entries of the item are observed, the others are not."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fewstep.operators.closed_forms import ScaledIsometry
from fewstep.operators.masks import BoxMask, Mask


@dataclass(frozen=True, kw_only=True)
class Inpainting(ScaledIsometry):
    """`A x = m x`, the mask m 1 where an entry is observed and 0 where not: measurements keep the shape of the items.

    A is its own adjoint and its own pseudo-inverse. Entries of y that are not observed say nothing of x: the inverse and the prox
    ignore them, and to a log-likelihood they add the same number for every x. Any item shape that the mask fits.
    """

    mask: Mask = BoxMask()

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.observed  # a mask that does not fit shall be told here

    @cached_property
    def observed(self) -> Tensor:
        """True where an entry is observed, in a shape that broadcasts to `item_shape`."""
        return self.mask(self.item_shape)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.item_shape

    @property
    def gain(self) -> float:
        return 1.0

    def A(self, x: Tensor) -> Tensor:
        self.check_items(x)
        return x * self.observed.to(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        self.check_measurements(y)
        return y * self.observed.to(y)
