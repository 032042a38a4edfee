"""How far a learned average velocity is from solving the mean-flow identity, and the distance that this bounds.

Residual `e(t) = E|| u(z_t, 0, t) + t D_t u(z_t, 0, t) - v(z_t, t) ||^2` (eq. 24; given `x_tau`, eq. 26), where
`D_t u = v . grad_z u + partial_t u` runs along the *exact* flow. Why it bounds: `Phi(t) = t u(z_t, 0, t) - (z_t - z_0)`
has `Phi(0) = 0` and `Phi' = u + t D_t u - v`, and `E||Phi(1)||^2` is the cost of coupling the one-step draw from `z_1`
with the exact end `z_0` of the flow line through it (eq. 31-37, reconstructed).

On a mixture v is known. Elsewhere only the conditional `v_c = eps - w` is, and with it in both places of v the residual
is the loss at r = 0. It is linear in v, with the factor `t grad_z u - I = -grad_z (z - t u)`, so that the loss is
`e(t) + E|| grad_z (z - t u) (v_c - v) ||^2`: an upper estimate of e, which a perfect model does not bring to 0.
"""

import torch
from torch import Tensor

from fewstep import transition
from fewstep.draws import normal_like
from fewstep.errors import UserError
from fewstep.flow import AverageVelocity, conditional_velocity, interpolate, total_derivative
from fewstep.mixture import GaussianMixture
from fewstep.models.mean_flow import MeanFlow
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.shapes import flat, per_item, times_of
from fewstep.theory.certificate import Certificate, Estimate, check_draws, stratified_times
from fewstep.theory.exact_flow import check_mixture, data_law, posterior_law, velocity


@torch.no_grad()
def squared_residual(u: AverageVelocity, z: Tensor, t: Tensor, v: Tensor, held: tuple[Tensor, ...] = ()) -> Tensor:
    """`|| u(z, 0, t) + t (v . grad_z u + partial_t u) - v ||^2`, one number per item, `(batch,)`; `t` is `(batch,)`."""
    value, du_dt = total_derivative(u, z, torch.zeros_like(t), t, v, held)
    return flat(value + per_item(t, z) * du_dt - v).square().sum(1)


def mean_flow_residual(
    model: MeanFlow | PosteriorFlow,
    mixture: GaussianMixture,
    t: float,
    *,
    tau: float | None = None,
    draws: int = 4096,
    generator: torch.Generator | None = None,
) -> Estimate:
    """`e(t)` (eq. 24), or with a posterior model and `tau`, `e_tau(t)` (eq. 26), on data from a mixture, t in [0, 1].

    In the coordinates of w: a model's scale squared turns it into the data's units. An unbiased mean over `draws` draws.
    Raises `UserError` where the mixture or the times do not fit the model.
    """
    check_draws("draws", draws)
    if not 0 <= t <= 1:
        raise UserError(f"t lies between 0 (data) and 1 (noise), not {t}")
    times = torch.full((draws,), t, dtype=torch.float64)
    if isinstance(model, MeanFlow):
        return Estimate.of(_unconditional(model, mixture, times, generator)[0])
    if tau is None:
        raise UserError("the flow of a posterior is held at a time of the diffusion: give tau")
    return Estimate.of(_conditional(model, mixture, tau, times, generator)[0])


def theorem_1(
    model: MeanFlow, mixture: GaussianMixture, *, draws: int = 4096, generator: torch.Generator | None = None
) -> Certificate:
    """`W2^2(one-step law, p_0) <= scale^2 int_0^1 e(t) dt` (Theorem 1, eq. 25), on data from a mixture.

    The one-step law is that of `model(z, 1, 0)`, decoded; scale is 1, or the data's standard deviation where the model
    standardises. Assumed: u is differentiable along the flow. Estimated: the integral, without bias, with one uniform
    time in each of `draws` equal intervals.
    """
    check_draws("draws", draws)
    e, scale = _unconditional(model, mixture, stratified_times(draws, generator), generator)
    return _certificate(e, scale)


