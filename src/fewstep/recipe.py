"""A recipe: one experiment as one frozen value. `dataclasses.replace` makes its variants."""

import math
from dataclasses import dataclass
from typing import Literal

from fewstep.datasets.base import Dataset
from fewstep.errors import UserError
from fewstep.models.base import ModelConfig
from fewstep.objectives.base import Objective
from fewstep.samplers.ancestral import Ancestral
from fewstep.samplers.base import Sampler


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """Adam (AdamW where `weight_decay > 0`): learning rate with linear warm-up, then constant or cosine decay to 0.

    `clip_norm` bounds the norm of the gradient; None leaves it alone.
    """

    lr: float = 5e-4
    """Learning rate."""
    beta_1: float = 0.9
    beta_2: float = 0.999
    weight_decay: float = 0.0
    warmup_steps: int = 0
    """Steps over which the learning rate grows to its value."""
    decay: Literal["constant", "cosine"] = "constant"
    """What the learning rate does after the warm-up."""
    clip_norm: float | None = None
    """Bound of the norm of the gradient; None leaves it alone."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or self.warmup_steps < 0 or not self.weight_decay >= 0:
            raise UserError("an optimiser needs a finite lr > 0, warmup_steps >= 0 and weight_decay >= 0")
        if not (0 <= self.beta_1 < 1 and 0 <= self.beta_2 < 1):
            raise UserError(f"beta_1 and beta_2 lie in [0, 1), not {self.beta_1} and {self.beta_2}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"clip_norm is above 0, or None: not {self.clip_norm}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Dataset, model, objective, optimiser and budget of one experiment.

    `sampler` is what the trained model samples with by default.
    """

    name: str
    description: str = ""
    dataset: Dataset
    model: ModelConfig
    objective: Objective
    sampler: Sampler = Ancestral()
    optimiser: Optimiser = Optimiser()
    steps: int = 1000
    """Optimiser steps of the whole training."""
    batch_size: int = 64
    """Items a step, over all processes together."""
    ema_decay: float = 0.9995
    """Decay of the averaged weights, which are what is saved and sampled from."""
    ema_warmup: bool = True
    """Let the decay grow as (1 + k) / (10 + k) over the first updates k, so that the initial weights are forgotten."""
    seed: int = 0
    """Seed of the initial weights and of every draw in training."""
    start_from: str = ""
    """Folder of a trained model whose weights training starts from; fresh ones where empty."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not 0 <= self.ema_decay < 1:
            raise UserError("a recipe needs steps >= 1, batch_size >= 1 and 0 <= ema_decay < 1")
