"""Algorithm 2: draw `x_0` from the posterior, step through the bridge, repeat.

One loop, every posterior: with an exact posterior it has the exact law at every number of steps; with a point mass at
the mean it is DDPM; with a Mean Flow of the posterior it is STMD.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from fewstep.bridge import kernel, sample_bridge
from fewstep.draws import Source, normal_like, split
from fewstep.errors import UserError
from fewstep.models.base import PosteriorModel
from fewstep.posterior import flow_times
from fewstep.samplers.base import Sampler, check_model, check_steps
from fewstep.times import Grid, UniformGrid


@dataclass(frozen=True, kw_only=True)
class State:
    """One step of the loop: the state `x_tau` at time `tau`, and the `x_0` that was drawn from it."""

    tau: float
    x_tau: Tensor
    x_0: Tensor


@dataclass(frozen=True)
class Ancestral(Sampler):
    """`x_0 ~ q(x_0 | x_tau)`, then `x_s ~ p(x_s | x_0, x_tau)`, along `1 = tau_N > ... > tau_0 = 0` (Algorithm 2).

    `Ancestral(steps, flow_steps=1)`: N outer and M inner steps, NFE = N M. `grid` cuts the diffusion clock, `flow_grid`
    (times from 1 down to 0) the flow clock. `kernel` is the bridge (19) or the number c in [0, 1] of the family in
    `bridge.py`: 1 is DDIM, 0 re-noising. At most `max_batch` items are worked on at a time; with one generator per item
    that changes no item. Raises `UserError` where a number is out of range.
    """

    draws_from = PosteriorModel

    steps: int = 4
    flow_steps: int = 1
    grid: Grid = UniformGrid()
    flow_grid: tuple[float, ...] | None = None
    kernel: Literal["bridge"] | float = "bridge"
    max_batch: int | None = None

    def __post_init__(self) -> None:
        check_steps(self.steps, self.grid)
        if self.kernel != "bridge" and not (isinstance(self.kernel, int | float) and 0 <= self.kernel <= 1):
            raise UserError(f"the kernel is 'bridge' or a number c from 0 (re-noising) to 1 (DDIM), not {self.kernel}")
        if self.max_batch is not None and self.max_batch < 1:
            raise UserError(f"max_batch is at least 1, not {self.max_batch}")
        if not isinstance(self.flow_steps, int):
            raise UserError(f"flow_steps is a whole number from 1 up, not {self.flow_steps}")
        flow_times(self.flow_steps, self.flow_grid)

    @property
    def nfe(self) -> int:
        return self.steps * self.flow_steps

    @torch.no_grad()
    def __call__(self, model: PosteriorModel, noise: Tensor, generator: Source = None) -> Tensor:
        check_model(self, model)
        chunks = noise.split(self.max_batch or max(noise.shape[0], 1))
        sources = split(generator, [len(chunk) for chunk in chunks])
        return torch.cat([self._walk(model, x, g)[-1].x_0 for x, g in zip(chunks, sources, strict=True)])

    @torch.no_grad()
    def trajectory(self, model: PosteriorModel, noise: Tensor, generator: Source = None) -> list[State]:
        """Every state of the loop, from tau = 1 on; the last `x_0` is the sample."""
        check_model(self, model)
        return self._walk(model, noise, generator, keep=True)

    def _walk(self, model: PosteriorModel, x: Tensor, generator: Source, keep: bool = False) -> list[State]:
        times = self.grid(self.steps, model.schedule).to(device=x.device)
        states: list[State] = []
        for tau, s in pairwise(times):
            # the times stay in float64 for the closed forms; a network casts them to the dtype of x
            posterior = model(x, tau)
            x_0 = posterior.sample(flow_steps=self.flow_steps, flow_grid=self.flow_grid, generator=generator)
            state = State(tau=tau.item(), x_tau=x, x_0=x_0)
            states = [*states, state] if keep else [state]
            if s > 0:
                x = self._step(x_0, x, s, tau, model, generator)
        return states

    def _step(
        self, x_0: Tensor, x_tau: Tensor, s: Tensor, tau: Tensor, model: PosteriorModel, generator: Source
    ) -> Tensor:
        if self.kernel == "bridge":
            return sample_bridge(x_0, x_tau, s, tau, model.schedule, generator)
        mean, std = kernel(x_0, x_tau, s, tau, model.schedule, float(self.kernel))
        return (mean + std * normal_like(x_0, generator)).to(x_tau.dtype)
