"""A run of a second: ring-stmd with a small network."""

from dataclasses import dataclass, replace

import torch

from fewstep.objectives.base import Batch, Loss
from fewstep.objectives.stmd import STMD
from fewstep.recipe import Recipe
from fewstep.recipes import find_recipe


def tiny_recipe(**changes) -> Recipe:
    """ring-stmd with 16 units, 12 steps of 16 items, and a warm-up of the averaged weights."""
    recipe = find_recipe("ring-stmd")
    network = replace(recipe.model.network, width=16, depth=1)
    small = replace(recipe, model=replace(recipe.model, network=network), steps=12, batch_size=16, ema_warmup=True)
    return replace(small, **changes)


@dataclass(frozen=True, kw_only=True)
class Poisoned(STMD):
    """STMD whose loss is not finite in the calls `first .. last`."""

    first: int = 0
    last: int = -1

    def __call__(self, model, batch: Batch, generator) -> Loss:
        loss = super().__call__(model, batch, generator)
        COUNT["calls"] += 1
        if self.first <= COUNT["calls"] - 1 <= self.last:
            return replace(loss, per_sample=loss.per_sample * torch.nan)
        return loss


COUNT = {"calls": 0}
