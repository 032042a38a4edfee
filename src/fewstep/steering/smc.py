"""Steering by sequential Monte Carlo (Feynman-Kac): many particles that compete, or a single one that looks ahead."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source, normal
from fewstep.errors import UserError
from fewstep.models.base import PosteriorModel
from fewstep.steering.base import RewardFunction, SteeringMethod, Tilt
from fewstep.steering.nested import Particles, last, nested_smc
from fewstep.steering.samples import Drawn
from fewstep.steering.target import Steps, Stepwise
from fewstep.times import Grid, UniformGrid

PROBES = 64  # samples that measure how sharp a reward is


@dataclass(frozen=True, kw_only=True)
class LookAheadSteering(Stepwise, SteeringMethod):
    """What both share: `steps` times tau, at each `draws` draws of x_0, one of them chosen in proportion to `exp(r / T)`.

    The reward counts in full at low noise, and by `1 / (1 + anneal sigma^2 d)` at deviation sigma, d the deviation of `r / T`
    among 64 one-step samples of the model: where the reward is sharp, early draws say little of what is to come and would be
    followed too eagerly, at the price of very uneven weights. No anneal changes the target.
    """

    steps: int = 20
    draws: int = 8
    anneal: float = 1.0
    grid: Grid = UniformGrid()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.anneal < float("inf"):
            raise UserError(f"anneal is a finite number from 0 up, not {self.anneal}")

    def states(self, target: Tilt, k: int, share: float) -> Iterator[Particles]:
        """The particles at every time, and in the end their samples."""
        schedule = target.model.schedule
        times = self.grid(self.steps, schedule).to(target.like.device)
        scale = self.anneal * _sharpness(target, times[0]) if self.anneal else 0.0

        def softness(tau: Tensor) -> float:
            return 1 / (1 + scale * schedule.sigma(tau).item() ** 2)

        return nested_smc(target, k, times, self.draws, share, softness)


def _sharpness(target: Tilt, tau: Tensor) -> float:
    """The deviation of `r / T` among samples of one step from tau."""
    x = normal((PROBES, *target.model.item_shape), target.generator, like=target.like)
    g = target.log_potential(target.draw(x, tau, 1))[0]
    return g[g.isfinite()].std().item() if g.isfinite().sum() > 1 else 1.0


@dataclass(frozen=True, kw_only=True)
class SMC(LookAheadSteering):
    """Nested sequential Monte Carlo (`nested_smc`) with `r / T` as g: the samples are the particles of one population.

    *Consistent*: exact as the samples grow, for any number of draws, and `exp(log_z)` is unbiased. Particles are resampled where
    their effective number falls below the share `resample`, and keep their weights where it does not.
    """

    resample: float = 0.5

    together = True
    remedy = "take more samples or draws, a higher temperature, or an anneal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.resample <= 1:
            raise UserError(f"resample is a share in [0, 1], not {self.resample}")

    def run(self, target: Tilt, k: int, meter: Steps) -> Drawn:
        return last(self.states(target, k, self.resample), meter.update)


@dataclass(frozen=True, kw_only=True)
class SingleParticle(LookAheadSteering):
    """Every sample is a chain of its own that follows the best of its draws: no population, so one is enough.

    *Heuristic* by itself: too eager or too slow as the draws go, with modes weighed as they were met. With `weighted` the
    chains carry the weights that correct it, and it is *consistent* as an importance sampler. Without an anneal the reward is
    followed from the start. `walk` gives the states one by one, for interactive use.
    """

    anneal: float = 0.0
    weighted: bool = False

    @property
    def weighs(self) -> bool:
        return self.weighted

    def run(self, target: Tilt, k: int, meter: Steps) -> Drawn:
        return last(self.states(target, k, 0.0), meter.update)

    def walk(self, model: PosteriorModel, reward: RewardFunction, generator: Source = None) -> Iterator[Particles]:
        """One chain, state by state: look at `state.drawn` `(draws, 1, ...)`, change what the reward wants, go on.

        The reward is asked anew at every state: a change of it counts from the next draws on, not for those just shown. The last
        state's x is the sample. Raises `UserError` where the model has no posterior.
        """
        self.check_model(model)
        states = self.states(self.target(model, reward, generator), 1, 0.0)
        while True:
            with torch.no_grad():  # not around the whole: it would stay on between the states
                state = next(states, None)
            if state is None:
                return
            yield state
