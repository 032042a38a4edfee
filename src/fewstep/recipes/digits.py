"""scikit-learn's 8 x 8 digits: real images that a CPU learns in minutes."""

from dataclasses import replace

from fewstep.datasets import Digits
from fewstep.encoders import Masked
from fewstep.kernels import Laplace
from fewstep.models import GeneratorConfig, PosteriorFlowConfig
from fewstep.networks import UNetConfig
from fewstep.objectives import GuidedDrifting
from fewstep.recipe import Optimiser, Recipe
from fewstep.recipes._drifting import drifting, regression
from fewstep.recipes._rivals import calibrated, rivals
from fewstep.samplers import Ancestral
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
    description="STMD by velocity, semigroup and energy score on scikit-learn's digits (minutes on a CPU)",
    dataset=Digits(),
    model=PosteriorFlowConfig(network=DIGITS_UNET, scaling=GaussianScaling()),
    objective=calibrated(weight=4.0, mean_weight=0.2),
    optimiser=Optimiser(lr=1e-3, decay="cosine", warmup_steps=100),
    sampler=Ancestral(steps=4, flow_steps=4),
    steps=1200,
    batch_size=64,
    ema_decay=0.997,
    ema_warmup=False,
)

digits = rivals(digits_stmd, "on scikit-learn's digits, with the network and the budget of digits-stmd", tangent="own")

digits_drifting = drifting(
    "digits",
    Digits(),
    DIGITS_UNET,
    Masked(width=16, blocks=(1, 1, 1)),
    "on scikit-learn's digits (minutes on a CPU)",
    replace(digits_stmd, batch_size=128),
    most_places=16,
)

digits_guided = replace(
    digits_drifting[0],
    name="digits-drifting-guided",
    description="a one-step generator of classes, with guidance as an input, by drifting in pixels on scikit-learn's digits",
    model=GeneratorConfig(network=replace(DIGITS_UNET, num_classes=10), max_strength=4.0),
    objective=GuidedDrifting(regression=regression(Laplace(bandwidth=1.0)), num_classes=10),
    batch_size=64,
)
