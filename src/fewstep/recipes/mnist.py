"""MNIST with the paper's network and hyper-parameters (tables 1 and 2), and with a network that a CPU trains in half an hour."""

from dataclasses import replace

from fewstep.datasets import MNIST
from fewstep.encoders import Masked
from fewstep.models import PosteriorFlowConfig
from fewstep.networks.unet import MNIST_UNET, UNetConfig
from fewstep.recipe import Optimiser, Recipe
from fewstep.recipes._drifting import drifting
from fewstep.recipes._rivals import calibrated, rivals
from fewstep.samplers import Ancestral
from fewstep.scaling import GaussianScaling

mnist_stmd = Recipe(
    name="mnist-stmd",
    description="STMD by velocity, semigroup and energy score on MNIST, the paper's network and budget (wants a GPU)",
    dataset=MNIST(),
    model=PosteriorFlowConfig(network=MNIST_UNET, scaling=GaussianScaling()),
    objective=calibrated(weight=4.0, mean_weight=0.06),
    optimiser=Optimiser(lr=5e-4),
    sampler=Ancestral(steps=4),
    steps=150_000,
    batch_size=64,
    ema_decay=0.9995,
)

mnist = rivals(mnist_stmd, "on MNIST, with the network and the budget of mnist-stmd", tangent="own", as_published=True)

SMALL_UNET = UNetConfig(
    down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "UpBlock2D"),
    block_out_channels=(16, 32, 64),
    norm_num_groups=8,
    embedding_width=128,
)

mnist_small_stmd = Recipe(
    name="mnist-small-stmd",
    description="STMD by velocity, semigroup and energy score on MNIST, a small network and budget (half an hour on a CPU)",
    dataset=MNIST(),
    model=PosteriorFlowConfig(network=SMALL_UNET, scaling=GaussianScaling()),
    objective=calibrated(weight=14.0, share=0.5, mean_weight=0.06),
    optimiser=Optimiser(lr=1e-3, decay="cosine", warmup_steps=100),
    sampler=Ancestral(steps=4, flow_steps=4),
    steps=2000,
    batch_size=32,
    ema_decay=0.998,
    ema_warmup=False,
)

mnist_small = rivals(mnist_small_stmd, "on MNIST, with the network and the budget of mnist-small-stmd", tangent="own")

mnist_drifting = drifting(
    "mnist",
    MNIST(),
    MNIST_UNET,
    Masked(dataset=MNIST(), steps=10_000, batch_size=256),
    "on MNIST, with the network of mnist-stmd (wants a GPU)",
    replace(mnist_stmd, batch_size=512, steps=30_000, ema_decay=0.999),
)

mnist_small_drifting = drifting(
    "mnist-small",
    MNIST(),
    SMALL_UNET,
    Masked(dataset=MNIST(), width=16, blocks=(1, 1, 1), steps=1000),
    "on MNIST, with a small network and budget (half an hour on a CPU)",
    replace(mnist_small_stmd, batch_size=128),
    most_places=16,
)
