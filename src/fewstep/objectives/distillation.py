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

REACH = 0.1  # by how much the teacher's last log-SNR may lie above what it is asked: 5 % of the noise's deviation


@dataclass(frozen=True, kw_only=True)
class Distillation(PosteriorVelocityObjective):
    """STMD's loss with the teacher's `v = (z_t - E[w | z_t, x_tau]) / t` in place of the conditional velocity.

    `E[x_0 | z_t, x_tau] = E[x_0 | y]`, `(y, lam)` the one observation that both are (`evidence.combine`), which a denoiser
    answers at the time where `alpha^2 / sigma^2 = lam` from the state `alpha y`: the identity of GLASS Flows
    (arXiv 2509.25170). The teacher is not trained, nor stored with the run. `teacher` is the folder of a trained model with
    a posterior mean, as `fewstep train` writes it, or of a DDPM pipeline of diffusers. Raises `UserError` where it is missing,
    knows no posterior, is of other items, or ends at less noise than `tau_law` reaches: it cannot be asked beyond its end.

    With `frac_r_below_t=0` as the first of two `Stages` it is a warm start from a denoiser.
    """

    teacher: str = ""

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        return self.build()(model, batch, generator)

    def build(self, item_shape: tuple[int, ...] = (), data: Path | None = None) -> LossFunction:
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
        x_0, teacher = batch["x_0"], self.teacher.to(batch["x_0"])
        self._check_reach(model)
        return self.config.regress_posterior(model, x_0, generator, partial(taught_mean, teacher, generator=generator))

    def _check_reach(self, model: PosteriorFlow) -> None:
        one, latest = (torch.tensor(tau, dtype=torch.float64) for tau in (1.0, self.config.tau_law.latest))
        end, asked = self.teacher.schedule.log_snr(one), model.schedule.log_snr(latest)
        if end > asked + REACH:
            raise UserError(
                f"the teacher ends at a signal-to-noise ratio of {end.exp():.2g}, the pupil asks it down to "
                f"{asked.exp():.2g}: let its tau end at {model.schedule.tau_at(end):.3f} "
                "(--objective.tau-law.high), or take a teacher that ends in noise"
            )


@torch.no_grad()
def taught_mean(teacher: PosteriorModel, y: Tensor, lam: Tensor, generator: Source = None) -> Tensor:
    """`E[x_0 | y]` of the observation `y = x_0 + lam^(-1/2) n`, by a posterior model of any schedule that reaches lam.

    It is asked at the time where `alpha^2 / sigma^2 = lam`, at tau = 1 at the latest and 1e-4 at the earliest. The
    generator gives the noise of a mean that is estimated from a draw.
    """
    tau = teacher.schedule.tau_at(lam.log()).clamp(1e-4, 1)
    return teacher(per_item(teacher.schedule.alpha(tau), y) * y, tau).mean(generator=generator)
