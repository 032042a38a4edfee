"""Shapes in the plane: an endless supply of fresh draws from laws without a closed form."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.datasets.base import Dataset, Examples
from fewstep.draws import Source, integers, normal, seed_of_stream, uniform
from fewstep.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanarExamples(Examples):
    """Fresh draws `x_0` `(n, 2)`, float32; draws to be kept come from the stream of this number."""

    draw: Callable[[int, Source], Tensor]
    stream: int

    @property
    def size(self) -> None:
        return None

    def batch(self, n: int, generator: Source) -> dict[str, Tensor]:
        return {"x_0": self.draw(n, generator)}

    def take(self, n: int, seed: int = 0) -> dict[str, Tensor]:
        if n < 1:
            raise UserError(f"{n} draws of a shape asked for: ask for 1 or more")
        return self.batch(n, torch.Generator().manual_seed(seed_of_stream(seed, self.stream)))


@dataclass(frozen=True, kw_only=True)
class PlanarDataset(Dataset):
    """A shape in the plane with normal noise of deviation `std`: training and test draws are of one law, by different streams."""

    std: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.std < math.inf:
            raise UserError(f"the deviation of the noise is 0 or more, not {self.std}")

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (2,)

    def train(self, root: Path | None = None) -> PlanarExamples:
        return PlanarExamples(draw=self.draw, stream=0)

    def test(self, root: Path | None = None) -> PlanarExamples:
        return PlanarExamples(draw=self.draw, stream=1)

    def draw(self, n: int, generator: Source) -> Tensor:
        """`(n, 2)` draws, float32."""
        like = torch.empty(())
        shape = self.shape(uniform((n, 2), generator, like=like), integers(2, (n, 3), generator))
        return shape + self.std * normal((n, 2), generator, like=like)

    @abstractmethod
    def shape(self, u: Tensor, bits: Tensor) -> Tensor:
        """The shape without noise `(n, 2)`, of two uniform numbers and three bits for each draw."""


@dataclass(frozen=True, kw_only=True)
class SwissRoll(PlanarDataset):
    """`(t cos t, t sin t) / 4.5 pi`, t uniform on (pi/2, 4.5 pi): a spiral of two turns in the unit disc, `x_0` `(2,)`."""

    std: float = 0.03

    def shape(self, u: Tensor, bits: Tensor) -> Tensor:
        t = math.pi * (0.5 + 4 * u[:, 0])
        return t[:, None] * torch.stack([t.cos(), t.sin()], dim=1) / (4.5 * math.pi)


@dataclass(frozen=True, kw_only=True)
class Checkerboard(PlanarDataset):
    """Uniform on the eight dark cells of a board of 4 x 4 on [-1, 1]^2, `x_0` `(2,)`."""

    def shape(self, u: Tensor, bits: Tensor) -> Tensor:
        return (2 * bits[:, :2] + bits[:, 2:] + u - 2) / 2


@dataclass(frozen=True, kw_only=True)
class Moons(PlanarDataset):
    """Two half circles of radius 1 that hold each other, `(cos t, sin t)` and `(1 - cos t, 1/2 - sin t)`, `x_0` `(2,)`."""

    def shape(self, u: Tensor, bits: Tensor) -> Tensor:
        t, lower = math.pi * u[:, 0], bits[:, 0]
        upper = torch.stack([t.cos(), t.sin()], dim=1)
        centre = torch.tensor([1.0, 0.5])
        return torch.where(lower[:, None] == 1, centre - upper, upper)
