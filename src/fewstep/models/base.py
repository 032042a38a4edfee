"""A model gives a network's numbers their meaning; a posterior model returns `q(x_0 | x_tau)` when called."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import evidence
from fewstep.errors import UserError
from fewstep.networks.base import Network, NetworkConfig
from fewstep.posterior import Posterior
from fewstep.scaling import Scaling
from fewstep.schedule import Schedule
from fewstep.shapes import per_item, times_of


class Model(nn.Module, ABC):
    """A network (or closed form), the shape of one item, and the schedule; None where there is no diffusion.

    `sampler` is the default sampler that a saved model carries.
    """

    sampler: Any = None

    def __init__(self, schedule: Schedule | None, item_shape: tuple[int, ...]):
        super().__init__()
        self.schedule = schedule
        self.item_shape = tuple(item_shape)

    @property
    def evaluated(self) -> nn.Module:
        """The module of which one call is one function evaluation: the network where there is one."""
        return self

    @property
    def like(self) -> Tensor:
        """A tensor of the model's dtype and device: its first parameter or floating buffer; on the CPU where it has none."""
        tensors = [*self.parameters(), *(b for b in self.buffers() if b.is_floating_point()), torch.empty(0)]
        return tensors[0]

    @property
    def config(self) -> "ModelConfig":
        """What rebuilds the model. Raises `UserError` where nothing does: such a model cannot be saved."""
        raise UserError(f"{type(self).__name__} has no configuration to rebuild it from, so it cannot be saved")

    def fit(self, x_0: Tensor) -> None:
        """Measure on data `(n, ...)` what the model stores of it, before training."""


class PosteriorModel(Model):
    """A model of the posterior: `model(x_tau, tau) -> Posterior`.

    `x_tau` is `(batch, ...)`; `tau` in (0, 1], one time or one per item.
    """

    schedule: Schedule

    @abstractmethod
    def forward(self, x_tau: Tensor, tau: Tensor | float) -> Posterior:
        """`q(x_0 | x_tau)` for each state of the batch. Raises `UserError` where state or times do not fit the model."""

    def times(self, x_tau: Tensor, tau: Tensor | float) -> Tensor:
        """The times `(batch,)`, after a check of states and times: wrong shapes would broadcast to a wrong answer."""
        if tuple(x_tau.shape[1:]) != self.item_shape:
            raise UserError(
                f"states of shape {tuple(x_tau.shape)} for items of shape {self.item_shape}: give (batch, "
                f"{', '.join(map(str, self.item_shape))})"
            )
        times = times_of(tau, x_tau)
        if not ((times > 0) & (times <= 1)).all():
            raise UserError("tau is above 0 (data) and at most 1 (noise)")
        return times


class NetworkModel(Model):
    """A model with a network that stores of the data the mean item m and the standard deviation s of one component around it.

    `fit` measures them and raises `UserError` on constant data.
    """

    data_mean: Tensor
    data_std: Tensor

    def __init__(self, network: nn.Module, schedule: Schedule | None, item_shape: tuple[int, ...]):
        super().__init__(schedule, item_shape)
        self.network = network
        self.register_buffer("data_mean", torch.zeros(self.item_shape))
        self.register_buffer("data_std", torch.ones(()))

    @property
    def evaluated(self) -> nn.Module:
        return self.network

    def fit(self, x_0: Tensor) -> None:
        mean = x_0.double().mean(0)
        std = (x_0.double() - mean).square().mean().sqrt()
        if not std > 0:
            raise UserError("the data is constant: its standard deviation is 0, so there is nothing to learn")
        self.data_mean.copy_(mean)
        self.data_std.copy_(std)


class NetworkPosteriorModel(NetworkModel, PosteriorModel):
    """A posterior model with a network, whose target is `w` in `x_0 = offset(x_tau, tau) + scale(tau) w`."""

    schedule: Schedule

    def __init__(self, network: nn.Module, schedule: Schedule, scaling: Scaling, item_shape: tuple[int, ...]):
        super().__init__(network, schedule, item_shape)
        self.scaling = scaling

    def encode(self, x_0: Tensor, x_tau: Tensor, tau: Tensor) -> Tensor:
        """`w = (x_0 - offset) / scale`; tau is `(batch,)`."""
        offset, scale = self.coefficients(x_tau, tau)
        return (x_0 - offset) / scale

    def decode(self, w: Tensor, x_tau: Tensor, tau: Tensor) -> Tensor:
        """`x_0 = offset + scale w`; tau is `(batch,)`."""
        offset, scale = self.coefficients(x_tau, tau)
        return offset + scale * w

    def observation(self, z: Tensor, t: Tensor, x_tau: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """What `z_t = (1 - t) w + t eps` and `x_tau` together say of `x_0`: `(y, lam)` of `evidence.combine`."""
        offset, scale = self.coefficients(x_tau, tau)
        return evidence.combine(
            z, t, x_tau, self.schedule.alpha(tau), self.schedule.sigma(tau), offset, scale.flatten()
        )

    def coefficients(self, x_tau: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """`(offset, scale)` of `x_0 = offset + scale w`, with axes behind the batch's; tau is `(batch,)`."""
        offset, scale = self.scaling.coefficients(x_tau, tau, self.schedule, self.data_mean, self.data_std)
        return offset, per_item(scale, x_tau)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """The hyper-parameters of a model: `build(item_shape)` makes it."""

    network: NetworkConfig

    @abstractmethod
    def build(self, item_shape: tuple[int, ...]) -> Model:
        """The model for items of this shape, with fresh weights."""

    def build_network(self, item_shape: tuple[int, ...], inputs: int, times: int) -> Network:
        """The network. Raises `UserError` where it asks for class labels, which no model passes yet."""
        if self.network.num_classes:
            raise UserError(f"{type(self).__name__} passes no class labels: leave num_classes at 0")
        return self.network.build(item_shape, inputs, times)


class EvaluationCounter:
    """Counts the function evaluations of a model while it is open: calls of its network, item by item.

    `with EvaluationCounter(model) as counter: ...; counter.items / n` is the NFE of one of n samples.
    """

    def __init__(self, model: Model):
        self.model = model
        self.calls = 0
        self.items = 0

    def __enter__(self) -> "EvaluationCounter":
        self._hook = self.model.evaluated.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _count(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.calls += 1
        self.items += args[0].shape[0]
