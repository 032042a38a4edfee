"""Model and noise to samples: `sampler(model, noise, generator) -> x_0`. One file, one sampler."""

from fewstep.samplers.ancestral import Ancestral
from fewstep.samplers.base import Sampler

__all__ = ["Ancestral", "Sampler"]
