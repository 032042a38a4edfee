"""Per-sample losses that train a model: `objective(model, batch, generator) -> Loss`. One file, one objective."""

from fewstep.objectives.base import Batch, Loss, Objective
from fewstep.objectives.consistency import ConsistencyTraining
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.distillation import Distillation
from fewstep.objectives.drifting import Drifting
from fewstep.objectives.energy_score import EnergyScoreObjective
from fewstep.objectives.guided_drifting import GuidedDrifting
from fewstep.objectives.learned_weight import LearnedWeight
from fewstep.objectives.mean_flow import MeanFlowObjective
from fewstep.objectives.reward_gradient import RewardGradient
from fewstep.objectives.semigroup import Semigroup
from fewstep.objectives.stages import Stages
from fewstep.objectives.stmd import STMD
from fewstep.objectives.stmd_drifting import STMDDrifting
from fewstep.objectives.weighted_sum import WeightedSum

__all__ = [
    "STMD",
    "Batch",
    "ConsistencyTraining",
    "Denoising",
    "Distillation",
    "Drifting",
    "EnergyScoreObjective",
    "GuidedDrifting",
    "LearnedWeight",
    "Loss",
    "MeanFlowObjective",
    "Objective",
    "RewardGradient",
    "STMDDrifting",
    "Semigroup",
    "Stages",
    "WeightedSum",
]
