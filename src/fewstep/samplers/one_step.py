"""One call of a generator: no clock, no steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source, integers
from fewstep.errors import UserError
from fewstep.models.generator import Generator
from fewstep.samplers.base import Sampler, check_model


@dataclass(frozen=True)
class OneStep(Sampler):
    """`x_0 = G(noise)`; NFE = 1. The noise decides; of a generator with classes the label is drawn, uniformly, or `label`.

    `strength` of guidance from 1 (none) to what the model knows. Raises `UserError` for a label that there is not, a label of a
    generator without classes, and any number of steps but 1.
    """

    draws_from = Generator

    label: int | None = None
    strength: float = 1.0

    @property
    def takes_steps(self) -> bool:
        return False

    @property
    def nfe(self) -> int:
        return 1

    @torch.no_grad()
    def __call__(self, model: Generator, noise: Tensor, generator: Source = None) -> Tensor:
        check_model(self, model)
        if not model.num_classes:
            if self.label is not None:
                raise UserError(f"the generator has no classes: leave the label {self.label} out")
            return model(noise, None, self.strength)
        if self.label is not None and not 0 <= self.label < model.num_classes:
            raise UserError(f"there is no class {self.label}: the generator knows 0 to {model.num_classes - 1}")
        if self.label is None:
            labels = integers(model.num_classes, (len(noise),), generator).to(noise.device)
        else:
            labels = torch.full((len(noise),), self.label, device=noise.device)
        return model(noise, labels, self.strength)
