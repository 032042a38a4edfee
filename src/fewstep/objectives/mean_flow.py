"""Mean Flow: the average velocity of the flow from noise to data (eq. 13; Geng et al., arXiv 2505.13447)."""

from dataclasses import dataclass

from fewstep.draws import Source
from fewstep.models.mean_flow import MeanFlow
from fewstep.objectives.base import AverageVelocityObjective, Batch, Loss


@dataclass(frozen=True, kw_only=True)
class MeanFlowObjective(AverageVelocityObjective):
    """`|| u_theta(z_t, r, t) - sg( v_c - (t - r) du_theta/dt ) ||^2`, `z_t = (1 - t) w + t eps` (eq. 13).

    `w` is the data in the model's coordinates; the fields are those of every average velocity
    (`AverageVelocityObjective`), with the same reconstructed defaults as for STMD.
    """

    def __call__(self, model: MeanFlow, batch: Batch, generator: Source) -> Loss:
        return self.regress(model.u, model.encode(batch["x_0"]), (), generator)
