"""The sampler that a model is sampled with where nobody says otherwise."""

from fewstep.models.base import Model
from fewstep.models.generator import Generator
from fewstep.models.mean_flow import MeanFlow
from fewstep.samplers.ancestral import Ancestral
from fewstep.samplers.base import Sampler
from fewstep.samplers.flow_map import FlowMap
from fewstep.samplers.one_step import OneStep


def sampler_of(model: Model, flow_steps: int = 1) -> Sampler:
    """The model's default sampler; else `FlowMap()` of a Mean Flow, `OneStep()` of a generator, `Ancestral()` of a posterior."""
    if isinstance(model, Generator):
        return model.sampler or OneStep()
    return model.sampler or (FlowMap() if isinstance(model, MeanFlow) else Ancestral(flow_steps=flow_steps))
