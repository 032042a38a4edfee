"""The flow map of a Mean Flow from noise to data in M steps (Geng et al., arXiv 2505.13447, section 4.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source
from fewstep.flow import follow
from fewstep.models.mean_flow import MeanFlow
from fewstep.samplers.base import Sampler, check_model, check_steps
from fewstep.times import Grid, UniformGrid


@dataclass(frozen=True)
class FlowMap(Sampler):
    """`z_r = z_t - (t - r) u(z_t, r, t)` along `1 = t_M > ... > t_0 = 0`, then `x_0` from `z_0`; NFE = M (eq. 9).

    Deterministic: the noise decides, the generator is not used. `steps` M cut the flow clock by `grid`, which is even or
    given time by time. Raises `UserError` for a grid of log-SNR and a number of steps out of range.
    """

    draws_from = MeanFlow

    steps: int = 1
    grid: Grid = UniformGrid()

    def __post_init__(self) -> None:
        check_steps(self.steps, self.grid)

    @property
    def nfe(self) -> int:
        return self.steps

    @torch.no_grad()
    def __call__(self, model: MeanFlow, noise: Tensor, generator: Source = None) -> Tensor:
        check_model(self, model)
        return model.decode(follow(model.u, noise, self.grid(self.steps, None)))
