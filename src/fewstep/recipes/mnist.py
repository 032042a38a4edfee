"""MNIST with the paper's network and hyper-parameters (tables 1 and 2)."""

from dataclasses import replace

from fewstep.datasets import MNIST
from fewstep.models import ConsistencyMapConfig, DenoiserConfig, MeanFlowConfig, PosteriorFlowConfig
from fewstep.networks.unet import MNIST_UNET
from fewstep.objectives import STMD, ConsistencyTraining, Denoising, MeanFlowObjective
from fewstep.recipe import Optimiser, Recipe
from fewstep.samplers import Ancestral, FlowMap
from fewstep.scaling import GaussianScaling

mnist_stmd = Recipe(
    name="mnist-stmd",
    description="STMD on MNIST, the paper's network and hyper-parameters (150 K iterations: wants a GPU)",
    dataset=MNIST(),
    model=PosteriorFlowConfig(network=MNIST_UNET),
    objective=STMD(),
    optimiser=Optimiser(lr=5e-4),
    sampler=Ancestral(steps=4),
    steps=150_000,
    batch_size=64,
    ema_decay=0.9995,
)

mnist_stmd_scaled = replace(
    mnist_stmd,
    name="mnist-stmd-scaled",
    description="mnist-stmd with Gaussian scaling and no adaptive weight, as for the digits",
    model=PosteriorFlowConfig(network=MNIST_UNET, scaling=GaussianScaling()),
    objective=STMD(adaptive_power=0.0),
)

mnist_ddpm = replace(
    mnist_stmd,
    name="mnist-ddpm",
    description="DDPM on MNIST, with the network and the budget of mnist-stmd",
    model=DenoiserConfig(network=MNIST_UNET),
    objective=Denoising(),
    sampler=Ancestral(steps=64),
)

mnist_mean_flow = replace(
    mnist_stmd,
    name="mnist-mean-flow",
    description="Mean Flow on MNIST, with the network, the objective's options and the budget of mnist-stmd",
    model=MeanFlowConfig(network=MNIST_UNET),
    objective=MeanFlowObjective(),
    sampler=FlowMap(steps=4),
)

mnist_consistency = replace(
    mnist_stmd,
    name="mnist-consistency",
    description="Consistency training on MNIST, with the network and the budget of mnist-stmd",
    model=ConsistencyMapConfig(network=MNIST_UNET),
    objective=ConsistencyTraining(last_intervals=1280),
    sampler=Ancestral(steps=2, kernel=0.0),
)
