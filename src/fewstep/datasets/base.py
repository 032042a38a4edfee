"""What every data set is: two sets of examples, one to train on and one to test on, and where its files are found.

An example is `x_0`, float32: an image `(channels, height, width)` in [-1, 1] or a vector `(d,)`; where the data have
labels, an int64 label in `0 .. num_classes - 1` goes with it. Files are looked for in `<root>/<name>/`, where the root
is the one that was given, else the environment variable FEWSTEP_DATA; without a root they are downloaded to a cache
(FEWSTEP_CACHE, else .cache/fewstep in the home folder) and checked.
"""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.draws import Source, integers, uniform
from fewstep.errors import UserError
from fewstep.files import cache_folder


class Examples(ABC):
    """A finite set or an endless stream of examples."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """The number of examples; None for an endless stream."""

    @property
    def step(self) -> float | None:
        """The distance of neighbouring grey levels, of images on levels `-1, -1 + step, .., 1`; None where values are any."""
        return None

    @abstractmethod
    def batch(self, n: int, generator: Source) -> dict[str, Tensor]:
        """`n` examples drawn with replacement: `x_0` `(n, *item_shape)` and, where there are any, `labels` `(n,)`.

        The generator alone determines them: neither the earlier calls nor the number of processes (`draws.Shard`) do.
        """

    @abstractmethod
    def take(self, n: int, seed: int = 0) -> dict[str, Tensor]:
        """`n` different examples, always the same for the same seed. Raises `UserError` where there are fewer."""

    def up_to(self, n: int, seed: int = 0) -> dict[str, Tensor]:
        """`n` different examples, or all of them where there are fewer."""
        return self.take(n if self.size is None else min(n, self.size), seed)


class Dataset(ABC):
    """A law of data; hyper-parameters are the fields of a frozen dataclass."""

    @property
    @abstractmethod
    def item_shape(self) -> tuple[int, ...]:
        """The shape of one item: `(channels, height, width)` or `(d,)`."""

    @property
    def num_classes(self) -> int:
        """The number of classes, 0 where there are no labels."""
        return 0

    @abstractmethod
    def train(self, root: Path | None = None) -> Examples:
        """The examples to train on. Raises `UserError` that names the file where one is missing or broken."""

    @abstractmethod
    def test(self, root: Path | None = None) -> Examples:
        """The examples to test on, none of them among those to train on. Raises as `train` does."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorExamples(Examples):
    """Examples in memory.

    `x_0` `(n, *item_shape)` is floating, images in [-1, 1], or uint8, read as `x / 127.5 - 1`; `labels` `(n,)` are
    integers in `0 .. num_classes - 1`; `name` is what messages call the data; `levels` is the number of grey levels of
    floating images that have few; `weights` `(n,)`, where there are any, are in proportion to the chance of each item.
    Raises `UserError` where there is no item, an item is not of `item_shape`, holds NaN or infinity or leaves the range, or
    where labels or weights do not fit.
    """

    name: str
    item_shape: tuple[int, ...]
    x_0: Tensor
    labels: Tensor | None = None
    num_classes: int = 0
    levels: int | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        _check_shape(self.name, tuple(self.x_0.shape), self.item_shape)
        _check_dtype(self.name, self.x_0.dtype, image=len(self.item_shape) == 3)
        if self.x_0.dtype != torch.uint8:
            object.__setattr__(self, "x_0", self.x_0.float())
            _check_values(self.name, self.x_0, image=len(self.item_shape) == 3)
        if self.labels is not None:
            _check_labels(self.name, self.labels, len(self.x_0), self.num_classes)
            object.__setattr__(self, "labels", self.labels.long())
        if self.weights is not None:
            _check_weights(self.name, self.weights, len(self.x_0))
            object.__setattr__(self, "weights", self.weights.double())

    @property
    def size(self) -> int:
        return len(self.x_0)

    @property
    def step(self) -> float | None:
        levels = 256 if self.x_0.dtype == torch.uint8 else self.levels
        return None if levels is None else 2 / (levels - 1)

    def batch(self, n: int, generator: Source) -> dict[str, Tensor]:
        if self.weights is None:
            return self._at(integers(self.size, (n,), generator))
        return self._at(self._by_weight(uniform((n,), generator, like=self.weights)))

    def take(self, n: int, seed: int = 0) -> dict[str, Tensor]:
        """As for every set; of weighted items, in proportion to the weights and so, where these are large, more than once."""
        if not 1 <= n <= self.size:
            raise UserError(f"{self.name}: {n} examples asked for, there are {self.size}: ask for 1 to {self.size}")
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.size, generator=generator)[:n]
        if self.weights is None:
            return self._at(order)
        spread = torch.rand((), dtype=torch.float64, generator=generator) + torch.randperm(n, generator=generator)
        return self._at(self._by_weight(spread / n))

    def _by_weight(self, u: Tensor) -> Tensor:
        """The items at the shares u `(n,)` in [0, 1) of the sum of the weights."""
        assert self.weights is not None
        cumulative = self.weights.cumsum(0)
        return torch.searchsorted(cumulative, u * cumulative[-1], right=True).clamp_(max=self.size - 1)

    def split(self, num_test: int) -> tuple["TensorExamples", "TensorExamples"]:
        """The examples to train on and the `num_test` ones to test on, always the same ones."""
        train, test = split_indices(self.size, num_test)
        return self._part(train, "train"), self._part(test, "test")

    def _part(self, index: Tensor, part: str) -> "TensorExamples":
        return TensorExamples(
            name=f"{self.name} ({part})",
            item_shape=self.item_shape,
            x_0=self.x_0[index],
            labels=None if self.labels is None else self.labels[index],
            num_classes=self.num_classes,
            levels=self.levels,
            weights=None if self.weights is None else self.weights[index],
        )

    def _at(self, index: Tensor) -> dict[str, Tensor]:
        x_0 = self.x_0[index]
        examples = {"x_0": x_0.float() / 127.5 - 1 if x_0.dtype == torch.uint8 else x_0}
        if self.labels is not None:
            examples["labels"] = self.labels[index]
        return examples