def corollary_1(
    model: PosteriorFlow,
    mixture: GaussianMixture,
    tau: float,
    *,
    draws: int = 4096,
    generator: torch.Generator | None = None,
) -> Certificate:
    """`E_{x_tau} W2^2(p_theta(.|x_tau), q(.|x_tau)) <= c_out^2 int_0^1 e_tau(t) dt` (Corollary 1, eq. 27), on a mixture.

    `p_theta(.|x_tau)` is the law of one-step draws; `x_tau ~ q_tau`; `c_out(tau)` is the scale of the model's scaling, 1
    for the identity. Assumed: u is differentiable along the flow. Estimated: the integral, without bias. The same bound
    with the model in float64 is free of the rounding of the derivative (about 1e-10 in float32).
    """
    check_draws("draws", draws)
    e, scale = _conditional(model, mixture, tau, stratified_times(draws, generator), generator)
    return _certificate(e, scale)


def corollary_1_from_data(
    model: PosteriorFlow, x_0: Tensor, tau: float, *, generator: torch.Generator | None = None
) -> Certificate:
    """An upper estimate of Corollary 1's bound for data whose law is unknown (images): the loss at r = 0, no less than it.

    `c_out^2 int_0^1 E|| u + t (v_c . grad_z u + partial_t u) - v_c ||^2 dt` over the items `x_0` `(n, ...)`, each at
    one time. It exceeds the bound by what the module's docstring says, and a perfect model keeps that excess: compare
    it with the same number of another model, not with 0.
    """
    check_draws("the number of items", len(x_0))
    x_0 = x_0.to(model.like.device).double()
    tau_b = model.times(x_0, tau)
    x_tau = transition.sample(x_0, torch.zeros_like(tau_b), tau_b, model.schedule, generator)
    w, scale = _encoded(model, x_0, x_tau, tau_b)
    t = stratified_times(len(x_0), generator).to(x_0.device)
    eps = normal_like(x_0, generator)
    z_t, v_c = interpolate(w, eps, t), conditional_velocity(w, eps)
    return _certificate(_residual(model, z_t, t, v_c, x_tau, tau_b), scale)


def _unconditional(
    model: MeanFlow, mixture: GaussianMixture, t: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    check_mixture(model, mixture)
    law, scale = data_law(model, mixture)
    w = law.sample((len(t),), generator)
    z_t = interpolate(w, normal_like(w, generator), t)
    return _residual(model, z_t, t, velocity(law, z_t, t)), scale


def _conditional(
    model: PosteriorFlow, mixture: GaussianMixture, tau: float, t: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    check_mixture(model, mixture, tau)
    x_0 = mixture.sample((len(t),), generator)
    time = torch.tensor(tau, dtype=torch.float64)
    x_tau = transition.sample(x_0, torch.zeros_like(time), time, model.schedule, generator)
    law, _ = posterior_law(model, mixture, x_tau, time)
    tau_b = times_of(time, x_tau)
    w, scale = _encoded(model, x_0, x_tau, tau_b)
    z_t = interpolate(w, normal_like(w, generator), t)
    return _residual(model, z_t, t, velocity(law, z_t, t), x_tau, tau_b), scale


def _encoded(model: PosteriorFlow, x_0: Tensor, x_tau: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """w, and the scale of w in `x_0`, one number."""
    return model.encode(x_0, x_tau, tau), model.coefficients(x_tau, tau)[1].flatten()[0]


def _residual(model: MeanFlow | PosteriorFlow, z: Tensor, t: Tensor, v: Tensor, *held: Tensor) -> Tensor:
    """The residual in the model's dtype and on its device."""
    z, t, v, *rest = (x.to(model.like) for x in (z, t, v, *held))
    return squared_residual(model.u, z, t, v, tuple(rest))


def _certificate(e: Tensor, scale: Tensor) -> Certificate:
    flow, factor = Estimate.of(e), scale.item() ** 2
    return Certificate(
        value=factor * flow.value,
        standard_error=factor * flow.standard_error,
        terms={"integral of e": flow.value, "scale^2": factor},
    )
