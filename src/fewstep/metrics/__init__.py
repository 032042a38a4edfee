"""Tensors in, numbers out: `metric(samples, reference) -> dict[str, float]`. Metrics never see a model."""

from fewstep.metrics.base import Metric
from fewstep.metrics.c2st import C2ST
from fewstep.metrics.conditional import ConditionalEnergyDistance, VarianceRatio
from fewstep.metrics.copying import Copying
from fewstep.metrics.coverage import IntervalCoverage
from fewstep.metrics.crps import CRPS
from fewstep.metrics.energy import EnergyDistance, EnergyScore
from fewstep.metrics.frechet import FrechetDistance
from fewstep.metrics.inception import inception_features
from fewstep.metrics.kernel_distance import KernelDistance
from fewstep.metrics.mmd import MMD
from fewstep.metrics.optimal_transport import Wasserstein
from fewstep.metrics.prdc import PRDC
from fewstep.metrics.sbc import SBC
from fewstep.metrics.spread_skill import SpreadSkill
from fewstep.metrics.tarp import TARP
from fewstep.metrics.variogram import VariogramScore
from fewstep.metrics.vendi import VendiScore
from fewstep.metrics.wasserstein import SlicedWasserstein

__all__ = [
    "C2ST",
    "CRPS",
    "MMD",
    "PRDC",
    "SBC",
    "TARP",
    "ConditionalEnergyDistance",
    "Copying",
    "EnergyDistance",
    "EnergyScore",
    "FrechetDistance",
    "IntervalCoverage",
    "KernelDistance",
    "Metric",
    "SlicedWasserstein",
    "SpreadSkill",
    "VarianceRatio",
    "VariogramScore",
    "VendiScore",
    "Wasserstein",
    "inception_features",
]