def split_indices(n: int, num_test: int) -> tuple[Tensor, Tensor]:
    """The indices of the examples to train on and of those to test on: one permutation of `0 .. n - 1` for ever."""
    permutation = np.random.RandomState(0).permutation(n)  # the one stream that numpy promises never to change
    return torch.from_numpy(permutation[num_test:]), torch.from_numpy(permutation[:num_test])


def held_out(name: str, n: int, share: float) -> int:
    """How many of `n` examples to test on, so that each side has one at least. Raises `UserError` where n < 2."""
    if n < 2:
        raise UserError(f"{name}: {n} example, at least 2 expected, one to train on and one to test on: add more")
    return min(max(round(share * n), 1), n - 1)


def data_root(root: Path | None, name: str) -> Path | None:
    """The folder of the data set of this name: in the given root, else in FEWSTEP_DATA, else None (a download)."""
    if root is None and os.environ.get("FEWSTEP_DATA"):
        root = Path(os.environ["FEWSTEP_DATA"])
    return None if root is None else root.expanduser() / name


def locate(root: Path | None, name: str, url: str, md5: str) -> Path:
    """The path of the file of data set `name` with this address: in the data root, else downloaded and checked.

    Raises `UserError` where the root has no such file, or the download fails or brings other bytes.
    """
    file = url.rsplit("/", 1)[-1]
    folder = data_root(root, name)
    if folder is not None:
        if not (folder / file).is_file():
            raise UserError(
                f"no file {folder / file}: get it from {url}, or download it to the cache by giving no data root "
                "and unsetting FEWSTEP_DATA"
            )
        return folder / file
    import pooch

    cache = cache_folder() / name
    try:
        return Path(pooch.retrieve(url, known_hash=f"md5:{md5}", fname=file, path=cache))
    except (OSError, ValueError) as error:  # no network, no such page, no room; other bytes
        raise UserError(
            f"cannot download {url} (md5 {md5} expected) to {cache / file}: {one_line(error)}: check the network, "
            f"or get the file elsewhere, put it into <folder>/{name}/ and give <folder> as data root or FEWSTEP_DATA"
        ) from error


def one_line(error: Exception) -> str:
    """What an error says, on one line and not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _check_shape(name: str, shape: tuple[int, ...], item_shape: tuple[int, ...]) -> None:
    found = shape[1:]
    if not shape or 0 in shape:
        raise UserError(f"{name}: no items (shape {shape}): give at least one")
    if found == item_shape:
        return
    problem = f"items of shape {found}, expected {item_shape}"
    if len(found) == len(item_shape) == 3:
        if found == (*item_shape[1:], item_shape[0]):
            problem += ": the channels come last, move them to the front (n, channels, height, width)"
        elif found[0] != item_shape[0]:
            problem += f": {found[0]} channels, expected {item_shape[0]}, convert the images"
        else:
            problem += ": resize the images"
    else:
        problem += ": reshape the items"
    raise UserError(f"{name}: {problem}")


def _check_dtype(name: str, dtype: torch.dtype, image: bool) -> None:
    if not (dtype.is_floating_point or (image and dtype == torch.uint8)):
        raise UserError(f"{name}: items of type {dtype}, expected floating numbers or uint8 images: convert them")


def _check_values(name: str, x_0: Tensor, image: bool) -> None:
    n = len(x_0)
    bad = ~x_0.reshape(n, -1).isfinite().all(1)
    if bad.any():
        count, first = int(bad.sum()), int(bad.int().argmax())
        raise UserError(
            f"{name}: {count} of {n} items hold NaN or infinity, the first at index {first}, finite numbers expected: "
            "mend these items or leave them out"
        )
    low, high = x_0.min().item(), x_0.max().item()
    if image and max(-low, high) > 1 + 1e-6:
        raise UserError(
            f"{name}: images with values in [{low:g}, {high:g}], expected [-1, 1]: rescale them, "
            "from 0 .. 255 by x / 127.5 - 1, or give uint8"
        )


def _check_labels(name: str, labels: Tensor, n: int, num_classes: int) -> None:
    if labels.ndim != 1 or len(labels) != n:
        raise UserError(f"{name}: labels of shape {tuple(labels.shape)} for {n} items: give one label per item, ({n},)")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"{name}: labels are {labels.dtype}: give integers")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise UserError(f"{name}: labels in {low} .. {high}, expected none below 0: number the classes from 0")
    if high >= num_classes:
        raise UserError(
            f"{name}: labels in {low} .. {high}, expected below num_classes = {num_classes}: number the classes from 0, "
            f"or give num_classes = {high + 1}"
        )


def _check_weights(name: str, weights: Tensor, n: int) -> None:
    if weights.shape != (n,) or not weights.is_floating_point():
        raise UserError(
            f"{name}: weights {weights.dtype} of shape {tuple(weights.shape)} for {n} items: give one number for each"
        )
    if not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
        raise UserError(f"{name}: weights are finite, not negative and not all 0: mend them, or leave items out")
