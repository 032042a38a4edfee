"""Optional distillation: a pretrained denoiser of the diffusion teaches the posterior's velocity."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fewstep import transition
from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.models.base import PosteriorModel
from fewstep.models.diffusers_denoiser import load_diffusers
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives.base import AverageVelocityObjective, Batch, Loss, LossFunction
from fewstep.pretrained import load
from fewstep.shapes import per_item
from fewstep.times import TimeLaw, Uniform


@dataclass(frozen=True, kw_only=True)
class Distillation(AverageVelocityObjective):
    """STMD's loss with the teacher's `v = (z_t - E[w | z_t, x_tau]) / t` in place of the conditional velocity.

    `E[x_0 | z_t, x_tau] = E[x_0 | y]`, `(y, lam)` the one observation that both are (`evidence.combine`), which a denoiser
    answers at the time where `alpha^2 / sigma^2 = lam` from the state `alpha y`: the identity of GLASS Flows
    (arXiv 2509.25170). The teacher is not trained, nor stored with the run. `teacher` is the folder of a trained model with
    a posterior mean, as `fewstep train` writes it, or of a DDPM pipeline of diffusers. Raises `UserError` where it is missing,
    knows no posterior, or is of other items.

    With `frac_r_below_t=0` as the first of two `Stages` it is a warm start from a denoiser.
    """

    num_times: ClassVar[int] = 3

    teacher: str = ""
    tau_law: TimeLaw = Uniform()

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        return self.build()(model, batch, generator)

    def build(self) -> LossFunction:
        if not self.teacher:
            raise UserError("distillation needs a teacher: give the folder of a trained denoiser (--objective.teacher)")
        folder = Path(self.teacher)
        teacher = load_diffusers(folder) if (folder / "unet").is_dir() else load(folder)
        if not isinstance(teacher, PosteriorModel):
            raise UserError(
                f"{self.teacher} holds a {type(teacher).__name__}, which knows no posterior mean: take a denoiser"
            )
        return _Taught(config=self, teacher=teacher)


@dataclass(frozen=True, kw_only=True)
class _Taught:
    """The objective with its teacher; no module, so that the teacher is neither trained nor stored."""

    config: Distillation
    teacher: PosteriorModel

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        x_0 = batch["x_0"]
        teacher = self.teacher.to(x_0)
        tau = self.config.tau_law.sample(x_0.shape[0], generator, x_0)
        x_tau = transition.sample(x_0, torch.zeros_like(tau), tau, model.schedule, generator)

        def w_mean(z: Tensor, t: Tensor) -> Tensor:
            return model.encode(taught_mean(teacher, *model.observation(z, t, x_tau, tau)), x_tau, tau)

        loss = self.config.regress(model.u, model.encode(x_0, x_tau, tau), (x_tau, tau), generator, w_mean)
        assert loss.times is not None
        return replace(loss, times=torch.cat([loss.times, tau[:, None]], dim=1))


@torch.no_grad()
def taught_mean(teacher: PosteriorModel, y: Tensor, lam: Tensor) -> Tensor:
    """`E[x_0 | y]` of the observation `y = x_0 + lam^(-1/2) n`, by a posterior model of any schedule.

    It is asked at the time where `alpha^2 / sigma^2 = lam`, at tau = 1 at the latest and 1e-4 at the earliest.
    """
    tau = teacher.schedule.tau_at(lam.log()).clamp(1e-4, 1)
    return teacher(per_item(teacher.schedule.alpha(tau), y) * y, tau).mean()
