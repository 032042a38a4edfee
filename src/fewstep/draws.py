"""Randomness as an argument: normal, uniform, integer and categorical draws from one generator or from one per item.

A `Source` is
- a `torch.Generator`: one stream for the whole batch;
- a sequence of generators, one per item: every item is seeded by itself, so that the batch size changes no item;
- a `Shard`: what process `rank` of `count` sees of the stream of the joint batch, so that the number of processes
  changes no item;
- `None`: torch's global stream.

Draws are made on the generator's device and moved, so that a CPU generator gives the same noise on every device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of a joint stream that belongs to one of several processes with equal batches."""

    generator: torch.Generator
    rank: int
    count: int


Source = torch.Generator | Sequence[torch.Generator] | Shard | None


def item_generators(n: int, seed: int, first: int = 0) -> list[torch.Generator]:
    """One CPU generator for each of the items `first .. first + n - 1` of the run with this seed."""
    base = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return [torch.Generator().manual_seed((base + first + i) % 2**32) for i in range(n)]


def seed_of_stream(seed: int, stream: int) -> int:
    """The seed of one of several independent streams of a run with this seed."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


def normal(shape: tuple[int, ...], source: Source, *, axis: int = 0, like: Tensor) -> Tensor:
    """Standard normal numbers of this shape; `axis` is the batch axis; dtype and device are those of `like`."""
    return _draw(lambda size, **options: torch.randn(size, **options), shape, source, axis, like)


def normal_like(x: Tensor, source: Source, shape: tuple[int, ...] = ()) -> Tensor:
    """Standard normal numbers `(*shape, *x.shape)`, where the first axis of `x` is the batch axis."""
    return normal((*shape, *x.shape), source, axis=len(shape), like=x)


def uniform(shape: tuple[int, ...], source: Source, *, axis: int = 0, like: Tensor) -> Tensor:
    """Uniform numbers on [0, 1) of this shape."""
    return _draw(lambda size, **options: torch.rand(size, **options), shape, source, axis, like)


def integers(high: int, shape: tuple[int, ...], source: Source, *, axis: int = 0) -> Tensor:
    """Uniform integers `0 .. high - 1` of this shape, on the CPU."""
    like = torch.empty((), dtype=torch.int64)
    return _draw(lambda size, **options: torch.randint(high, size, **options), shape, source, axis, like)


def categorical(log_weights: Tensor, source: Source, shape: tuple[int, ...] = ()) -> Tensor:
    """Indices `(*shape, batch)` drawn with probabilities proportional to `exp(log_weights)`, `(batch, n)`."""
    log_weights = log_weights.double()
    cumulative = (log_weights - log_weights.amax(-1, keepdim=True)).exp().cumsum(-1)
    batch = log_weights.shape[0]
    u = uniform((*shape, batch), source, axis=len(shape), like=cumulative).reshape(-1, batch)
    index = torch.searchsorted(cumulative, (u * cumulative[:, -1]).T.contiguous(), right=True)
    return index.clamp_(max=log_weights.shape[-1] - 1).T.reshape(*shape, batch)


def split(source: Source, sizes: list[int]) -> list[Source]:
    """The sources of consecutive chunks of a batch: one generator serves all chunks in turn, a sequence is cut.

    Raises `UserError` for several chunks of a `Shard`: the joint batch, not this process's part, would have to be cut.
    """
    if isinstance(source, Shard) and len(sizes) > 1:
        raise UserError("a batch shared among processes cannot be cut into chunks: give one generator per item instead")
    if isinstance(source, Sequence):
        edges = np.cumsum([0, *sizes]).tolist()
        return [source[a:b] for a, b in pairwise(edges)]
    return [source] * len(sizes)


def _draw(function: Callable, shape: tuple[int, ...], source: Source, axis: int, like: Tensor) -> Tensor:
    options = {"dtype": like.dtype}
    if source is None:
        return function(shape, device=like.device, **options)
    if isinstance(source, torch.Generator):
        return function(shape, generator=source, device=source.device, **options).to(like.device)
    if isinstance(source, Shard):
        n = shape[axis]
        joint = (*shape[:axis], n * source.count, *shape[axis + 1 :])
        drawn = function(joint, generator=source.generator, device=source.generator.device, **options)
        return drawn.narrow(axis, n * source.rank, n).to(like.device)
    item = (*shape[:axis], *shape[axis + 1 :])
    if len(source) != shape[axis]:
        raise ValueError(f"{len(source)} generators for a batch of {shape[axis]}: give one generator per item")
    items = [function(item, generator=g, device=g.device, **options) for g in source]
    return torch.stack(items, dim=axis).to(like.device)
