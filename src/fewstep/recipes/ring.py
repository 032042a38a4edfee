"""Eight modes on a ring in two dimensions: minutes on a CPU, and the exact posterior is known."""

from fewstep.datasets import Ring
from fewstep.models import PosteriorFlowConfig
from fewstep.networks import MLPConfig
from fewstep.recipe import Optimiser, Recipe
from fewstep.recipes._rivals import calibrated, rivals
from fewstep.samplers import Ancestral
from fewstep.scaling import GaussianScaling

ring_stmd = Recipe(
    name="ring-stmd",
    description="STMD by velocity, semigroup and energy score on the eight-mode ring (minutes on a CPU)",
    dataset=Ring(),
    model=PosteriorFlowConfig(network=MLPConfig(width=256, depth=3), scaling=GaussianScaling()),
    objective=calibrated(weight=2.0, share=0.5, detour=0.5),
    optimiser=Optimiser(lr=1e-3, decay="cosine", warmup_steps=100),
    sampler=Ancestral(steps=4, flow_steps=4),
    steps=6000,
    batch_size=512,
    ema_decay=0.998,
    ema_warmup=False,
)

ring = rivals(ring_stmd, "on the eight-mode ring, with the network and the budget of ring-stmd")
