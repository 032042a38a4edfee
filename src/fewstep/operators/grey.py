"""Colourisation: the image is seen in grey."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.errors import UserError
from fewstep.operators.base import check_image
from fewstep.operators.closed_forms import ScaledIsometry


@dataclass(frozen=True, kw_only=True)
class Grey(ScaledIsometry):
    """`y = sum_c w_c x_c`, images `(c, h, w)` to `(1, h, w)`; `A A' = |w|^2 I`.

    The default weights are the luma of ITU-R BT.601; `(1/3, 1/3, 1/3)` is the mean. Raises `UserError` unless there is a weight
    for each channel, and one that is not 0.
    """

    weights: tuple[float, ...] = (0.299, 0.587, 0.114)

    def __post_init__(self) -> None:
        super().__post_init__()
        c, _, _ = check_image(self)
        if len(self.weights) != c or not self.gain > 0:
            raise UserError(f"images of {c} channels and weights {self.weights}: give {c} weights, and not only zeros")

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (1, *self.item_shape[1:])

    @property
    def gain(self) -> float:
        return sum(w**2 for w in self.weights)

    def A(self, x: Tensor) -> Tensor:
        self.check_items(x)
        return (self._weights(x) * x).sum(1, keepdim=True)

    def A_adjoint(self, y: Tensor) -> Tensor:
        self.check_measurements(y)
        return self._weights(y) * y

    def _weights(self, x: Tensor) -> Tensor:
        return x.new_tensor(self.weights)[:, None, None]
