"""The value of a state, `V(x_tau) = T log E[exp(r(x_0) / T) | x_tau]`, and its gradient, from draws of `q(x_0 | x_tau)`.

A deterministic map has one `x_0` for a state and knows no such mean; draws do. Everything is in log space, with
`g = r / T`: `V / T = log mean_j exp(g(x_0^j))`, whose bias and deviation follow by the delta method from how uneven the weights
`wbar_j = softmax_j g` are. Three gradients of `V / T`, which is what is added to the score (by Tweedie's formula it moves the
posterior's mean by `sigma^2 / alpha` times itself):

- covariance: `(alpha / sigma^2) (sum_j wbar_j x_0^j - mean_j x_0^j)`, no derivative of anything (`q(x_0 | x_tau)` is of
  exponential form in x_tau, so that the derivative of a mean is a covariance);
- reparametrised: `sum_j wbar_j grad g(f(z_j, x_tau))`, through the map f from noise to a draw;
- plug-in: `grad g(E[x_0 | x_tau])`, the field's baseline, biased by Jensen's inequality however many draws there are.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.particles import effective_sample_size, finite, log_mean_exp
from fewstep.shapes import per_item
from fewstep.steering.target import Target

Gradient = Literal["covariance", "reparametrised", "plug-in"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueEstimate:
    """What J draws say of `V / T` of each row, and of its gradient.

    `log_value` `(rows,)` with the delta method's estimates of its `bias` and standard deviation `std`; `gradient` `(rows, ...)`
    with those of its components, `gradient_bias` and `gradient_std`. Where one draw has all the weight, the estimates of bias and
    deviation have nothing to go by; of a single draw, and of the plug-in, which does not know how far off it is, they are NaN.
    `drawn` `(J, rows, ...)` are the draws and `g` `(J, rows)` their potentials, the mean's alone for the plug-in.
    """

    log_value: Tensor
    bias: Tensor
    std: Tensor
    gradient: Tensor
    gradient_bias: Tensor
    gradient_std: Tensor
    drawn: Tensor
    g: Tensor


def estimate_value(target: Target, x_tau: Tensor, tau: Tensor, draws: int, gradient: Gradient) -> ValueEstimate:
    """`V / T` and its gradient at rows `x_tau` `(rows, *item_shape)`, from J = `draws` draws of each.

    Raises `UserError` where a derivative is asked for of a model whose draws are no function of Gaussian noise.
    """
    if gradient == "plug-in":
        return _plug_in(target, x_tau, tau)
    if gradient == "covariance":
        drawn = target.draw(x_tau, tau, draws)
        g = target.log_potential(drawn).double()
        schedule = target.model.schedule
        scale = (schedule.alpha(tau) / schedule.sigma(tau) ** 2).to(x_tau)
        return _estimate(drawn, g, *_covariance(drawn, g, per_item(scale, x_tau)))
    z = target.normal(x_tau, (draws,))
    drawn, g, slopes = gradients_of_draws(target, x_tau, tau, z)
    return _estimate(drawn, g, *_weighted(slopes, g))


def gradients_of_draws(target: Target, x_tau: Tensor, tau: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draws for noise z `(J, rows, ...)`, their g `(J, rows)`, and its derivative in the state `(J, rows, ...)`."""
    with torch.enable_grad():
        # every draw has a state of its own, so that its derivative is known by itself
        at = x_tau.detach().expand_as(z).flatten(0, 1).requires_grad_()
        times = tau if tau.ndim == 0 else tau.repeat(len(z))
        drawn = target.push(at, times, z.flatten(0, 1)[None])[0].reshape(z.shape)
        g = _with_derivative(target.log_potential(drawn))
        slopes = torch.autograd.grad(torch.where(g.isfinite(), g, 0.0).sum(), at)[0].reshape(z.shape)
    return drawn.detach(), g.detach().double(), slopes


def _with_derivative(g: Tensor) -> Tensor:
    if not g.requires_grad:
        raise UserError("this gradient goes through the reward, which has no derivative: take gradient='covariance'")
    return g


def shift_of_draws(x_0: Tensor, g: Tensor) -> Tensor:
    """`(sigma^2 / alpha) grad(V / T)` without a derivative: the weighted mean less the mean of draws `(J, rows, ...)`."""
    return (_shares(g, x_0) * x_0).sum(0) - x_0.mean(0)


def gradient_through_draws(target: Target, x_tau: Tensor, tau: Tensor, z: Tensor) -> Tensor:
    """`grad logmeanexp_j g(f(z_j, x_tau))` `(rows, ...)` for noise `(J, rows, ...)`.

    Raises `UserError` where draws are no function of Gaussian noise.
    """
    _, g, slopes = gradients_of_draws(target, x_tau, tau, z)
    return (_shares(g, slopes) * slopes).sum(0)


def _shares(g: Tensor, like: Tensor) -> Tensor:
    """The weights `wbar` `(J, rows, 1, ..)` of draws."""
    weights = finite(g).softmax(0).to(like)
    return weights.reshape(*weights.shape, *[1] * (like.ndim - 2))


def _covariance(drawn: Tensor, g: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient, bias and deviation: draw j moves it by `scale (wbar_j (x_j - sum wbar x) - (x_j - mean x) / J)`."""
    weights, mean = _shares(g, drawn), drawn.mean(0)
    from_weighted = drawn - (weights * drawn).sum(0)
    moved = weights * from_weighted - (drawn - mean) / len(drawn)
    bias = -(weights.square() * from_weighted).sum(0)
    return scale * shift_of_draws(drawn, g), scale * bias, scale * moved.square().sum(0).sqrt()


def _weighted(slopes: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient, bias and deviation of a self-normalised mean `sum_j wbar_j slope_j`."""
    weights = _shares(g, slopes)
    mean = (weights * slopes).sum(0)
    bias = -(weights.square() * (slopes - mean)).sum(0)
    return mean, bias, (weights * (slopes - mean)).square().sum(0).sqrt()


def _estimate(drawn: Tensor, g: Tensor, gradient: Tensor, bias: Tensor, std: Tensor) -> ValueEstimate:
    n = len(g)
    if n == 1:  # one draw says nothing of how draws differ
        bias, std = torch.full_like(bias, torch.nan), torch.full_like(std, torch.nan)
    uneven = (n / effective_sample_size(g).clamp_min(1) - 1) / max(n - 1, 1)  # the relative variance of the mean weight
    return ValueEstimate(
        log_value=log_mean_exp(g),
        bias=-uneven / 2 if n > 1 else torch.full_like(uneven, torch.nan),
        std=uneven.sqrt() if n > 1 else torch.full_like(uneven, torch.nan),
        gradient=gradient,
        gradient_bias=bias,
        gradient_std=std,
        drawn=drawn,
        g=g,
    )


def _plug_in(target: Target, x_tau: Tensor, tau: Tensor) -> ValueEstimate:
    with torch.enable_grad():
        at = x_tau.detach().requires_grad_()
        mean = target.mean(at, tau)[None]
        g = _with_derivative(target.log_potential(mean))
        gradient = torch.autograd.grad(g.sum(), at)[0]
    unknown, rows = torch.full_like(gradient, torch.nan), torch.full_like(g[0].double(), torch.nan)
    return ValueEstimate(
        log_value=g[0].detach().double(),
        bias=rows,
        std=rows,
        gradient=gradient,
        gradient_bias=unknown,
        gradient_std=unknown,
        drawn=mean.detach(),
        g=g.detach().double(),
    )
