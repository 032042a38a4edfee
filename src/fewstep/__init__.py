"""fewstep: few-step stochastic diffusion samplers whose draws can be trusted.

`model = fewstep.load("runs/demo")`, `x_0 = fewstep.sample(model, 16, steps=4)`, `q = model(x_tau, tau)`,
`draws = q.sample((8,))`. Formulas and equation numbers stand in the modules; schedule, transition, bridge, flow,
posterior, models/posterior_flow, objectives/stmd and samplers/ancestral are the paper.
"""

__version__ = "0.1.0"

from fewstep.errors import UserError
from fewstep.mixture import GaussianMixture
from fewstep.models import EmpiricalPosterior, MixturePosterior
from fewstep.pretrained import load, sample, save_pretrained
from fewstep.samplers import Ancestral
from fewstep.schedule import CosineSchedule, VPSchedule

__all__ = [
    "Ancestral",
    "CosineSchedule",
    "EmpiricalPosterior",
    "GaussianMixture",
    "MixturePosterior",
    "UserError",
    "VPSchedule",
    "load",
    "sample",
    "save_pretrained",
]
