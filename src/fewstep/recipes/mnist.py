"""MNIST with the paper's network and hyper-parameters (tables 1 and 2)."""

from fewstep.datasets import MNIST
from fewstep.models import PosteriorFlowConfig
from fewstep.networks.unet import MNIST_UNET
from fewstep.recipe import Optimiser, Recipe
from fewstep.recipes._rivals import calibrated, rivals
from fewstep.samplers import Ancestral
from fewstep.scaling import GaussianScaling

mnist_stmd = Recipe(
    name="mnist-stmd",
    description="STMD by velocity, semigroup and energy score on MNIST, the paper's network and budget (wants a GPU)",
    dataset=MNIST(),
    model=PosteriorFlowConfig(network=MNIST_UNET, scaling=GaussianScaling()),
    objective=calibrated(weight=4.0),
    optimiser=Optimiser(lr=5e-4),
    sampler=Ancestral(steps=4),
    steps=150_000,
    batch_size=64,
    ema_decay=0.9995,
)

mnist = rivals(mnist_stmd, "on MNIST, with the network and the budget of mnist-stmd", tangent="own", as_published=True)
