"""All certificates of a trained posterior model on a mixture, next to the distances that they bound."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep import transition
from fewstep.bridge import bridge
from fewstep.draws import normal, normal_like
from fewstep.errors import UserError
from fewstep.mixture import GaussianMixture
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.samplers.ancestral import Ancestral
from fewstep.shapes import flat
from fewstep.theory.certificate import Certificate, Estimate, check_draws
from fewstep.theory.composition import Level, composed_bound
from fewstep.theory.exact_flow import check_mixture, exact_flow_map, posterior_law
from fewstep.theory.lipschitz import Lipschitz, lipschitz
from fewstep.theory.measured import Distance, conditional_distance, gaussian_distance, sampled_distance
from fewstep.theory.prior import start_error
from fewstep.theory.residual import corollary_1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tau of the grid: Corollary 1's bound on the mean squared W2 of a draw, the same measured, and L."""

    tau: float
    bound: Certificate
    measured: Distance
    L: Lipschitz


@dataclass(frozen=True, kw_only=True)
class ModelCertificate:
    """What `certify` found, all in squared W2 and the units of the data.

    - `rows`: one for each time of the grid above 0.
    - `start`: the bound on `W2^2(N(0, I), q_1)`.
    - `composed`: the N-step budget with Corollary 1's eps; `composed_measured`: with the measured eps, the plain
      one, because the debiased one can be too small. Both lean on the largest L *seen*.
    - `coupled`: the bound by coupling (`coupled_bound`), which leans on nothing but chance.
    - `measured`: the distance of samples to data; `lower`: that of their Gaussian moments, which no truth undercuts but
      for chance.
    """

    rows: tuple[Row, ...]
    start: Certificate
    composed: Certificate
    composed_measured: Certificate
    coupled: Certificate
    measured: Distance
    lower: float


def certify(
    model: PosteriorFlow,
    mixture: GaussianMixture,
    sampler: Ancestral,
    *,
    draws: int = 4096,
    states: int = 32,
    posterior_draws: int = 256,
    samples: int = 8000,
    blocks: int = 8,
    generator: torch.Generator,
) -> ModelCertificate:
    """Certificates of `model` on data from `mixture` for the sampler's grid, one-step draws through the bridge.

    `draws` for each residual, `states` for each L and measured eps with `posterior_draws` draws each, `samples` for the
    final distance in `blocks` blocks. Raises `UserError` where the mixture is not of the model's dimension, or the
    sampler has another kernel or more flow steps than one: the bounds are about the bridge and one-step draws.
    """
    check_mixture(model, mixture)
    if sampler.kernel != "bridge" or sampler.nfe != sampler.steps or sampler.flow_grid is not None:
        raise UserError(
            "certificates hold for one flow step and the bridge: certify with Ancestral(steps=..., grid=...)"
        )
    for name, n in (("draws", draws), ("states", states), ("posterior_draws", posterior_draws)):
        check_draws(name, n)
    start = start_error(second_moment(mixture), mixture.dim, model.schedule)
    rows = tuple(
        measure(model, mixture, tau, draws=draws, states=states, posterior_draws=posterior_draws, generator=generator)
        for tau in sampler.grid(sampler.steps, model.schedule)[:-1].tolist()
    )
    noise = normal((samples, mixture.dim), generator, like=model.like)
    y, x_0 = sampler(model, noise, generator).double(), mixture.sample((samples,), generator)
    return ModelCertificate(
        rows=rows,
        start=start,
        composed=composed_bound([Level(tau=r.tau, error=r.bound, L=r.L) for r in rows], start, model.schedule),
        composed_measured=composed_bound(
            [Level(tau=r.tau, error=r.measured.plain, L=r.L) for r in rows], start, model.schedule
        ),
        coupled=coupled_bound(model, mixture, sampler, draws=draws, generator=generator),
        measured=sampled_distance(y, x_0, blocks),
        lower=gaussian_distance(y.mean(0), torch.atleast_2d(y.T.cov()), mixture.mean, mixture.covariance),
    )


def measure(
    model: PosteriorFlow,
    mixture: GaussianMixture,
    tau: float,
    *,
    draws: int = 4096,
    states: int = 32,
    posterior_draws: int = 256,
    generator: torch.Generator,
) -> Row:
    """One row: what the composed bound and the choice of a grid need to know at tau."""
    time = torch.tensor(tau, dtype=torch.float64)
    x_tau = transition.sample(
        mixture.sample((states,), generator), torch.zeros_like(time), time, model.schedule, generator
    )
    return Row(
        tau=tau,
        bound=corollary_1(model, mixture, tau, draws=draws, generator=generator),
        measured=conditional_distance(model, mixture, tau, states=states, draws=posterior_draws, generator=generator),
        L=lipschitz(model, x_tau, tau, generator=generator),
    )


@torch.no_grad()
def coupled_bound(
    model: PosteriorFlow,
    mixture: GaussianMixture,
    sampler: Ancestral,
    *,
    draws: int = 4096,
    ode_steps: int = 64,
    generator: torch.Generator | None = None,
) -> Certificate:
    """`W2^2(generated, data) <= E|| y - x_0 ||^2`, y and `x_0` the ends of the model's chain and an exact one; our own.

    The two share every noise: the first state (`eps` against `alpha_1 x_0 + sigma_1 eps`), the noise of each draw (the
    model's flow against the mixture's own, solved by `ode_steps` Runge-Kutta steps), and the bridge. It is the coupling
    behind Theorem 1, Proposition 3 and the composition, measured and not bounded: no Lipschitz constant, any number of
    outer and flow steps. Assumed: the bridge. Estimated: the mean, without bias but for the error of the ODE.
    """
    check_mixture(model, mixture)
    check_draws("draws", draws)
    if sampler.kernel != "bridge":
        raise UserError("another kernel than the bridge has another chain: couple with Ancestral(kernel='bridge')")
    times = sampler.grid(sampler.steps, model.schedule)
    eps = normal((draws, mixture.dim), generator, like=mixture.means)
    y = eps
    x = model.schedule.alpha(times[0]) * mixture.sample((draws,), generator) + model.schedule.sigma(times[0]) * eps
    for tau, s in pairwise(times):
        z = normal_like(eps, generator)
        law, scale = posterior_law(model, mixture, x, tau)
        offset = model.decode(torch.zeros_like(x), x, tau.expand(draws))
        x_0 = offset + scale * exact_flow_map(law, z, ode_steps)
        y_0 = _draw(model, y, tau, z, sampler)
        if s > 0:
            xi = normal_like(eps, generator)
            x, y = (
                mean + std * xi for mean, std in (bridge(w, v, s, tau, model.schedule) for w, v in ((x_0, x), (y_0, y)))
            )
    cost = Estimate.of(flat(y_0 - x_0).square().sum(1))
    return Certificate(value=cost.value, standard_error=cost.standard_error)


def second_moment(mixture: GaussianMixture) -> float:
    """`E||X_0||^2`."""
    return (mixture.mean.square().sum() + mixture.covariance.trace()).item()


def _draw(model: PosteriorFlow, y: Tensor, tau: Tensor, z: Tensor, sampler: Ancestral) -> Tensor:
    posterior = model(y.to(model.like), tau)
    options = {"flow_steps": sampler.flow_steps, "flow_grid": sampler.flow_grid}
    return posterior.sample(noise=z.to(model.like), **options).to(y)
