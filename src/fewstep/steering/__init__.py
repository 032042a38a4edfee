"""Samples of `p(x_0) exp(r(x_0) / T) / Z` from a posterior model: `method(model, reward, num_samples, generator)`."""

from fewstep.steering.base import RewardFunction, SteeredSamples, SteeringMethod, rewards_of
from fewstep.steering.best_of_n import BestOfN
from fewstep.steering.divergence import kl_at_least
from fewstep.steering.guidance import Guidance
from fewstep.steering.samples import DegeneracyWarning
from fewstep.steering.smc import SMC, SingleParticle
from fewstep.steering.value import Gradient, ValueEstimate, estimate_value

__all__ = [
    "SMC",
    "BestOfN",
    "DegeneracyWarning",
    "Gradient",
    "Guidance",
    "RewardFunction",
    "SingleParticle",
    "SteeredSamples",
    "SteeringMethod",
    "ValueEstimate",
    "estimate_value",
    "kl_at_least",
    "rewards_of",
]
