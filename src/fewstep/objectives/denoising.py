"""Denoising: regress what stands for the clean data on the noisy state (the mean of `q(x_0 | x_tau)`, eq. 17)."""

from dataclasses import dataclass

from fewstep.draws import Source
from fewstep.models.denoiser import Denoiser
from fewstep.objectives.base import (
    Batch,
    Loss,
    Objective,
    adaptive_weight,
    check_adaptive_weight,
    noised,
    squared_error,
)
from fewstep.times import TimeLaw, Uniform


@dataclass(frozen=True, kw_only=True)
class Denoising(Objective):
    """`|| w_theta(x_tau, tau) - w ||^2`, w the target in the model's scaling; with the epsilon scaling, the noise.

    Source: Ho et al. 2020 (arXiv 2006.11239), eq. 14. `adaptive_power >= 0` and `adaptive_constant` as for `STMD`.
    """

    tau_law: TimeLaw = Uniform()
    adaptive_power: float = 0.0
    adaptive_constant: float = 1e-3

    def __post_init__(self) -> None:
        check_adaptive_weight(self.adaptive_power, self.adaptive_constant)

    @property
    def num_times(self) -> int:
        return 1

    def __call__(self, model: Denoiser, batch: Batch, generator: Source) -> Loss:
        x_0 = batch["x_0"]
        x_tau, tau = noised(x_0, self.tau_law, model.schedule, generator)
        raw = squared_error(model.w_mean(x_tau, tau), model.encode(x_0, x_tau, tau))
        weight = adaptive_weight(raw, self.adaptive_power, self.adaptive_constant)
        return Loss(per_sample=weight * raw, raw=raw.detach(), logs={"bucket": tau}, times=tau[:, None])
