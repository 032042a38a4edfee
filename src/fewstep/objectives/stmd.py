"""Stochastic Transition-Map Distillation: the Mean Flow loss of the posterior (eq. 22, Algorithm 1)."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fewstep import evidence, transition
from fewstep.draws import Source
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives.base import AverageVelocityObjective, Batch, Loss
from fewstep.shapes import flat
from fewstep.times import TimeLaw, Uniform


@dataclass(frozen=True, kw_only=True)
class STMD(AverageVelocityObjective):
    """`|| u_theta(z_t, r, t | x_tau, tau) - sg( v_c - (t - r) du_theta/dt ) ||^2` with `(x_tau, tau)` held (eq. 22).

    Algorithm 1: `x_0 ~ data`, `tau ~ tau_law`, `x_tau = alpha x_0 + sigma eps'`, `eps ~ N(0, I)` independent of eps',
    `(r, t)` by their law, `z_t = (1 - t) w + t eps`, w the data in the model's scaling. The other fields are those of
    every average velocity (`AverageVelocityObjective`).

    `peers` replaces w in the velocity by its mean over the items of the batch, each weighted by the probability that it
    made `(z_t, x_tau)` (`evidence.py`; our own): the same loss in the mean, less noise wherever items are close in that
    sight. (With `adaptive_power` above 0 the minimiser depends on that noise.)

    Reconstructed, because the paper's text has lost them: the law of tau (uniform), the logit-normal's (-0.4, 1), half
    of the items with r < t, p = 0.75 and c = 1e-3 (the last two are those of Geng et al., arXiv 2505.13447).
    """

    num_times: ClassVar[int] = 3

    tau_law: TimeLaw = Uniform()
    peers: bool = False

    @property
    def sees_the_batch(self) -> bool:  # type: ignore[override]
        return self.peers

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        x_0 = batch["x_0"]
        tau = self.tau_law.sample(x_0.shape[0], generator, x_0)
        x_tau = transition.sample(x_0, torch.zeros_like(tau), tau, model.schedule, generator)

        def w_mean(z: Tensor, t: Tensor) -> Tensor:
            share = evidence.shares(*model.observation(z, t, x_tau, tau), x_0)
            return model.encode((share @ flat(x_0)).reshape(x_0.shape), x_tau, tau)

        w = model.encode(x_0, x_tau, tau)
        loss = self.regress(model.u, w, (x_tau, tau), generator, w_mean if self.peers else None)
        assert loss.times is not None
        return replace(loss, times=torch.cat([loss.times, tau[:, None]], dim=1))
