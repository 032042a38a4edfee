"""Stochastic Transition-Map Distillation: the Mean Flow loss of the posterior (eq. 22, Algorithm 1)."""

from dataclasses import dataclass

from torch import Tensor

from fewstep import evidence
from fewstep.draws import Source
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives.base import Batch, Loss, PosteriorVelocityObjective


@dataclass(frozen=True, kw_only=True)
class STMD(PosteriorVelocityObjective):
    """`|| u_theta(z_t, r, t | x_tau, tau) - sg( v_c - (t - r) du_theta/dt ) ||^2` with `(x_tau, tau)` held (eq. 22).

    Algorithm 1: `x_0 ~ data`, `tau ~ tau_law`, `x_tau = alpha x_0 + sigma eps'`, `eps ~ N(0, I)` independent of eps',
    `(r, t)` by their law, `z_t = (1 - t) w + t eps`, w the data in the model's scaling. The other fields are those of
    every average velocity (`AverageVelocityObjective`).

    `peers` replaces w in the velocity by its mean over the items of the batch, each weighted by the probability that it
    made `(z_t, x_tau)` (`evidence.py`; our own): the same gradient in the mean, with less noise wherever items are close
    in that sight; the loss is smaller by the variance that is taken out of the target, so compare it with its like only.
    (With `adaptive_power` above 0 the minimiser depends on that noise.)

    Reconstructed, because the paper's text has lost them: the law of tau (uniform), the logit-normal's (-0.4, 1), half
    of the items with r < t, p = 0.75 and c = 1e-3 (the last two are those of Geng et al., arXiv 2505.13447).
    """

    peers: bool = False

    @property
    def sees_the_batch(self) -> bool:
        return self.peers

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        x_0 = batch["x_0"]

        def x_mean(y: Tensor, lam: Tensor) -> Tensor:
            return evidence.mean_of_peers(y, lam, x_0)

        return self.regress_posterior(model, x_0, generator, x_mean if self.peers else None)
