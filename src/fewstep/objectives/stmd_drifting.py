"""The posterior trained by drifting: draws for one state against the data that could have made it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep import evidence
from fewstep.draws import Source, categorical, normal_like
from fewstep.drift import DriftingField
from fewstep.drift_regression import DriftRegression
from fewstep.errors import UserError
from fewstep.flow import flow_map
from fewstep.kernels import Laplace
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives.base import Batch, Loss, Objective, chosen_items, noised, spread_out
from fewstep.shapes import flat, per_item
from fewstep.times import TimeLaw, Uniform, check_share


@dataclass(frozen=True, kw_only=True)
class STMDDrifting(Objective):
    """`|| W_i / S - sg( W_i / S + V~(W_i) ) ||^2 / C` for `draws` one-step draws of `q(x_0 | x_tau)`, with `(x_tau, tau)` held.

    `W_i = z_i - u(z_i, 0, 1 | x_tau, tau)`, in the model's scaled coordinates. Each state has a field of its own, from its draws,
    which are its negatives, to as many items of the batch, drawn with the probability that they made `x_tau`
    (`evidence.shares`): where the law of the draws is the posterior, both clouds are alike and the field is 0 in the mean, at
    every number of draws. (Against all items with their weights it is not: a centroid of few negatives lies further off than
    one of many positives, and the draws are pushed apart.) With the one item that made the state for its only positive, `E[V] =
    E[w | x_tau] - C^-(W)` is 0 where all draws are in one point: the naive form collapses, and so does this one where one
    item of the batch has all the weight (few items, many dimensions, small tau). Our own.

    `share` of the items are states, `draws` of 4 or more for each: the field of few draws is noise. It trains one flow step.
    Raises `UserError` where a number is out of range.
    """

    regression: DriftRegression = DriftRegression(
        field=DriftingField(kernel=Laplace(bandwidth=1.0), normalisation="split"),
        temperatures=(0.2, 1.0),
        equalise=False,
    )
    draws: int = 16
    share: float = 0.125
    tau_law: TimeLaw = Uniform()

    def __post_init__(self) -> None:
        if self.draws < 4:
            raise UserError(f"the field of few draws is noise: take 4 or more for each state, not {self.draws}")
        check_share("share", self.share, least=1e-6)

    @property
    def sees_the_batch(self) -> bool:
        return True

    @property
    def num_times(self) -> int:
        return 1

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        x_0 = batch["x_0"]
        n, m = len(x_0), self.draws
        x_tau, tau = noised(x_0, self.tau_law, model.schedule, generator)
        z = normal_like(x_0, generator, (m,))
        alpha, sigma = model.schedule.alpha(tau), model.schedule.sigma(tau)
        shares = evidence.shares(x_tau / per_item(alpha, x_tau), (alpha / sigma) ** 2, x_0)
        made_it = categorical(shares.log(), generator, (m - 1,))  # (m - 1, n)
        chosen, weight = chosen_items(self.share, n, generator, x_0)
        at, when = x_tau[chosen], tau[chosen]
        draws = one_step_draws(model, z[:, chosen], at, when)
        offset, scale = model.coefficients(at, when)
        items = flat(x_0)[made_it[:, chosen].T]  # (k, m - 1, d)
        pull = self.regression(draws, (items - flat(offset)[:, None]) / scale.reshape(-1, 1, 1))
        found = (spread_out(values.mean(1), chosen, n, weight) for values in (pull.per_point, pull.raw))
        loss, raw = found
        logs = {"bucket": tau} | {f"drift_rms_{t:g}": torch.full_like(raw, rms) for t, rms in pull.rms.items()}
        return Loss(per_sample=loss, raw=raw, logs=logs, times=tau[:, None])


def one_step_draws(model: PosteriorFlow, z: Tensor, x_tau: Tensor, tau: Tensor) -> Tensor:
    """`(k, m, d)`: the draws in scaled coordinates that the noise z `(m, k, ...)` becomes, by one evaluation each."""
    m, k = z.shape[:2]
    held = x_tau.expand_as(z).flatten(0, 1), tau.expand(m, k).flatten()
    return flat(flow_map(model.u, z.flatten(0, 1), 1.0, 0.0, held)).reshape(m, k, -1).transpose(0, 1)
