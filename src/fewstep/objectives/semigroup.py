"""One step of the flow map ought to be two: the semigroup law of `z_t -> z_q -> z_r` as a loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source, normal_like, uniform
from fewstep.flow import AverageVelocity, interpolate
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives.base import Batch, Loss, Objective, chosen_items, noised, spread_out, squared_error
from fewstep.shapes import per_item
from fewstep.times import TimeLaw, TimePairs, Uniform, check_share


@dataclass(frozen=True, kw_only=True)
class Semigroup(Objective):
    """`|| u(z_t, r, t) - sg( ((t - q) u(z_t, q, t) + (q - r) u(z_q, r, q)) / (t - r) ) ||^2` with `(x_tau, tau)` held.

    `z_q = z_t - (t - q) u(z_t, q, t)`, q uniform between r and t; `(r, t)` are two times from `pair_law`, but the corner
    (0, 1), which one-step sampling uses, for the share `corner` of the items. It says nothing of the velocity itself, so it
    is a term beside `STMD` (`WeightedSum`). Two evaluations without a gradient and one with, for the share `share` of the
    items, each counted `1 / share` times. Raises `UserError` where a share is out of range. Source: the shortcut models of
    Frans et al. 2024 (arXiv 2410.12557), with any q in place of the middle.
    """

    tau_law: TimeLaw = Uniform()
    pair_law: TimeLaw = Uniform(low=0.0)
    corner: float = 0.25
    share: float = 1.0

    def __post_init__(self) -> None:
        check_share("corner", self.corner)
        check_share("share", self.share, least=1e-6)

    @property
    def num_times(self) -> int:
        return 3

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        x_0 = batch["x_0"]
        n = len(x_0)
        x_tau, tau = noised(x_0, self.tau_law, model.schedule, generator)
        eps = normal_like(x_0, generator)
        r, t = TimePairs(first=self.pair_law, second=self.pair_law, frac_r_below_t=1.0).sample(n, generator, x_0)
        at_corner = uniform((n,), generator, like=x_0) < self.corner
        r, t = r.masked_fill(at_corner, 0.0), t.masked_fill(at_corner, 1.0)
        first = uniform((n,), generator, like=x_0)  # the share of t - r of the first of the two steps
        times = torch.stack([t, t - r, tau], dim=1)
        z_t = interpolate(model.encode(x_0, x_tau, tau), eps, t)
        chosen, weight = chosen_items(self.share, n, generator, x_0)
        held = x_tau[chosen], tau[chosen]
        found = self._error(model.u, z_t[chosen], r[chosen], t[chosen], first[chosen], held)
        raw = spread_out(found, chosen, n, weight)
        return Loss(per_sample=raw, raw=raw.detach(), logs={"bucket": t - r}, times=times)

    def _error(
        self, u: AverageVelocity, z_t: Tensor, r: Tensor, t: Tensor, first: Tensor, held: tuple[Tensor, ...]
    ) -> Tensor:
        q = t - first * (t - r)
        with torch.no_grad():
            u_first = u(z_t, q, t, *held)
            z_q = z_t - per_item(t - q, z_t) * u_first
            target = per_item(first, z_t) * u_first + per_item(1 - first, z_t) * u(z_q, r, q, *held)
        return squared_error(u(z_t, r, t, *held), target)
