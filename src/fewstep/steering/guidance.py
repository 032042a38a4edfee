"""Guidance: pull the ancestral loop along the gradient of the value."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.bridge import bridge
from fewstep.errors import UserError
from fewstep.shapes import flat
from fewstep.steering.base import SteeringMethod, Tilt
from fewstep.steering.samples import Drawn
from fewstep.steering.target import Steps, Stepwise, check_count
from fewstep.steering.value import Gradient, estimate_value
from fewstep.times import Grid, UniformGrid


@dataclass(frozen=True, kw_only=True)
class Guidance(Stepwise, SteeringMethod):
    """`x_0 ~ q(x_0 | x_tau)`; the bridge to `x_s` moved as if x_0 were `x_0 + strength (sigma^2 / alpha) grad V / T`.

    `gradient` is one of those of `steering/value.py`, from `draws` draws: covariance (no derivative of reward or network),
    reparametrised, or plug-in, the baseline of the field. The last draw is left as it is. *Heuristic*: the draw is moved, not
    weighed, and the gradient is right for small steps only. With `weighted` the paths carry the weights that correct it, by the
    ratio of the bridge's densities with and without the move: *consistent* as an importance sampler, whose weights are the more
    uneven the more steps and dimensions there are.
    """

    steps: int = 20
    draws: int = 8
    gradient: Gradient = "covariance"
    strength: float = 1.0
    weighted: bool = False
    grid: Grid = UniformGrid()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient == "covariance":
            check_count("draws", self.draws, least=2)
        if not 0 <= self.strength < float("inf"):
            raise UserError(f"strength is a finite number from 0 up, not {self.strength}")

    @property
    def weighs(self) -> bool:
        return self.weighted

    def run(self, target: Tilt, k: int, meter: Steps) -> Drawn:
        x, schedule = target.start(k), target.model.schedule
        log_ratio = torch.zeros(len(x), dtype=torch.float64, device=x.device)  # of the moved path over the model's
        for step, (tau, s) in enumerate(pairwise(self.grid(self.steps, schedule).to(x.device)), start=1):
            if s == 0:
                x = target.draw(x, tau, 1)[0]
            else:
                found = estimate_value(target, x, tau, self.draws, self.gradient)
                x_0 = target.draw(x, tau, 1)[0] if self.gradient == "plug-in" else found.drawn[0]
                move = self.strength * (schedule.sigma(tau) ** 2 / schedule.alpha(tau)).to(x) * found.gradient
                x, said = self._moved(target, x_0, x, move, s, tau)
                log_ratio += said
            meter.update(step)
        return Drawn(x=x, log_w=(target.log_potential(x) - log_ratio).reshape(k, -1))

    def _moved(
        self, target: Tilt, x_0: Tensor, x: Tensor, move: Tensor, s: Tensor, tau: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`x_s` of the bridge with x_0 moved, and the log of its density over that of the bridge without."""
        mean, std = bridge(x_0, x, s, tau, target.model.schedule)
        moved, _ = bridge(x_0 + move, x, s, tau, target.model.schedule)
        noise = target.normal(x)
        away = flat((moved - mean) / std).double()
        return (moved + std * noise).to(x), 0.5 * away.square().sum(1) + (away * flat(noise)).sum(1)
