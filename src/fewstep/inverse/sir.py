"""Decoupled sampling: choose among draws the one that explains y, forget the state, add fresh noise, at less and less of it."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep import transition
from fewstep.inverse.base import InverseMethod, Problem
from fewstep.inverse.latent import LatentChain
from fewstep.particles import choose, take
from fewstep.steering.samples import Drawn
from fewstep.steering.target import Steps, check_count
from fewstep.times import Grid, UniformGrid


@dataclass(frozen=True, kw_only=True)
class DecoupledSIR(InverseMethod):
    """`x_0 ~ q(x_0 | x_tau) p(y | x_0)`, one of `draws` draws; `x_s = alpha_s x_0 + sigma_s eps`; for `levels` times tau.

    Sampling-importance-resampling (Rubin 1988) inside decoupled annealing (DAPS, Zhang et al. 2024, which has a Gaussian
    around the mean in its place). *Consistent*: exact as `draws` grow, at every number of levels, for any operator and any
    noise with a likelihood; no gradient and no adjoint. In many dimensions few draws explain y: then a `chain` in the noise
    of the draws (`PCN`, `MALA`) goes on from the chosen one, and makes it exact as the chain gets long.
    """

    levels: int = 5
    draws: int = 64
    chain: LatentChain | None = None
    grid: Grid = UniformGrid()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("levels", self.levels)
        check_count("draws", self.draws)

    @property
    def iterations(self) -> int:
        return self.levels

    @property
    def held(self) -> int:
        return self.draws

    def run(self, problem: Problem, k: int, meter: Steps) -> Drawn:
        x, schedule = problem.start(k), problem.model.schedule
        x_0, worst = x, torch.zeros(len(problem.y), dtype=torch.float64)
        for step, (tau, s) in enumerate(pairwise(self.grid(self.levels, schedule).to(x.device)), start=1):
            x_0, bad = self._choose(problem, x, tau) if self.chain is None else self._explore(problem, x, tau)
            worst = torch.maximum(worst, bad.reshape(k, -1).double().mean(0).cpu())  # of each problem, over levels
            if s > 0:
                x = transition.sample(x_0, torch.zeros_like(s), s, schedule, problem.source(len(x))).to(x)
            meter.update(step)
        return Drawn(x=x_0, bad=worst > 0.5, complaint=self._complaint())

    def _complaint(self) -> str:
        if self.chain is not None:
            return "most chains hardly move or take every proposal at some level: change their size"
        return (
            f"one of the {self.draws} draws has more than half of the weight, or none explains y, in most of the chains at some "
            "level: take more draws or levels, or a chain (PCN)"
        )

    def _choose(self, problem: Problem, x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of each row by its likelihood, and in which rows few of the draws carry the weight."""
        drawn = problem.draw(x, tau, self.draws)
        log_p = problem.log_potential(drawn).double()
        few = (log_p.softmax(0).amax(0) > 0.5) | log_p.isneginf().all(0)
        return take(drawn, choose(log_p, problem.source(len(x))))[0], few

    def _explore(self, problem: Problem, x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """The end of a chain that starts at the noise of a draw chosen as in `_choose`, and which chains are stuck or blind."""
        assert self.chain is not None
        z = problem.normal(x, (self.draws,))
        log_p = problem.log_potential(problem.push(x, tau, z))
        z = take(z, choose(log_p, problem.source(len(x))))[0]

        def value(z: Tensor) -> tuple[Tensor, Tensor]:
            x_0 = problem.push(x, tau, z[None])
            return x_0[0], problem.log_potential(x_0)[0]

        x_0, accepted = self.chain.run(problem, value, z)
        return x_0, (accepted < 0.05) | ((accepted > 0.97) & (self.chain.length > 10))
