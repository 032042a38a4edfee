"""Mean Flow: the straight interpolant, its velocity, and the average velocity along the flow (eq. 1-13).

`z_t = (1 - t) x_0 + t eps` (1), conditional velocity `v_c = eps - x_0` (2), marginal velocity `v(z, t) = E[v_c | z_t =
z]` (3). Average velocity `u(z_t, r, t) = 1/(t - r) int_r^t v(z_q, q) dq` (8), so that `z_r = z_t - (t - r) u(z_t, r,
t)` (9) and `u(z, t, t) = v(z, t)`. Identity: `u = v - (t - r) du/dt` (10), `du/dt = v . grad_z u + partial_t u` (11).

An average velocity is a callable `u(z, r, t, *held)`; `held` are tensors with the same batch axis that the flow does
not move, such as `(x_tau, tau)`. This file is the only caller of forward-mode automatic differentiation.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fewstep.shapes import per_item

AverageVelocity = Callable[..., Tensor]


def interpolate(x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """`z_t = (1 - t) x_0 + t eps` (eq. 1); t is one number or one per item."""
    return per_item(1 - t, x_0) * x_0 + per_item(t, x_0) * eps


def conditional_velocity(x_0: Tensor, eps: Tensor) -> Tensor:
    """`v_c = eps - x_0`, constant along the path (eq. 2)."""
    return eps - x_0


def total_derivative(
    u: AverageVelocity, z: Tensor, r: Tensor, t: Tensor, v: Tensor, held: tuple[Tensor, ...] = ()
) -> tuple[Tensor, Tensor]:
    """`(u, du/dt)` with `du/dt = v . grad_z u + partial_t u`: tangent `(v, 0, 1)` for `(z, r, t)`, zero for `held` (eq. 11)."""
    tangents = (v, torch.zeros_like(r), torch.ones_like(t))
    result = torch.func.jvp(lambda z, r, t: u(z, r, t, *held), (z, r, t), tangents)
    return result[0], result[1]


@torch.no_grad()
def mean_flow_target(
    u: AverageVelocity,
    z: Tensor,
    r: Tensor,
    t: Tensor,
    v_c: Tensor,
    held: tuple[Tensor, ...] = (),
    tangent: Literal["conditional", "own"] = "conditional",
) -> Tensor:
    """The detached target `v_c - (t - r) du/dt` of the conditional loss (eq. 13 and 22).

    The tangent is `v_c`, the conditional velocity, too, or the model's own `u(z, t, t)`. The derivative is computed only
    for the items with r < t: for the others its factor is 0. Because the target is detached, this and one graded
    forward pass give the gradient of the loss at a fraction of the cost of differentiating through the derivative.
    """
    target = v_c.clone()
    below = torch.nonzero(r < t).squeeze(1)
    if below.numel() == 0:
        return target
    z, r, t, held = z[below], r[below], t[below], tuple(h[below] for h in held)
    v = u(z, t, t, *held) if tangent == "own" else v_c[below]
    _, du_dt = total_derivative(u, z, r, t, v, held)
    target[below] -= per_item(t - r, z) * du_dt
    return target


def standard_slope(r: Tensor, t: Tensor) -> Tensor:
    """The factor of `z` in the average velocity of the flow from N(0, I) to itself, `u = (1 - s_r / s_t) / (t - r) z`.

    `s_q^2 = (1 - q)^2 + q^2` is the variance at q, so that it is `2 (t + r - 1) / (s_t (s_t + s_r))`, at r = t too.
    """
    s_r, s_t = (((1 - q) ** 2 + q**2).sqrt() for q in (r, t))
    return 2 * (t + r - 1) / (s_t * (s_t + s_r))


def flow_map(
    u: AverageVelocity, z: Tensor, t: Tensor | float, r: Tensor | float, held: tuple[Tensor, ...] = ()
) -> Tensor:
    """`z_r = z_t - (t - r) u(z_t, r, t)` (eq. 9); times are numbers or one per item."""
    t = torch.as_tensor(t, dtype=z.dtype, device=z.device).expand(z.shape[0])
    r = torch.as_tensor(r, dtype=z.dtype, device=z.device).expand(z.shape[0])
    return z - per_item(t - r, z) * u(z, r, t, *held)


def follow(u: AverageVelocity, z: Tensor, grid: Tensor, held: tuple[Tensor, ...] = ()) -> Tensor:
    """The flow map along a decreasing grid of times, one evaluation of `u` for each interval."""
    for t, r in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        z = flow_map(u, z, t, r, held)
    return z
