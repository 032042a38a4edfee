"""What every objective is, and what they share: the loss of each item, before any mean."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.shapes import flat

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of each item `(batch,)`: `per_sample` is what the loop averages, `raw` the squared error before weights.

    `logs` are detached numbers per item: `bucket` (the interval t - r, or tau where there is no flow clock) sorts `raw`
    in the log; others are averaged.
    """

    per_sample: Tensor
    raw: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Objective(ABC):
    """A loss for a model; hyper-parameters are the fields of a frozen dataclass."""

    @abstractmethod
    def __call__(self, model: Any, batch: Batch, generator: Source) -> Loss:
        """The loss of `batch["x_0"]` `(batch, ...)`; all randomness comes from the generator."""


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """`||prediction - target||^2`, summed over the components of each item."""
    return flat(prediction - target).square().sum(1)


def adaptive_weight(raw: Tensor, power: float, constant: float) -> Tensor:
    """`1 / sg(raw + c)^p` (eq. 73; Geng et al., arXiv 2505.13447, eq. 22); 1 where p = 0."""
    if power == 0:
        return torch.ones_like(raw)
    return (raw.detach() + constant) ** -power


def check_adaptive_weight(power: float, constant: float) -> None:
    """`UserError` where the adaptive weight could grow without bound or favour large errors."""
    if power < 0 or constant <= 0:
        raise UserError("the adaptive weight needs a power of at least 0 and a constant above 0")
