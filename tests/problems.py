"""Problems whose answers are known: mixtures, a linear-Gaussian flow, and small networks in general position."""

import importlib
import inspect
import math
import pkgutil
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor, nn

import fewstep.models
from fewstep.mixture import GaussianMixture
from fewstep.models import Model, ModelConfig
from fewstep.networks import MLPConfig, UNetConfig
from fewstep.networks.base import Network
from fewstep.schedule import VPSchedule

SCHEDULE = VPSchedule()
TINY_MLP = MLPConfig(width=16, depth=2)
TINY_UNET = UNetConfig(
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(8, 8),
    norm_num_groups=4,
    embedding_width=16,
)
TINY_NETWORKS = {"mlp": (TINY_MLP, (3,)), "unet": (TINY_UNET, (1, 8, 8))}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def generators(*seeds: int) -> list[torch.Generator]:
    return [generator(seed) for seed in seeds]


def doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def normals(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def t2() -> GaussianMixture:
    """The asymmetric reference problem: three components in two dimensions."""
    covariances = [[[0.30, 0.10], [0.10, 0.20]], [[0.25, -0.05], [-0.05, 0.40]], [[0.50, 0.0], [0.0, 0.10]]]
    means = [[-2.0, 0.0], [2.0, 1.0], [0.0, -2.0]]
    return GaussianMixture(doubles(0.5, 0.3, 0.2), _doubles(means), _doubles(covariances))


def three_modes() -> GaussianMixture:
    """Three separated modes on the line."""
    deviations = doubles(0.2, 0.3, 0.15)
    means = doubles(-2, 0.5, 2)[:, None]
    return GaussianMixture(doubles(0.5, 0.3, 0.2), means, (deviations**2)[:, None, None])


def ring(modes: int = 8, radius: float = 2.0, std: float = 0.1) -> GaussianMixture:
    """Equal modes on a circle."""
    angles = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    means = radius * torch.stack([angles.cos(), angles.sin()], dim=1)
    return GaussianMixture(
        torch.ones(modes, dtype=torch.float64), means, std**2 * torch.eye(2).double().expand(modes, 2, 2)
    )


def gaussian(mean: Tensor, std: float) -> GaussianMixture:
    """One isotropic component."""
    d = mean.shape[0]
    return GaussianMixture(doubles(1.0), mean[None], std**2 * torch.eye(d, dtype=mean.dtype)[None])


def tau_of(alpha_squared: float, schedule: VPSchedule = SCHEDULE) -> Tensor:
    """The time at which `alpha^2` has this value."""
    return schedule.tau_at(doubles(alpha_squared).logit()[0])


class LinearFlow:
    """The flow from N(0, I) at t = 1 to N(m, s^2 I) at t = 0: `z_t` has mean `(1-t) m`, variance `(1-t)^2 s^2 + t^2`.

    A flow line keeps its standardised coordinate, so that
    `u = -m + (t + r - s^2 (2 - t - r)) / (sd_t (sd_t + sd_r)) (z - (1-t) m)`, and v is the same at r = t.
    """

    def __init__(self, mean: float, std: float):
        self.mean, self.std = mean, std

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - t) * self.mean, ((1 - t) ** 2 * self.std**2 + t**2).sqrt()

    def line(self, z: Tensor, t: Tensor, q: Tensor) -> Tensor:
        """Where the flow line through z at t is at q."""
        (mean_t, std_t), (mean_q, std_q) = self.moments(t), self.moments(q)
        return mean_q + std_q / std_t * (z - mean_t)

    def v(self, z: Tensor, t: Tensor) -> Tensor:
        """`E[eps - x_0 | z_t = z]` by regression: `Cov(eps - x_0, z_t) / Var(z_t)`."""
        mean, std = self.moments(t)
        return -self.mean + (t - (1 - t) * self.std**2) / std**2 * (z - mean)

    def __call__(self, z: Tensor, r: Tensor, t: Tensor, *held: Tensor) -> Tensor:
        column = (-1, *[1] * (z.ndim - 1))
        r, t = r.reshape(column), t.reshape(column)
        (mean_t, std_t), (_, std_r) = self.moments(t), self.moments(r)
        slope = (t + r - self.std**2 * (2 - t - r)) / (std_t * (std_t + std_r))
        return -self.mean + slope * (z - mean_t)


def tiny_network(name: str, inputs: int, times: int, seed: int = 0) -> tuple[Network, tuple[int, ...]]:
    """A small network in float64, its zero-initialised weights moved away from zero, and the shape of its items."""
    config, item_shape = TINY_NETWORKS[name]
    with seeded(seed):
        network = config.build(item_shape, inputs=inputs, times=times)
    return randomise(network.double(), seed), item_shape


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global stream, from which fresh weights are drawn, starts here and is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def randomise(module: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """Move every parameter by normal noise, so that no gradient vanishes by initialisation."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=source, dtype=parameter.dtype)
            parameter.add_(scale * noise)
    return module


def members(package: ModuleType, family: type) -> list[type]:
    """Every concrete class of a family, found in the file that defines it."""
    found = []
    for file in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        module = importlib.import_module(file.name)
        classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
        found += [c for c in classes if issubclass(c, family) and not inspect.isabstract(c)]
    return found


def models_for(function: typing.Callable, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Model]:
    """Small models, in general position, of every kind that fits the annotation of this function's argument `model`."""
    wanted, models = typing.get_type_hints(function)["model"], []
    for config in members(fewstep.models, ModelConfig):
        if issubclass(typing.get_type_hints(config.build)["return"], wanted):
            with seeded(seed):
                model = config(network=TINY_MLP).build((3,))
            model.fit(2 * normals(100, 3, seed=seed) + 1)
            models.append(randomise(model.to(dtype), seed))
    assert models, f"no model is a {wanted}: give it a config in fewstep.models"
    return models


def gradients(module: nn.Module) -> Tensor:
    """All gradients as one vector; a parameter without one is an error."""
    missing = [name for name, p in module.named_parameters() if p.grad is None]
    assert not missing, f"no gradient for {missing}"
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def _doubles(rows: list) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)
