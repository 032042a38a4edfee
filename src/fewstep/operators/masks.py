"""Which entries of an item are observed.

A mask is part of an operator: the same fields give the same mask. A mask of an image `(channels, height, width)` is one of its
pixels, common to the channels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError


class Mask(ABC):
    """A choice of entries; its parameters are the fields of a frozen dataclass."""

    @abstractmethod
    def __call__(self, item_shape: tuple[int, ...]) -> Tensor:
        """True where an entry is observed; its shape broadcasts to `item_shape`. Raises `UserError` where it does not fit."""


@dataclass(frozen=True, kw_only=True)
class BoxMask(Mask):
    """A box is missing: rows from `top` to `bottom`, columns from `left` to `right`, as shares of the height and the width.

    A pixel is in the box if its centre is. Raises `UserError` unless `0 <= top <= bottom <= 1`, the same for left and right, and
    for items that are no images.
    """

    top: float = 0.25
    bottom: float = 0.75
    left: float = 0.25
    right: float = 0.75

    def __post_init__(self) -> None:
        if not (0 <= self.top <= self.bottom <= 1 and 0 <= self.left <= self.right <= 1):
            raise UserError(
                f"a box has 0 <= top <= bottom <= 1 and 0 <= left <= right <= 1, in shares of the image: {self}"
            )

    def __call__(self, item_shape: tuple[int, ...]) -> Tensor:
        h, w = _pixels(self, item_shape)
        rows, columns = _between(h, self.top, self.bottom), _between(w, self.left, self.right)
        return ~(rows[:, None] & columns)


@dataclass(frozen=True, kw_only=True)
class HalfMask(Mask):
    """Half of the image is missing, on this side; of an odd number of rows or columns the middle one is observed."""

    side: Literal["top", "bottom", "left", "right"] = "right"

    def __call__(self, item_shape: tuple[int, ...]) -> Tensor:
        h, w = _pixels(self, item_shape)
        rows, columns = torch.arange(h)[:, None].expand(h, w), torch.arange(w).expand(h, w)
        match self.side:
            case "top":
                return rows >= h // 2
            case "bottom":
                return rows < h - h // 2
            case "left":
                return columns >= w // 2
            case "right":
                return columns < w - w // 2
            case _:
                raise UserError(f"side is 'top', 'bottom', 'left' or 'right', not {self.side!r}")


@dataclass(frozen=True, kw_only=True)
class RandomMask(Mask):
    """A share `missing` of the n pixels (of another item: of its entries) is missing, `round(missing n)` drawn with `seed`.

    Raises `UserError` unless `0 <= missing <= 1`.
    """

    missing: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.missing <= 1:
            raise UserError(f"missing is a share between 0 and 1, not {self.missing}")

    def __call__(self, item_shape: tuple[int, ...]) -> Tensor:
        shape = item_shape[1:] if len(item_shape) == 3 else item_shape
        observed = torch.ones(shape, dtype=torch.bool)
        order = torch.randperm(observed.numel(), generator=torch.Generator().manual_seed(self.seed))
        observed.view(-1)[order[: round(self.missing * observed.numel())]] = False
        return observed


@dataclass(frozen=True, kw_only=True)
class ImageMask(Mask):
    """A picture of the image's size, in 8 bits: white is observed, black missing; grey is what it is nearer to.

    Raises `UserError` where the file is missing, is no such picture or has another size.
    """

    path: str | Path

    def __call__(self, item_shape: tuple[int, ...]) -> Tensor:
        from PIL import Image

        h, w = _pixels(self, item_shape)
        try:
            with Image.open(self.path) as picture:
                mode, grey = picture.mode, np.asarray(picture.convert("L"))
        except FileNotFoundError as error:
            raise UserError(f"no mask {self.path}: give the path of a picture of {w} x {h} pixels") from error
        except OSError as error:
            raise UserError(
                f"{self.path}: not a whole picture: give a PNG of {w} x {h} pixels, white = observed"
            ) from error
        if mode.startswith(("I", "F")):
            raise UserError(f"{self.path}: a picture of mode {mode}, 8 bits expected: convert it to 8 bits")
        if grey.shape != (h, w):
            raise UserError(
                f"{self.path}: a mask of {grey.shape[1]} x {grey.shape[0]} pixels for images of {w} x {h}: resize it"
            )
        return torch.from_numpy(grey > 127)


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorMask(Mask):
    """A given tensor of 0 and 1, or of bools, whose shape broadcasts to the item's. Raises `UserError` for any other."""

    observed: Tensor

    def __call__(self, item_shape: tuple[int, ...]) -> Tensor:
        if self.observed.ndim > len(item_shape) or any(
            n not in (1, m) for n, m in zip(self.observed.shape[::-1], item_shape[::-1], strict=False)
        ):
            raise UserError(
                f"a mask {tuple(self.observed.shape)} for items {item_shape}: give one of their shape, or (height, width)"
            )
        if not ((self.observed == 0) | (self.observed == 1)).all():
            raise UserError("a mask holds 1 where an entry is observed and 0 where not, and this one other numbers too")
        return self.observed.detach().bool()


def _pixels(mask: Mask, item_shape: tuple[int, ...]) -> tuple[int, int]:
    if len(item_shape) != 3:
        raise UserError(
            f"{type(mask).__name__} is for images (channels, height, width), given items {item_shape}: "
            "take RandomMask or TensorMask"
        )
    return item_shape[1], item_shape[2]


def _between(n: int, low: float, high: float) -> Tensor:
    centres = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return (low <= centres) & (centres < high)
