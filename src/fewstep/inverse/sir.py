"""Decoupled sampling: choose among draws the one that explains y, forget the state, add fresh noise, at less and less of it."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep import transition
from fewstep.draws import categorical
from fewstep.errors import UserError
from fewstep.inverse.base import Drawn, InverseMethod, Problem, Steps
from fewstep.inverse.latent import LatentChain
from fewstep.particles import take
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
        if self.levels < 1 or self.draws < 1:
            raise UserError("levels and draws count from 1 up")

    @property
    def iterations(self) -> int:
        return self.levels

    @property
    def held(self) -> int:
        return self.draws

    def run(self, problem: Problem, k: int, meter: Steps) -> Drawn:
        x, schedule = problem.start(k), problem.model.schedule
        x_0, notes = x, tuple[str, ...]()
        for step, (tau, s) in enumerate(pairwise(self.grid(self.levels, schedule).to(x.device)), start=1):
            x_0, notes = self._choose(problem, x, tau) if self.chain is None else self._explore(problem, x, tau)
            if s > 0:
                x = transition.sample(x_0, torch.zeros_like(s), s, schedule, problem.source(len(x))).to(x)
            meter.update(step)
        return Drawn(x=x_0, notes=notes)

    def _choose(self, problem: Problem, x: Tensor, tau: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """A draw of each row by its likelihood; a note where one draw has more than half of the weight in most of the rows."""
        drawn = problem.draw(x, tau, self.draws)
        log_p = problem.log_likelihood(drawn)
        chosen = take(drawn, categorical(log_p.T, problem.source(len(x)))[None])[0]
        heavy = (log_p.double().softmax(0).amax(0) > 0.5).double().mean().item()
        note = (
            f"at the last level one of the {self.draws} draws has more than half of the weight in {heavy:.0%} of the chains: "
            "take more draws or levels, or a chain (PCN)"
        )
        return chosen, (note,) if heavy > 0.5 and self.draws > 2 else ()

    def _explore(self, problem: Problem, x: Tensor, tau: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """The end of a chain that starts at the noise of a draw chosen as in `_choose`."""
        assert self.chain is not None
        z = problem.normal(x, (self.draws,))
        log_p = problem.log_likelihood(problem.push(x, tau, z))
        z = take(z, categorical(log_p.T, problem.source(len(x)))[None])[0]

        def value(z: Tensor) -> tuple[Tensor, Tensor]:
            x_0 = problem.push(x, tau, z[None])
            return x_0[0], problem.log_likelihood(x_0)[0]

        x_0, accepted = self.chain.run(problem, value, z)
        share = accepted.item()
        note = f"the chain accepts {share:.0%} of its proposals at the last level, where .1 to .9 is useful: change its size"
        return x_0, (note,) if not 0.05 < share < 0.97 else ()
