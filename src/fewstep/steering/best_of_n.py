"""Best of n: draw, look, keep one. Knows nothing of the diffusion, and is what everything else has to beat."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import normal_like
from fewstep.errors import UserError
from fewstep.models.base import Model
from fewstep.particles import choose, log_mean_exp, take
from fewstep.samplers.base import Sampler, check_model
from fewstep.samplers.usual import sampler_of
from fewstep.steering.base import SteeringMethod, Tilt
from fewstep.steering.samples import Drawn
from fewstep.steering.target import Steps, check_count


@dataclass(frozen=True, kw_only=True)
class BestOfN(SteeringMethod):
    """Of n samples of the model, by `sampler` (its own if left out), the one with the largest reward.

    *Heuristic*: it does not know the temperature. Its divergence from the model is at most `log n - (n - 1) / n` (equal
    to it where no two rewards are). With `soft`, one in proportion to `exp(r / T)` instead: importance resampling, with
    `weighted` *consistent* for any n; n = 1 with both is plain importance sampling.
    """

    n: int = 4
    soft: bool = False
    weighted: bool = False
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("n", self.n)
        if self.weighted and not self.soft:
            raise UserError(
                "the best of n has no weight that would make it a draw of the target: give soft=True as well"
            )

    @property
    def iterations(self) -> int:
        return 1

    @property
    def held(self) -> int:
        return self.n

    @property
    def weighs(self) -> bool:
        return self.weighted

    def check_model(self, model: Model) -> None:
        """Any model will do: a sampler says whether it draws from it."""
        check_model(self.sampler or sampler_of(model, self.flow_steps), model)

    def run(self, target: Tilt, k: int, meter: Steps) -> Drawn:
        sampler: Sampler = self.sampler or sampler_of(target.model, self.flow_steps)
        b = target.count * k
        noise = normal_like(target.like, target.generator, (self.n * k,)).flatten(0, 1)
        parts = [sampler(target.model, part, target.generator) for part in noise.split(self.max_batch)]
        drawn = torch.cat(parts).reshape(self.n, b, *noise.shape[1:])
        g = target.log_potential(drawn)
        chosen = choose(g, target.generator) if self.soft else g.argmax(0)[None]
        meter.update(1)
        x = take(drawn, chosen)[0]
        return Drawn(x=x, log_w=log_mean_exp(g)[None]) if self.soft else Drawn(x=x)

    def kl(self, found: Drawn, g: Tensor, log_w: Tensor, log_z: float | None) -> float | None:
        return super().kl(found, g, log_w, log_z) if self.soft else math.log(self.n) - (self.n - 1) / self.n
