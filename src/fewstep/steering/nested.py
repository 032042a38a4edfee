"""Nested sequential Monte Carlo: particles of the reverse diffusion, weighted by what their own draws say of the target."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.bridge import bridge
from fewstep.particles import choose, log_mean_exp, reorder, resample, take
from fewstep.shapes import flat
from fewstep.steering.samples import Drawn
from fewstep.steering.target import Target

Softness = Callable[[Tensor], float]
"""tau -> the factor of g at that noise, in (0, 1]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Particles:
    """Where the particles are: states `x` `(k b, ...)` at `tau` with log-weights `(k, b)`, and `log_z` `(b,)` so far.

    `drawn` `(J, k b, ...)` are their draws of x_0, `g` `(J, k b)` what the target says of them, softened, and `value` `(k b,)`
    the log of the mean of exp(g). In the end x and x_0 are the samples.
    """

    tau: Tensor
    x: Tensor
    log_w: Tensor
    log_z: Tensor
    drawn: Tensor
    g: Tensor
    value: Tensor


def nested_smc(
    target: Target, k: int, times: Tensor, draws: int, share: float, softness: Softness
) -> Iterator[Particles]:
    """K particles for each law at `times[0]`, .., and at last their samples of `p(x_0) exp(g(x_0)) / Z`.

    With draws `x_0^j ~ q(x_0 | x_tau)`, j = 1 .. J: `V_tau = logmeanexp_j g_tau(x_0^j)`; start with `log w = V_1`; choose
    `b ~ softmax_j g_tau`, propose `x_s ~ p(x_s | x_0^b, x_tau)`, and add
    `V_s - V_tau + log(1/J sum_j p(x_s | x_0^j, x_tau)) - log sum_j wbar_j p(x_s | x_0^j, x_tau)` to log w; at the end
    choose `x_0^b` and add `g(x_0^b) - V_tau - log(J wbar_b)`. The sum telescopes, so that `g_tau = softness(tau) g` changes no
    target. Between, particles are resampled (systematically) where their effective number falls below `share`; elsewhere they
    keep their weights.
    """
    x, b = target.start(k), target.count
    log_z = torch.zeros(b, dtype=torch.float64, device=x.device)

    def look(x: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        drawn = target.draw(x, tau, draws)
        g = _possible(softness(tau) * target.log_potential(drawn).double(), b)
        return drawn, g, log_mean_exp(g)

    drawn, g, value = look(x, times[0])
    log_w = value.reshape(k, b)
    for tau, s in pairwise(times):
        yield Particles(tau=tau, x=x, log_w=log_w, log_z=log_z, drawn=drawn, g=g, value=value)
        chosen = choose(g, target.source(len(x)))
        x_0 = take(drawn, chosen)[0]
        if s == 0:
            kept = g.log_softmax(0).gather(0, chosen)[0]
            log_w = log_w + (target.log_potential(x_0).double() - value - math.log(draws) - kept).reshape(k, b)
            log_z = log_z + log_mean_exp(log_w)
            yield Particles(tau=s, x=x_0, log_w=log_w, log_z=log_z, drawn=x_0[None], g=g, value=value)
            return
        x, correction = _step(target, x, x_0, drawn, g, tau, s)
        before = value
        drawn, g, value = look(x, s)
        log_w = log_w + (value + correction - before).reshape(k, b)
        index, log_w, said = resample(log_w, share, target.generator)
        log_z = log_z + said
        x, value, drawn, g = reorder(x, index), reorder(value, index), reorder(drawn, index, 1), reorder(g, index, 1)


def last(states: Iterator[Particles], update: Callable[[int], None]) -> Drawn:
    """What the particles are in the end; `update` hears of every step."""
    state = next(states)
    for step, following in enumerate(states, start=1):
        state = following
        update(step)
    return Drawn(x=state.x, log_w=state.log_w, log_z=state.log_z)


def _step(
    target: Target, x: Tensor, x_0: Tensor, drawn: Tensor, g: Tensor, tau: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """`x_s`, and the log of the mean bridge density of all draws over that of the chosen mixture of them, `(rows,)`."""
    x_s = target.step(x_0, x, s, tau)
    bridges = [bridge(one, x, s, tau, target.model.schedule) for one in drawn]
    log_p = torch.stack([-flat((x_s - mean) / std).square().sum(1) / 2 for mean, std in bridges]).double()
    return x_s, log_mean_exp(log_p) - (g.log_softmax(0) + log_p).logsumexp(0)


def _possible(g: Tensor, b: int) -> Tensor:
    """Potentials `(J, k b)` on the way, positive also where draws are impossible (-inf): other ones may follow them.

    A particle whose draws are all impossible is worth `1 / 4 J` of the least of the others in its law: to be given up, but not
    for ever, without which paths that come back would be missing from the target. In the end -inf counts in full.
    """
    least = g.where(g.isfinite(), torch.inf).reshape(-1, b).amin(0)
    low = least.where(least.isfinite(), 0.0) - math.log(4 * len(g))
    return torch.where(g.isneginf(), low.repeat(g.shape[1] // b), g)
