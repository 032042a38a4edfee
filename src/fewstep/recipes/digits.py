"""scikit-learn's 8 x 8 digits: real images that a CPU learns in minutes."""

from dataclasses import replace

from fewstep.datasets import Digits
from fewstep.models import ConsistencyMapConfig, DenoiserConfig, MeanFlowConfig, PosteriorFlowConfig
from fewstep.networks import UNetConfig
from fewstep.objectives import STMD, ConsistencyTraining, Denoising, MeanFlowObjective
from fewstep.recipe import Optimiser, Recipe
from fewstep.samplers import Ancestral, FlowMap
from fewstep.scaling import GaussianScaling

DIGITS_UNET = UNetConfig(
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    block_out_channels=(32, 64),
    norm_num_groups=8,
    embedding_width=128,
)

digits_stmd = Recipe(
    name="digits-stmd",
    description="STMD on scikit-learn's digits: Gaussian scaling, own tangent, no adaptive weight (minutes on a CPU)",
    dataset=Digits(),
    model=PosteriorFlowConfig(network=DIGITS_UNET, scaling=GaussianScaling()),
    objective=STMD(adaptive_power=0.0, tangent="own"),
    optimiser=Optimiser(lr=1e-3, decay="cosine", warmup_steps=100),
    sampler=Ancestral(steps=4, flow_steps=4),
    steps=1200,
    batch_size=64,
    ema_decay=0.997,
    ema_warmup=False,
)

digits_ddpm = replace(
    digits_stmd,
    name="digits-ddpm",
    description="DDPM on scikit-learn's digits, with the network, the scaling and the budget of digits-stmd",
    model=DenoiserConfig(network=DIGITS_UNET, scaling=GaussianScaling()),
    objective=Denoising(),
    sampler=Ancestral(steps=64),
)

digits_mean_flow = replace(
    digits_stmd,
    name="digits-mean-flow",
    description="Mean Flow on scikit-learn's digits, with the network, the objective's options and the budget of digits-stmd",
    model=MeanFlowConfig(network=DIGITS_UNET, standardise=True),
    objective=MeanFlowObjective(adaptive_power=0.0, tangent="own"),
    sampler=FlowMap(steps=4),
)

digits_consistency = replace(
    digits_stmd,
    name="digits-consistency",
    description="Consistency training on scikit-learn's digits, with the network, the scaling and the budget of digits-stmd",
    model=ConsistencyMapConfig(network=DIGITS_UNET),
    objective=ConsistencyTraining(),
    sampler=Ancestral(steps=2, kernel=0.0),
)
