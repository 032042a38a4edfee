"""Samples of `p(x_0 | y)` from a posterior model: `method(model, operator, y, num_samples, generator) -> PosteriorSamples`."""

from fewstep.inverse.base import InverseMethod, PosteriorSamples
from fewstep.inverse.guidance import DPS, LookAhead
from fewstep.inverse.interop import AsDenoiser, AsReconstructor
from fewstep.inverse.latent import MALA, PCN, LatentChain
from fewstep.inverse.null_space import NullSpace
from fewstep.inverse.sir import DecoupledSIR
from fewstep.inverse.smc import NestedSMC
from fewstep.inverse.split_gibbs import SplitGibbs
from fewstep.steering.samples import DegeneracyWarning

__all__ = [
    "DPS",
    "MALA",
    "PCN",
    "AsDenoiser",
    "AsReconstructor",
    "DecoupledSIR",
    "DegeneracyWarning",
    "InverseMethod",
    "LatentChain",
    "LookAhead",
    "NestedSMC",
    "NullSpace",
    "PosteriorSamples",
    "SplitGibbs",
]
