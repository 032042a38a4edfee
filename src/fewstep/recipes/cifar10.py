"""CIFAR-10 by drifting: the experiment of the score view's paper (arXiv 2603.07514), both kernels from one start."""

from dataclasses import replace

from fewstep.datasets import CIFAR10
from fewstep.encoders import Masked
from fewstep.networks.unet import CIFAR10_UNET
from fewstep.recipes._drifting import drifting
from fewstep.recipes.mnist import mnist_stmd

cifar10_drifting = drifting(
    "cifar10",
    CIFAR10(),
    CIFAR10_UNET,
    Masked(dataset=CIFAR10(), width=64, blocks=(2, 2, 2, 2), steps=30_000, batch_size=256),
    "on CIFAR-10 (wants a GPU)",
    replace(mnist_stmd, batch_size=1024, steps=100_000, ema_decay=0.999),
)
