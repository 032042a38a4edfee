"""Tensors in, numbers out: `metric(samples, reference) -> dict[str, float]`. Metrics never see a model."""

from fewstep.metrics.base import Metric
from fewstep.metrics.energy import EnergyDistance, EnergyScore
from fewstep.metrics.frechet import FrechetDistance
from fewstep.metrics.spread_skill import SpreadSkill
from fewstep.metrics.wasserstein import SlicedWasserstein

__all__ = ["EnergyDistance", "EnergyScore", "FrechetDistance", "Metric", "SlicedWasserstein", "SpreadSkill"]
