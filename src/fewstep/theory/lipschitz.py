"""How much a posterior draw moves with the state it is drawn from, at shared noise: the constant L of Proposition 3.

`E_z || g(z, x) - g(z, y) ||^2 <= L^2 || x - y ||^2` (eq. 29), `g(z, x)` the draw from `x_tau = x` with noise z. The best
L is the supremum over x of the local constant `sqrt(lambda_max(E_z[J' J]))`, `J = dg/dx`. With a Gaussian scaling
`L <= c_skip + c_out L_u`, L_u the constant of u; here g itself is differentiated, which is never worse.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source, normal_like
from fewstep.errors import UserError
from fewstep.flow import total_derivative
from fewstep.models.base import PosteriorModel
from fewstep.posterior import DiracPosterior, FlowPosterior
from fewstep.shapes import flat, per_item


@dataclass(frozen=True, kw_only=True)
class Lipschitz:
    """`largest`: the largest local constant on the states seen, an *estimate* of L and no bound on it.

    It is too small where the worst state was not seen, and too large where J depends on the noise: the largest eigenvalue
    of a mean over some noises is above that of the expectation in the mean (for `g = z x` with 16 noises by a third).
    It is L itself where J depends on neither, as for the exact posterior of a Gaussian. `typical`: the root of the mean of
    the squares over states, what a small random disturbance of the states meets at most.
    """

    largest: float
    typical: float


def lipschitz(
    model: PosteriorModel,
    x_tau: Tensor,
    tau: float,
    *,
    flow_steps: int = 1,
    noises: int = 16,
    iterations: int = 10,
    generator: Source = None,
) -> Lipschitz:
    """Local constants at the states `x_tau` `(batch, ...)` by power iteration on `E_z[J' J]`, over `noises` draws of z.

    Raises `UserError` for a posterior whose draws are no function of Gaussian noise, such as a choice among particles.
    """
    x = x_tau.detach().to(model.like)
    if not isinstance(model(x, tau), FlowPosterior | DiracPosterior):
        raise UserError(f"draws of {type(model).__name__} are no function of Gaussian noise: they have no constant L")
    noise = normal_like(x, generator, (noises,))

    def draw(x: Tensor) -> Tensor:
        return model(x, tau).sample((noises,), flow_steps=flow_steps, noise=noise)

    line = _unit(normal_like(x, generator))
    still = x.new_zeros(len(x))  # a draw depends on no flow time, so its total derivative is J times the tangent
    squares = still
    for _ in range(iterations):
        with torch.no_grad():
            _, moved = total_derivative(lambda x, r, t: draw(x), x, still, still, line)
        squares = moved.reshape(noises, len(x), -1).square().sum(2).mean(0)
        at = x.clone().requires_grad_()
        (pulled,) = torch.autograd.grad((draw(at) * moved).sum(), at, allow_unused=True, materialize_grads=True)
        line = _unit(pulled)
    return Lipschitz(largest=squares.max().sqrt().item(), typical=squares.mean().sqrt().item())


def _unit(x: Tensor) -> Tensor:
    return x / per_item(flat(x).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny), x)
