"""What a network's output means: a posterior `q(x_0 | x_tau)` or a flow map. One file, one model."""

from fewstep.models.base import EvaluationCounter, Model, ModelConfig, PosteriorModel
from fewstep.models.consistency import ConsistencyMap, ConsistencyMapConfig
from fewstep.models.denoiser import Denoiser, DenoiserConfig
from fewstep.models.diffusers_denoiser import DiffusersDenoiser, load_diffusers
from fewstep.models.exact import EmpiricalPosterior, MixturePosterior
from fewstep.models.generator import Generator, GeneratorConfig
from fewstep.models.mean_flow import MeanFlow, MeanFlowConfig
from fewstep.models.mean_only import MeanOnly
from fewstep.models.posterior_flow import PosteriorFlow, PosteriorFlowConfig

__all__ = [
    "ConsistencyMap",
    "ConsistencyMapConfig",
    "Denoiser",
    "DenoiserConfig",
    "DiffusersDenoiser",
    "EmpiricalPosterior",
    "EvaluationCounter",
    "Generator",
    "GeneratorConfig",
    "MeanFlow",
    "MeanFlowConfig",
    "MeanOnly",
    "MixturePosterior",
    "Model",
    "ModelConfig",
    "PosteriorFlow",
    "PosteriorFlowConfig",
    "PosteriorModel",
    "load_diffusers",
]
