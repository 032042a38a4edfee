"""What is known of the clean data on both clocks at once, and which items of a batch could have made it.

On the flow clock, `z_t = (1 - t) w + t eps` with `x_0 = offset + scale w`, and `x_tau = alpha x_0 + sigma eps'` are two
independent Gaussian observations of `x_0`, with precisions `((1 - t) / (scale t))^2` and `(alpha / sigma)^2`. Together
they are one: `y = x_0 + lam^(-1/2) n`, lam the sum of the precisions, y the mean of both weighted by them. So a denoiser of
the diffusion, which knows `E[x_0 | y]` at every noise level, knows the velocity of the posterior's flow too.

Within a batch: let `x_1 .. x_B` be independent data and let item I, uniform, have made the observation. Given it and
the set, I is j with probability `W_j ~ exp(-lam ||y - x_j||^2 / 2)`, because before the observation the items are
exchangeable. So whatever is linear in `f(x_I)` may have `sum_j W_j f(x_j)` in its place: by the law of total
expectation its mean given the observation stays the same, at every batch size, and its variance cannot grow (Rao and
Blackwell). A score of distances to the item is linear in these. Of a squared error the gradient is linear in the
target: its mean stays, while the loss itself falls by the variance that is taken out, and must not be compared with one
without. (The weights are those of Xu et al. 2023, arXiv 2302.00670, who use them for the score and speak of a bias that
vanishes with the batch; by the argument above there is none where the item that made the observation is in it.)
"""

import torch
from torch import Tensor

from fewstep.shapes import distances, flat, per_item


def combine(
    z: Tensor, t: Tensor, x_tau: Tensor, alpha: Tensor, sigma: Tensor, offset: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """`(y, lam)`: the one observation of `x_0` `(batch, ...)` that both are, and its precision `(batch,)`.

    `t` in (0, 1], `alpha`, `sigma`, `scale` are `(batch,)`; at t = 1, `z` is pure noise and y is `x_tau / alpha`.
    """
    of_state, of_flow = (alpha / sigma) ** 2, ((1 - t) / (scale * t)) ** 2
    lam = of_state + of_flow
    pulled = per_item(alpha / sigma**2, z) * x_tau + per_item(of_flow, z) * offset
    pulled = pulled + per_item((1 - t) / (scale * t**2), z) * z
    return pulled / per_item(lam, z), lam


def shares(y: Tensor, lam: Tensor, x_0: Tensor) -> Tensor:
    """`W` `(n, B)`: how probably item j of `x_0` `(B, ...)` made the observation `y_i` `(n, ...)` of precision `lam_i`."""
    return (-0.5 * lam[:, None] * distances(flat(y), flat(x_0)).square()).softmax(1)


def mean_of_peers(y: Tensor, lam: Tensor, x_0: Tensor) -> Tensor:
    """`sum_j W_j x_j` `(n, ...)`, in the precision of the items also under autocast: a rounded item is none of the data."""
    with torch.autocast(x_0.device.type, enabled=False):
        return (shares(y, lam, x_0) @ flat(x_0)).reshape(len(y), *x_0.shape[1:])
