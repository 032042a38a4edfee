"""The law of the clean data given a noisy state, `q(x_0 | x_tau)`: what a posterior model returns.

A draw from it and one step of the bridge is a draw from the transition kernel of the reverse SDE (eq. 18). Three kinds:
a point mass (its use in place of draws is DDPM), the push-forward of noise by a conditional Mean Flow (eq. 20), and a
weighted set of particles.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source, categorical, normal_like
from fewstep.errors import UserError
from fewstep.flow import AverageVelocity, flow_map, follow
from fewstep.schedule import Schedule
from fewstep.shapes import per_item
from fewstep.times import even_times, given_times


class Posterior(ABC):
    """`q(x_0 | x_tau)` for a batch of states; draws have shape `(*shape, batch, ...)`."""

    @abstractmethod
    def sample(
        self,
        shape: tuple[int, ...] = (),
        *,
        flow_steps: int = 1,
        flow_grid: tuple[float, ...] | None = None,
        noise: Tensor | None = None,
        generator: Source = None,
    ) -> Tensor:
        """Draws of `x_0`, `(*shape, batch, ...)`, differentiable in `x_tau` and in the given standard normal `noise`.

        `flow_steps` and `flow_grid` (times from 1 down to 0) cut the flow clock; a posterior without a flow has no use
        for them. `noise` has the shape of the result; without it, it is drawn from `generator`.
        """

    @abstractmethod
    def mean(self, draws: int = 1, generator: Source = None) -> Tensor:
        """`E[x_0 | x_tau]`, `(batch, ...)`; where it is estimated, from this many draws of noise."""


def score(mean: Tensor, x_tau: Tensor, tau: Tensor, schedule: Schedule) -> Tensor:
    """`grad log q_tau(x_tau) = (alpha E[x_0 | x_tau] - x_tau) / sigma^2`, by Tweedie's formula (eq. 17)."""
    return (per_item(schedule.alpha(tau), x_tau) * mean - x_tau) / per_item(schedule.sigma(tau) ** 2, x_tau)


@dataclass(frozen=True)
class DiracPosterior(Posterior):
    """A point mass at `location`, `(batch, ...)`: it has no randomness, so `noise` changes nothing."""

    location: Tensor

    def sample(
        self,
        shape: tuple[int, ...] = (),
        *,
        flow_steps: int = 1,
        flow_grid: tuple[float, ...] | None = None,
        noise: Tensor | None = None,
        generator: Source = None,
    ) -> Tensor:
        return self.location.expand(*shape, *self.location.shape)

    def mean(self, draws: int = 1, generator: Source = None) -> Tensor:
        return self.location


@dataclass(frozen=True)
class EndPosterior(DiracPosterior):
    """A point mass where a deterministic flow ends: something to sample from, but not the posterior's mean."""

    def mean(self, draws: int = 1, generator: Source = None) -> Tensor:
        raise UserError(
            "a consistency map knows where the flow ends, not the posterior's mean: sample it with ancestral or re-noising"
        )


@dataclass(frozen=True, repr=False)
class FlowPosterior(Posterior):
    """The law of `decode(z_0, x_tau, tau)` for `z_1 ~ N(0, I)` carried by `u(z, r, t, x_tau, tau)` (eq. 20).

    One flow step is `z_0 = z_1 - u(z_1, 0, 1)`; more follow the flow map (9) along `flow_grid` or an even grid.
    """

    u: AverageVelocity
    decode: Callable[[Tensor, Tensor, Tensor], Tensor]
    x_tau: Tensor
    tau: Tensor

    def sample(
        self,
        shape: tuple[int, ...] = (),
        *,
        flow_steps: int = 1,
        flow_grid: tuple[float, ...] | None = None,
        noise: Tensor | None = None,
        generator: Source = None,
    ) -> Tensor:
        z = standard_noise(self.x_tau, shape, noise, generator)
        x_tau, tau = self._repeat(shape)
        grid = flow_times(flow_steps, flow_grid)
        w = follow(self.u, z.reshape(x_tau.shape), grid, held=(x_tau, tau))
        return self.decode(w, x_tau, tau).reshape(z.shape)

    def mean(self, draws: int = 1, generator: Source = None) -> Tensor:
        """`E[x_0 | x_tau]` from `z - u(z, 1, 1)`: at t = 1 the state is independent of the data, so one evaluation is enough."""
        z = normal_like(self.x_tau, generator, (draws,))
        x_tau, tau = self._repeat((draws,))
        z_1 = z.reshape(x_tau.shape)
        one = torch.ones_like(tau)
        w = z_1 - self.u(z_1, one, one, x_tau, tau)
        return self.decode(w, x_tau, tau).reshape(z.shape).mean(0)

    def flow_map(self, z: Tensor, t: Tensor | float, r: Tensor | float) -> Tensor:
        """`z_r` from `z_t` on the flow clock with `(x_tau, tau)` held (eq. 9), in the scaled coordinates."""
        return flow_map(self.u, z, t, r, held=(self.x_tau, self.tau))

    def _repeat(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        x_tau = self.x_tau.expand(*shape, *self.x_tau.shape).reshape(-1, *self.x_tau.shape[1:])
        return x_tau, self.tau.expand(*shape, *self.tau.shape).reshape(-1)


@dataclass(frozen=True)
class ParticlePosterior(Posterior):
    """Weighted particles: `particles` `(n, ...)`, the same for all items, with `log_weights` `(batch, n)`."""

    particles: Tensor
    log_weights: Tensor

    def sample(
        self,
        shape: tuple[int, ...] = (),
        *,
        flow_steps: int = 1,
        flow_grid: tuple[float, ...] | None = None,
        noise: Tensor | None = None,
        generator: Source = None,
    ) -> Tensor:
        if noise is not None:
            raise UserError(
                "a draw among particles is no function of Gaussian noise: pass a generator instead of noise"
            )
        return self.particles[categorical(self.log_weights, generator, shape)]

    def mean(self, draws: int = 1, generator: Source = None) -> Tensor:
        return torch.tensordot(self.log_weights.softmax(-1), self.particles, dims=1)


def standard_noise(x_tau: Tensor, shape: tuple[int, ...], noise: Tensor | None, generator: Source) -> Tensor:
    """The given noise, its shape checked, or fresh noise `(*shape, batch, ...)`."""
    expected = (*shape, *x_tau.shape)
    if noise is None:
        return normal_like(x_tau, generator, shape)
    if noise.shape != expected:
        raise UserError(f"noise of shape {tuple(noise.shape)} where {expected} is needed: (*shape, batch, ...)")
    return noise


def flow_times(flow_steps: int, flow_grid: tuple[float, ...] | None) -> Tensor:
    """The times of the flow clock: `flow_steps` even intervals, or the given times from 1 down to 0."""
    if flow_grid is None:
        return even_times(flow_steps)
    if flow_steps not in (1, len(flow_grid) - 1):
        raise UserError(f"flow_steps = {flow_steps}, but flow_grid has {len(flow_grid) - 1} steps: make them agree")
    return given_times(tuple(flow_grid))
