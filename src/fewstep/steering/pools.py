"""Pools of items weighted towards a reward, as far as their effective number allows."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.particles import effective_sample_size, log_mean_exp


@dataclass
class Pool:
    """Items `(n, ...)` with `g = r / T` `(n,)` in float64, drawn from about `p exp(strength g) / exp(log_z)`."""

    x_0: Tensor
    g: Tensor
    strength: float
    log_z: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighing:
    """Items of all pools with weights that sum to 1, of the law `p exp(strength g) / exp(log_z)`."""

    x_0: Tensor
    weights: Tensor
    strength: float
    ess: float
    log_z: float
    mean_g: float

    @property
    def kl(self) -> float:
        """The divergence of that law from the reference's, `strength E[g] - log_z`."""
        return max(0.0, self.strength * self.mean_g - self.log_z)


def weigh(pools: list[Pool], strength: float) -> Weighing:
    """The pools weighted to this strength: each by itself, then in proportion to their effective numbers."""
    shares, sizes = [], []
    for pool in pools:
        log_w = (strength - pool.strength) * pool.g
        sizes.append(effective_sample_size(log_w[:, None]).item())
        shares.append(log_w.softmax(0))
    weights = torch.cat([share * size / sum(sizes) for share, size in zip(shares, sizes, strict=True)])
    newest, g = pools[-1], torch.cat([pool.g for pool in pools])
    log_z = newest.log_z + log_mean_exp((strength - newest.strength) * newest.g).item()
    return Weighing(
        x_0=torch.cat([pool.x_0 for pool in pools]),
        weights=weights,
        strength=strength,
        ess=1 / weights.square().sum().item(),
        log_z=log_z,
        mean_g=torch.where(weights > 0, weights * g, 0.0).sum().item(),
    )


def strongest(pools: list[Pool], least: float) -> Weighing:
    """The pools at the largest strength up to 1 at which `least` items are effective."""
    whole = weigh(pools, 1.0)
    if whole.ess >= least:
        return whole
    return weigh(pools, _largest(pools[-1].strength, lambda s: weigh(pools, s).ess >= least))


def placed(pools: list[Pool], new: Pool) -> Pool:
    """A new pool at the strength that it really has: where the older ones, weighted, have its mean of g.

    Its items are drawn from a model that was trained towards `new.strength`, and may have come less far or farther.
    """
    mean = new.g.mean().item()
    if not math.isfinite(mean):
        return new
    strength = _largest(0.0, lambda s: weigh(pools, s).mean_g < mean)
    return Pool(x_0=new.x_0, g=new.g, strength=strength, log_z=weigh(pools, strength).log_z)


def _largest(low: float, holds: Callable[[float], bool]) -> float:
    """The largest strength from `low` to 1 at which something holds that ceases to, by bisection."""
    high = 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
