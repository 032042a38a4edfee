"""Optional distillation: a pretrained denoiser of the diffusion teaches the posterior's velocity."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.models.base import PosteriorModel
from fewstep.models.diffusers_denoiser import load_diffusers
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives.base import Batch, Loss, LossFunction, PosteriorVelocityObjective
from fewstep.pretrained import load
from fewstep.shapes import per_item


@dataclass(frozen=True, kw_only=True)
class Distillation(PosteriorVelocityObjective):
    """STMD's loss with the teacher's `v = (z_t - E[w | z_t, x_tau]) / t` in place of the conditional velocity.

    `E[x_0 | z_t, x_tau] = E[x_0 | y]`, `(y, lam)` the one observation that both are (`evidence.combine`), which a denoiser
    answers at the time where `alpha^2 / sigma^2 = lam` from the state `alpha y`: the identity of GLASS Flows
    (arXiv 2509.25170). The teacher is not trained, nor stored with the run. `teacher` is the folder of a trained model with
    a posterior mean, as `fewstep train` writes it, or of a DDPM pipeline of diffusers. Raises `UserError` where it is missing,
    knows no posterior, or is of other items.

    With `frac_r_below_t=0` as the first of two `Stages` it is a warm start from a denoiser.
    """

    teacher: str = ""

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
        return self.config.regress_posterior(model, x_0, generator, partial(taught_mean, self.teacher.to(x_0)))


@torch.no_grad()
def taught_mean(teacher: PosteriorModel, y: Tensor, lam: Tensor) -> Tensor:
    """`E[x_0 | y]` of the observation `y = x_0 + lam^(-1/2) n`, by a posterior model of any schedule.

    It is asked at the time where `alpha^2 / sigma^2 = lam`, at tau = 1 at the latest and 1e-4 at the earliest.
    """
    tau = teacher.schedule.tau_at(lam.log()).clamp(1e-4, 1)
    return teacher(per_item(teacher.schedule.alpha(tau), y) * y, tau).mean()
