"""Model and noise to samples: `sampler(model, noise, generator) -> x_0`. One file, one sampler."""

from fewstep.samplers.ancestral import Ancestral
from fewstep.samplers.base import Sampler
from fewstep.samplers.flow_map import FlowMap
from fewstep.samplers.of_means import OfMeans
from fewstep.samplers.one_step import OneStep
from fewstep.samplers.probability_flow import ProbabilityFlow
from fewstep.samplers.reverse_sde import ReverseSDE

__all__ = ["Ancestral", "FlowMap", "OfMeans", "OneStep", "ProbabilityFlow", "ReverseSDE", "Sampler"]
