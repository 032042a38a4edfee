"""Rewards that come with the library, those of a file, and sums: `reward(x_0 batch) -> (batch,)`, larger is better.

A reward is any such function; these are frozen dataclasses, so that a recipe can hold them and a command can name them.
All but that of a file are differentiable.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.datasets.base import Dataset
from fewstep.datasets.images import read_whole_picture
from fewstep.errors import UserError
from fewstep.features import classifier_of
from fewstep.shapes import flat
from fewstep.user_code import run_file

__all__ = [
    "ClassProbability",
    "DecodedReward",
    "FileReward",
    "Ink",
    "Likeness",
    "Linear",
    "Reward",
    "Symmetry",
    "WeightedRewards",
]


class Reward(ABC):
    """`reward(x_0)`: items `(batch, *item_shape)`, images in [-1, 1], to `(batch,)`."""

    @abstractmethod
    def __call__(self, x_0: Tensor) -> Tensor:
        """One number for each item. Raises `UserError` where it is for other items."""

    def for_data(self, dataset: Dataset) -> "Reward":
        """The reward for items of this data set, where it needs to know which it is."""
        return self


@dataclass(frozen=True, kw_only=True)
class Linear(Reward):
    """`slope . x_0`, over the flattened components."""

    slope: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.slope, tuple) or not self.slope:
            raise UserError(f"a slope is a number for each component, such as (0.5, -1.0), not {self.slope!r}")

    def __call__(self, x_0: Tensor) -> Tensor:
        if flat(x_0).shape[1] != len(self.slope):
            raise UserError(f"a slope of {len(self.slope)} numbers for items {tuple(x_0.shape[1:])}: give one for each")
        return flat(x_0) @ torch.tensor(self.slope, dtype=x_0.dtype, device=x_0.device)


@dataclass(frozen=True, kw_only=True)
class ClassProbability(Reward):
    """`log p(label | x_0)` by the classifier of the data set (features.py), at most 0; at temperature 1 the tilt is the class."""

    label: int
    dataset: Dataset | None = None

    def __call__(self, x_0: Tensor) -> Tensor:
        if self.dataset is None:
            raise UserError("ClassProbability needs the data set whose classifier is asked: give dataset=...")
        return _classifier(self.dataset).to(x_0.device)(x_0.float()).log_softmax(1)[:, self.label].to(x_0.dtype)

    def for_data(self, dataset: Dataset) -> "ClassProbability":
        if dataset.num_classes == 0 or len(dataset.item_shape) != 3:
            raise UserError(f"{type(dataset).__name__} has no labelled images, so no class to ask for")
        if not 0 <= self.label < dataset.num_classes:
            raise UserError(
                f"label {self.label}, and {type(dataset).__name__} has the classes 0 .. {dataset.num_classes - 1}"
            )
        return self if self.dataset is not None else replace(self, dataset=dataset)


@cache
def _classifier(dataset: Dataset) -> Any:
    return classifier_of(dataset, None, quiet=False).classifier


@dataclass(frozen=True, kw_only=True)
class Ink(Reward):
    """`sign` times the mean of `(x + 1) / 2`: how much of the image is white, in [0, 1]; with sign -1, how little."""

    sign: float = 1.0

    def __call__(self, x_0: Tensor) -> Tensor:
        return self.sign * (flat(x_0).mean(1) + 1) / 2


@dataclass(frozen=True, kw_only=True)
class Symmetry(Reward):
    """Minus the mean square of the difference to the mirror image: left to right along axis -1, top to bottom along -2."""

    axis: int = -1

    def __post_init__(self) -> None:
        if self.axis not in (-1, -2):
            raise UserError(
                f"an image is mirrored along axis -1 (left to right) or -2 (top to bottom), not {self.axis}"
            )

    def __call__(self, x_0: Tensor) -> Tensor:
        if x_0.ndim != 4:
            raise UserError(f"symmetry is of images (channels, height, width), not of items {tuple(x_0.shape[1:])}")
        return -flat(x_0 - x_0.flip(self.axis)).square().mean(1)


@dataclass(frozen=True, kw_only=True)
class Likeness(Reward):
    """Minus the mean square of the difference to a picture, a file of the size of the items."""

    picture: str

    def __call__(self, x_0: Tensor) -> Tensor:
        if x_0.ndim != 4 or x_0.shape[1] not in (1, 3):
            raise UserError(f"a picture is like images (1 or 3, height, width), not like items {tuple(x_0.shape[1:])}")
        target = _picture(self.picture, x_0.shape[1] == 1).to(x_0)
        if target.shape != x_0.shape[1:]:
            raise UserError(
                f"{self.picture} has {target.shape[1]} x {target.shape[2]} pixels, the items {x_0.shape[2]} x {x_0.shape[3]}: "
                "resize it"
            )
        return -flat(x_0 - target).square().mean(1)


@cache
def _picture(path: str, grey: bool) -> Tensor:
    if not Path(path).exists():
        raise UserError(f"there is no picture {path}")
    return read_whole_picture(Path(path), grey=grey).float() / 127.5 - 1


@dataclass(frozen=True, kw_only=True)
class WeightedRewards(Reward):
    """`sum_k weights_k reward_k`; of equal weights 1 where none are given."""

    rewards: tuple[Reward, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        weights = self.weights
        if not self.rewards or (
            weights is not None and (len(weights) != len(self.rewards) or not all(map(math.isfinite, weights)))
        ):
            raise UserError(f"give at least one reward, and a finite weight for each: {len(self.rewards)}, {weights}")

    def __call__(self, x_0: Tensor) -> Tensor:
        weights = self.weights or (1.0,) * len(self.rewards)
        return torch.stack([w * reward(x_0) for w, reward in zip(weights, self.rewards, strict=True)]).sum(0)

    def for_data(self, dataset: Dataset) -> "WeightedRewards":
        return replace(self, rewards=tuple(reward.for_data(dataset) for reward in self.rewards))


@dataclass(frozen=True, kw_only=True)
class FileReward(Reward):
    """The function of a Python file, `file = "PATH.py:FUNCTION"`; asking it runs the file's code."""

    file: str

    def __post_init__(self) -> None:
        path, _, name = self.file.rpartition(":")
        if not path.endswith(".py") or not name.isidentifier():
            raise UserError(f"a reward of a file is PATH.py:FUNCTION, not {self.file!r}")

    def __call__(self, x_0: Tensor) -> Tensor:
        return function_of_file(self.file)(x_0)


@dataclass(frozen=True, kw_only=True)
class DecodedReward(Reward):
    """A reward that looks at what the function `decode`, of a file as in `FileReward`, makes of latent items."""

    reward: Reward
    decode: str

    def __call__(self, x_0: Tensor) -> Tensor:
        return self.reward(function_of_file(self.decode)(x_0))

    def for_data(self, dataset: Dataset) -> "DecodedReward":
        """As it is: what it looks at are no items of the data set."""
        return self


@cache
def function_of_file(file: str) -> Callable[[Tensor], Tensor]:
    """The function named by `PATH.py:FUNCTION`: runs the file. Raises `UserError` where it is missing or fails."""
    text, _, name = file.rpartition(":")
    path = Path(text)
    if not path.exists():
        raise UserError(f"{path} does not exist: give PATH.py:FUNCTION")
    module = run_file(path, f"fewstep_of_file_{path.stem}")
    function = vars(module).get(name)
    if not callable(function):
        raise UserError(f"{path} has no function {name!r}")
    return function
