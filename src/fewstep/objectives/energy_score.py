"""A strictly proper scoring rule on one-step draws: the energy score at the corner t = 1, r = 0 of the flow clock."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep import evidence
from fewstep.draws import Source, normal_like, uniform
from fewstep.errors import UserError
from fewstep.flow import flow_map
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives.base import Batch, Loss, Objective, chosen_items, noised, spread_out
from fewstep.shapes import flat, per_item
from fewstep.times import TimeLaw, Uniform, check_share


@dataclass(frozen=True, kw_only=True)
class EnergyScoreObjective(Objective):
    """`mean_i ||W_i - w||^p - 1/2 mean_{i != j} ||W_i - W_j||^p` of `m = draws` one-step draws for one `x_tau`.

    `W_i = z_i - u(z_i, 0, 1 | x_tau, tau)`, `z_i ~ N(0, I)`, in the model's scaled coordinates, w the data there. In the
    mean over the data it is least where the law of `W_i` is that of w given `x_tau`, and only there, for `0 < p < 2`
    (Gneiting and Raftery 2007, section 4.3), whatever m >= 2 is. Alone it is distributional diffusion (De Bortoli et al.
    2025, arXiv 2502.02483), which knows one flow step only; as a term beside `STMD` (`WeightedSum`) it trains the corner
    that the Mean Flow loss hardly reaches.

    - `detour`: for this share of the scored items the draws take two steps, by way of a uniform time q on the flow clock,
      `z_q = z - (1 - q) u(z, q, 1)`, `W = z_q - q u(z_q, 0, q)`: a draw is a draw by whatever steps it was made.
    - `share` of the items are scored, chosen one by one, each `1 / share` times: the same mean for less work.
    - `peers`: as in `STMD`, the mean of `||W_i - w_j||^p` over the items j of the batch, each weighted by the
      probability that it made `x_tau`, in place of the one w: the same mean, less variance.
    - `mean_weight`: `mean_weight alpha_tau^2` times the same rule with p = 2 is added. In the mean that is
      `||E W - E[w | x_tau]||^2` and the variance of w, which no draw changes: it sees the mean of the draws alone, and not
      through the `1 / ||.||` by which p < 2 trusts near pairs more than far ones, so that a law that is not matched yet has no
      skewed mean. `alpha_tau^2` leaves it out where a bias is forgotten in the steps to come.

    Raises `UserError` where p, m or the share is out of range. The score is in units of the scaled data, to the power p, and
    grows as `d^(p/2)`, where the squared error of a Mean Flow grows as d.
    """

    tau_law: TimeLaw = Uniform()
    draws: int = 4
    power: float = 1.0
    mean_weight: float = 0.0
    detour: float = 0.0
    share: float = 1.0
    peers: bool = False

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise UserError(f"an energy score needs at least 2 draws for each state, not {self.draws}")
        if not 0 < self.power < 2:
            raise UserError(f"an energy score is strictly proper for a power between 0 and 2, not {self.power}")
        if not 0 <= self.mean_weight < math.inf:
            raise UserError(f"mean_weight is a finite number from 0 up, not {self.mean_weight}")
        check_share("detour", self.detour)
        check_share("share", self.share, least=1e-6)

    @property
    def sees_the_batch(self) -> bool:
        return self.peers

    @property
    def num_times(self) -> int:
        return 1

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        x_0 = batch["x_0"]
        n, m = len(x_0), self.draws
        x_tau, tau = noised(x_0, self.tau_law, model.schedule, generator)
        z = normal_like(x_0, generator, (m,))
        q = uniform((n,), generator, like=x_0)
        q = q.where(uniform((n,), generator, like=x_0) < self.detour, torch.zeros_like(q))
        chosen, weight = chosen_items(self.share, n, generator, x_0)
        found = self._score(model, x_0, x_0[chosen], x_tau[chosen], tau[chosen], z[:, chosen], q[chosen])
        score, error = (spread_out(values, chosen, n, weight) for values in found)
        return Loss(per_sample=score, raw=error.detach(), logs={"bucket": tau}, times=tau[:, None])

    def _score(
        self, model: PosteriorFlow, x_0: Tensor, own: Tensor, x_tau: Tensor, tau: Tensor, z: Tensor, q: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The score and the mean squared error of the draws, for each state."""
        m, k = z.shape[:2]
        held = x_tau.expand_as(z).flatten(0, 1), tau.expand(m, k).flatten()
        first = q.expand(m, k).flatten()
        draws = flow_map(model.u, z.flatten(0, 1), 1.0, first, held)
        on = torch.nonzero(first).squeeze(1)  # those that are not at their end yet
        if len(on):
            second = flow_map(model.u, draws[on], first[on], 0.0, (held[0][on], held[1][on]))
            draws = draws.index_copy(0, on, second)
        draws = flat(draws).reshape(m, k, -1)
        w = flat(model.encode(own, x_tau, tau))
        squares = (draws - w).square().sum(-1)  # (m, k)
        alpha, sigma = model.schedule.alpha(tau), model.schedule.sigma(tau)
        quadratic = self.mean_weight * alpha**2
        error = squares.mean(0)
        if self.peers:
            share = evidence.shares(x_tau / per_item(alpha, x_tau), (alpha / sigma) ** 2, x_0)
            offset, scale = model.coefficients(x_tau, tau)
            items = (flat(x_0) - flat(offset)[:, None]) / scale.reshape(-1, 1, 1)  # (k, B, d)
            to_items = torch.cdist(draws.transpose(0, 1), items).square()  # (k, m, B)
            miss = (self._distance(to_items, quadratic[:, None, None]) * share[:, None]).sum(-1).mean(1)
        else:
            miss = self._distance(squares, quadratic).mean(0)
        i, j = torch.triu_indices(m, m, 1, device=z.device)
        spread = self._distance((draws[i] - draws[j]).square().sum(-1), quadratic).mean(0)
        return miss - 0.5 * spread, error

    def _distance(self, squares: Tensor, quadratic: Tensor) -> Tensor:
        """`||.||^p + quadratic ||.||^2`; where two points coincide the gradient of the first is taken to be 0."""
        power = squares.clamp_min(torch.finfo(squares.dtype).tiny ** 0.5) ** (self.power / 2)
        return power + quadratic * squares if self.mean_weight else power
