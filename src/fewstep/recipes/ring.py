"""Eight modes on a ring in two dimensions: minutes on a CPU, and the exact posterior is known."""

from dataclasses import replace

from fewstep.datasets import Ring
from fewstep.models import ConsistencyMapConfig, DenoiserConfig, MeanFlowConfig, PosteriorFlowConfig
from fewstep.networks import MLPConfig
from fewstep.objectives import STMD, ConsistencyTraining, Denoising, MeanFlowObjective
from fewstep.recipe import Optimiser, Recipe
from fewstep.samplers import Ancestral, FlowMap
from fewstep.scaling import GaussianScaling

RING_MLP = MLPConfig(width=256, depth=3)

ring_stmd = Recipe(
    name="ring-stmd",
    description="STMD on the eight-mode ring: Gaussian scaling, no adaptive weight (minutes on a CPU)",
    dataset=Ring(),
    model=PosteriorFlowConfig(network=RING_MLP, scaling=GaussianScaling()),
    objective=STMD(adaptive_power=0.0),
    optimiser=Optimiser(lr=1e-3, decay="cosine", warmup_steps=100),
    sampler=Ancestral(steps=4, flow_steps=4),
    steps=6000,
    batch_size=512,
    ema_decay=0.998,
    ema_warmup=False,
)

ring_ddpm = replace(
    ring_stmd,
    name="ring-ddpm",
    description="DDPM on the eight-mode ring, with the network, the scaling and the budget of ring-stmd",
    model=DenoiserConfig(network=RING_MLP, scaling=GaussianScaling()),
    objective=Denoising(),
    sampler=Ancestral(steps=64),
)

ring_mean_flow = replace(
    ring_stmd,
    name="ring-mean-flow",
    description="Mean Flow on the eight-mode ring, with the network, the objective's options and the budget of ring-stmd",
    model=MeanFlowConfig(network=RING_MLP, standardise=True),
    objective=MeanFlowObjective(adaptive_power=0.0),
    sampler=FlowMap(steps=4),
)

ring_consistency = replace(
    ring_stmd,
    name="ring-consistency",
    description="Consistency training on the eight-mode ring, with the network, the scaling and the budget of ring-stmd",
    model=ConsistencyMapConfig(network=RING_MLP),
    objective=ConsistencyTraining(),
    sampler=Ancestral(steps=2, kernel=0.0),
)
