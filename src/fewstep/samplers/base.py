"""What every sampler is."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from fewstep.draws import Source


class Sampler(ABC):
    """Turns noise into samples with a model; hyper-parameters are the fields of a frozen dataclass."""

    @abstractmethod
    def __call__(self, model: Any, noise: Tensor, generator: Source = None) -> Tensor:
        """`x_0` `(batch, ...)` from standard normal noise `(batch, ...)`; further randomness comes from the generator."""
