"""A one-step generator: noise in, an item out. What drifting trains."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.models.base import ModelConfig, NetworkModel
from fewstep.networks.base import Network


class Generator(NetworkModel):
    """`model(z) = m + s network(z)`, z `(batch, ...)` standard normal, m the mean item, s the deviation of one component.

    The law of the result is the model's law of the data: it has no diffusion, no density and no posterior. Where the network has
    classes, `labels` `(batch,)` say which. `max_strength` above 1 makes the strength of guidance an input, from 1 (none) up to
    it, one number or one for each item; the network sees `(strength - 1) / (max_strength - 1)` where others see times.
    Raises `UserError` where labels and classes do not go together or the strength is out of its range.
    """

    def __init__(
        self, network: nn.Module, item_shape: tuple[int, ...], num_classes: int = 0, max_strength: float = 1.0
    ):
        super().__init__(network, None, item_shape)
        if not 1 <= max_strength < math.inf:
            raise UserError(f"a strength of guidance counts from 1 (none) up: max_strength is not {max_strength}")
        self.num_classes = num_classes
        self.max_strength = max_strength

    def forward(self, z: Tensor, labels: Tensor | None = None, strength: Tensor | float = 1.0) -> Tensor:
        self._check(z, labels)
        power = torch.as_tensor(strength, dtype=z.dtype, device=z.device)
        if power.shape not in ((), z.shape[:1]):
            raise UserError(f"strengths {tuple(power.shape)} for {len(z)} items: give one number, or one for each")
        if not ((power >= 1) & (power <= self.max_strength)).all():
            known = (
                f"lies in [1, {self.max_strength:g}]" if self.max_strength > 1 else "is 1 of a model trained without it"
            )
            raise UserError(f"the strength of guidance {known}, not {power.min():g} .. {power.max():g}")
        power = power.expand(len(z))
        share = (power - 1) / (self.max_strength - 1) if self.max_strength > 1 else torch.zeros_like(power)
        return self.data_mean + self.data_std * self.network(z, share[:, None], labels)

    def _check(self, z: Tensor, labels: Tensor | None) -> None:
        if tuple(z.shape[1:]) != self.item_shape:
            raise UserError(f"noise of shape {tuple(z.shape)} for items of shape {self.item_shape}")
        if (labels is None) != (self.num_classes == 0):
            raise UserError(
                "labels go with a generator of classes, and this has none: leave them out"
                if labels is not None
                else f"a generator of {self.num_classes} classes needs labels: take GuidedDrifting to train it, OneStep to sample"
            )
        if labels is not None and (
            labels.shape != z.shape[:1] or not ((labels >= 0) & (labels < self.num_classes)).all()
        ):
            raise UserError(
                f"labels {tuple(labels.shape)} for {len(z)} items: one for each, from 0 to {self.num_classes - 1}"
            )

    @property
    def config(self) -> "GeneratorConfig":
        """What rebuilds this model, if its network has a `config`."""
        return GeneratorConfig(network=cast(Network, self.network).config, max_strength=self.max_strength)


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(ModelConfig):
    """A generator; of classes where the network's `num_classes` says so, with guidance where `max_strength` is above 1."""

    max_strength: float = 1.0

    def build(self, item_shape: tuple[int, ...]) -> Generator:
        network = self.network.build(item_shape, inputs=1, times=1)
        return Generator(network, item_shape, self.network.num_classes, self.max_strength)
