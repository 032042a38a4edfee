"""Per-sample losses that train a model: `objective(model, batch, generator) -> Loss`. One file, one objective."""

from fewstep.objectives.base import Batch, Loss, Objective
from fewstep.objectives.consistency import ConsistencyTraining
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.mean_flow import MeanFlowObjective
from fewstep.objectives.stmd import STMD

__all__ = ["STMD", "Batch", "ConsistencyTraining", "Denoising", "Loss", "MeanFlowObjective", "Objective"]
