"""deepinv both ways: our model as its denoiser, our methods as its reconstructor. deepinv itself is not needed.

Its images are in [0, 1] and ours in [-1, 1]: `x = 2 x' - 1`, so that its noise of deviation s is one of 2 s here. A linear
physics sees `A(x') = (A(x) + A(1)) / 2`, so that `2 y' - A(1) = A(x) + 2 noise`: our methods take it as it is. Of any other
the wrapped `A((x + 1) / 2)` is taken. (Its physics work in our methods without any of this, on data in our range.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.draws import item_generators
from fewstep.errors import UserError
from fewstep.inverse.base import InverseMethod, PosteriorSamples
from fewstep.models.base import PosteriorModel
from fewstep.operators import Noise, is_linear
from fewstep.operators.noise import gaussian_or_none


class AsDenoiser(nn.Module):
    """`denoiser(x, sigma)` of deepinv: `E[x' | x' + sigma n]` for images `(batch, ...)` in [0, 1], `sigma` above 0.

    `sigma` is a number or one for each image. The mean is that of `draws` draws of the posterior, which keeps it off the
    one-step mean of a network; 0 takes the model's own mean. Draws come from generators seeded by `seed`, image by image.
    Raises `UserError` where sigma is 0 or below, and for more noise than the diffusion ends in.
    """

    def __init__(self, model: PosteriorModel, draws: int = 0, flow_steps: int = 1, seed: int = 0):
        super().__init__()
        self.model, self.draws, self.flow_steps, self.seed = model, draws, flow_steps, seed

    @torch.no_grad()
    def forward(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        rate = 2 * torch.as_tensor(sigma, dtype=torch.float64, device=x.device).reshape(-1)
        if not (rate > 0).all():
            raise UserError(f"a denoiser needs noise of a deviation above 0, not {sigma}")
        schedule = self.model.schedule
        end = schedule.log_snr(torch.tensor(1.0, dtype=torch.float64))
        if (-2 * rate.log() < end - 1e-6).any():
            raise UserError(
                f"noise of deviation {sigma}, and the diffusion ends at {0.5 * math.exp(-end.item() / 2):.3g}"
            )
        tau = schedule.tau_at(-2 * rate.log()).clamp(1e-4, 1).expand(len(x))
        alpha = schedule.alpha(tau).to(x).reshape(-1, *[1] * (x.ndim - 1))
        q, generators = self.model((alpha * (2 * x - 1)).to(self.model.like), tau), item_generators(len(x), self.seed)
        if self.draws:
            mean = q.sample((self.draws,), flow_steps=self.flow_steps, generator=generators).mean(0)
        else:
            mean = q.mean(generator=generators)
        return ((mean + 1) / 2).to(x)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rescaled:
    """A physics on [0, 1] as an operator on [-1, 1]: `A(x) = physics.A((x + 1) / 2)`."""

    physics: Any

    def A(self, x: Tensor) -> Tensor:
        """The measurements of items in [-1, 1]."""
        return self.physics.A((x + 1) / 2)


class AsReconstructor(nn.Module):
    """`reconstructor(y, physics)` of deepinv: the mean of samples of `p(x' | y)` for images in [0, 1].

    `method_of(noise)` makes the method for a noise in our units, such as `lambda noise: SplitGibbs(noise=noise)`; `sigma` is
    the deviation of the measurement's noise in deepinv's units, 0 for none. `samples(y, physics)` gives all that was found,
    in [-1, 1]. Raises what the method raises.
    """

    def __init__(
        self,
        model: PosteriorModel,
        method_of: Callable[[Noise], InverseMethod],
        sigma: float,
        num_samples: int = 16,
        seed: int = 0,
    ):
        super().__init__()
        self.model, self.method_of, self.sigma = model, method_of, sigma
        self.num_samples, self.seed = num_samples, seed

    def samples(self, y: Tensor, physics: Any) -> PosteriorSamples:
        """Samples for measurements `(batch, ...)`, items in [-1, 1]."""
        linear = is_linear(physics)
        operator = physics if linear else Rescaled(physics=physics)
        scale = 2.0 if linear else 1.0
        if linear:
            ones = torch.ones(len(y), *self.model.item_shape, dtype=y.dtype, device=y.device)
            y = 2 * y - physics.A(ones)
        noise = gaussian_or_none(scale * self.sigma)
        generators = item_generators(len(y), self.seed)
        return self.method_of(noise)(self.model, operator, y.to(self.model.like), self.num_samples, generators)

    def forward(self, y: Tensor, physics: Any) -> Tensor:
        return ((self.samples(y, physics).mean + 1) / 2).to(y)
