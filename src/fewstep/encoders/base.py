"""What every encoder is: a frozen network whose feature maps a drifting field looks at."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fewstep.errors import UserError


class MapsModule(nn.Module, ABC):
    """A network with feature maps: `maps(x)` is a list of tensors `(batch, C_k, H_k, W_k)`."""

    @abstractmethod
    def maps(self, x: Tensor) -> list[Tensor]:
        """`(batch, C_k, H_k, W_k)` for each map k, of items `(batch, channels, height, width)`; differentiable in them."""


@dataclass(frozen=True, kw_only=True)
class Encoder(ABC):
    """Where a frozen network with feature maps comes from; hyper-parameters are the fields of a frozen dataclass."""

    @abstractmethod
    def build(self, item_shape: tuple[int, ...], data: Path | None = None) -> MapsModule:
        """The network for items of this shape, in eval mode, no parameter of which asks for a gradient.

        `data` is the folder of the data sets. Raises `UserError` where it cannot be had or is of other items.
        """


def check_frozen(network: nn.Module) -> None:
    """`UserError` where a parameter would be trained with the generator, which then learns to deceive it."""
    loose = [name for name, p in network.named_parameters() if p.requires_grad]
    if loose:
        raise UserError(
            f"{len(loose)} parameters of the encoder ask for gradients ({loose[0]} is one): an encoder is frozen, call "
            ".requires_grad_(False) on it"
        )
    if network.training:
        raise UserError("the encoder is in training mode: call .eval() on it, or its features change from step to step")
