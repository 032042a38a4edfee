"""The sampler that a model is sampled with where nobody says otherwise."""

from fewstep.models.base import Model
from fewstep.models.mean_flow import MeanFlow
from fewstep.samplers.ancestral import Ancestral
from fewstep.samplers.base import Sampler
from fewstep.samplers.flow_map import FlowMap


def sampler_of(model: Model, flow_steps: int = 1) -> Sampler:
    """The model's default sampler; where it has none, `FlowMap()` for a Mean Flow and `Ancestral()` for a posterior."""
    return model.sampler or (FlowMap() if isinstance(model, MeanFlow) else Ancestral(flow_steps=flow_steps))
