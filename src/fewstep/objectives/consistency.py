"""Consistency training, without a teacher: neighbouring states on one path of noise must have one end.

Song et al. 2023 (arXiv 2303.01469, Algorithm 3) as improved by Song and Dhariwal 2023 (arXiv 2310.14189, "iCT").
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source, normal_like, uniform
from fewstep.errors import UserError
from fewstep.models.consistency import ConsistencyMap
from fewstep.objectives.base import Batch, Loss, Objective, squared_error
from fewstep.schedule import Schedule
from fewstep.shapes import per_item


@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining(Objective):
    """`1 / (k' - k) h( f_theta(x_k', k') - sg f_theta(x_k, k) )`, both states from the same `x_0` and noise.

    Noise levels `k = sigma / alpha` are counted in standard deviations of the data. `h(e) = sqrt(||e||^2 + c^2) - c` with
    `c = huber sqrt(d)`. `k < k'` are neighbours of N levels, even in `k^(1/rho)` between `k_min` and the schedule's
    largest; the pair is the one that holds a level of the law `log k ~ N(log_mean, log_std^2)`. N doubles at equal shares
    of the training from `first_intervals` to `last_intervals` (arXiv 2310.14189, table 1; there 1280 at the end, for
    400 K steps). The batch's `progress` `(batch,)`, the share of the training that is done, says where it is; without it,
    N is the last one. Raises `UserError` where a number is out of range.
    """

    first_intervals: int = 10
    last_intervals: int = 160
    k_min: float = 0.004
    rho: float = 7.0
    log_mean: float = -0.4
    log_std: float = 2.0
    huber: float = 0.00108

    def __post_init__(self) -> None:
        if not 1 <= self.first_intervals <= self.last_intervals:
            raise UserError("consistency training needs 1 <= first_intervals <= last_intervals")
        if min(self.k_min, self.rho, self.log_std, self.huber) <= 0:
            raise UserError("consistency training needs k_min, rho, log_std and huber above 0")

    def __call__(self, model: ConsistencyMap, batch: Batch, generator: Source) -> Loss:
        x_0 = batch["x_0"]
        progress = batch.get("progress", x_0.new_ones(len(x_0)))
        low, high = self.levels(x_0, progress, model, generator)
        eps = normal_like(x_0, generator)
        s, tau = (_time_at(k * model.data_std, model.schedule) for k in (low, high))
        x_s, x_tau = (_noised(x_0, eps, at, model.schedule) for at in (s, tau))
        with torch.no_grad():
            target = model.end(x_s, s)
        raw = squared_error(model.end(x_tau, tau), target)
        c = self.huber * math.sqrt(x_0[0].numel())
        distance = (raw / model.data_std**2 + c**2).sqrt() - c
        return Loss(per_sample=distance / (high - low), raw=raw.detach(), logs={"bucket": tau})

    def levels(self, x_0: Tensor, progress: Tensor, model: ConsistencyMap, generator: Source) -> tuple[Tensor, Tensor]:
        """Two neighbouring levels `k < k'` for each item, in standard deviations of the data."""
        k_max = (-0.5 * model.schedule.log_snr(torch.ones_like(model.data_std))).exp() / model.data_std
        ends = torch.stack([torch.full_like(k_max, self.k_min), k_max])
        cdf = torch.special.ndtr((ends.log() - self.log_mean) / self.log_std)
        u = cdf[0] + (cdf[1] - cdf[0]) * uniform((len(x_0),), generator, like=x_0)
        k = (self.log_mean + self.log_std * torch.special.ndtri(u)).exp()
        first, last = ends ** (1 / self.rho)
        n = self.intervals(progress)
        index = ((k ** (1 / self.rho) - first) / (last - first) * n).floor().clamp(torch.zeros_like(n), n - 1)
        low, high = ((first + (last - first) * i / n) ** self.rho for i in (index, index + 1))
        return low, high

    def intervals(self, progress: Tensor) -> Tensor:
        """The number of intervals N - 1 at this share of the training."""
        doublings = math.ceil(math.log2(self.last_intervals / self.first_intervals))
        stage = (progress * (doublings + 1)).floor()
        return (self.first_intervals * 2**stage).clamp(max=self.last_intervals)


def _time_at(k: Tensor, schedule: Schedule) -> Tensor:
    """The time at which `sigma / alpha = k`."""
    return schedule.tau_at(-2 * k.log()).clamp(max=1)


def _noised(x_0: Tensor, eps: Tensor, tau: Tensor, schedule: Schedule) -> Tensor:
    return per_item(schedule.alpha(tau), x_0) * x_0 + per_item(schedule.sigma(tau), x_0) * eps
