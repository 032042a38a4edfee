"""The methods that every data set is trained with: on one network, one budget and one optimiser."""

from dataclasses import replace
from typing import Literal

from fewstep.models import ConsistencyMapConfig, DenoiserConfig, MeanFlowConfig, PosteriorFlowConfig
from fewstep.objectives import (
    STMD,
    ConsistencyTraining,
    Denoising,
    EnergyScoreObjective,
    MeanFlowObjective,
    WeightedSum,
)
from fewstep.recipe import Recipe
from fewstep.samplers import Ancestral, FlowMap
from fewstep.scaling import EpsilonScaling, GaussianScaling


def hybrid(
    weight: float, draws: int = 2, share: float = 1.0, peers: bool = True, tangent: Literal["conditional", "own"] = "conditional"
) -> WeightedSum:
    """Our default: STMD without the adaptive weight, and the energy score of one-step draws with this weight."""
    flow = STMD(adaptive_power=0.0, peers=peers, tangent=tangent)
    score = EnergyScoreObjective(draws=draws, share=share, peers=peers)
    return WeightedSum(terms=(flow, score), weights=(1.0, weight))


def rivals(
    stmd: Recipe, where: str, tangent: Literal["conditional", "own"] = "conditional", as_published: bool = False
) -> tuple[Recipe, ...]:
    """The recipe `NAME-stmd`, and one for each other method, which differ from it in model, objective and sampler alone.

    `where` ends their descriptions. `tangent` is that of STMD and Mean Flow without a score. With `as_published`, DDPM and
    Mean Flow run on the noise and the data as their authors have them, instead of in the scaling of `stmd`.
    """
    name, network = stmd.name.removesuffix("-stmd"), stmd.model.network
    scaled = PosteriorFlowConfig(network=network, scaling=GaussianScaling())
    mean_flow = MeanFlowObjective() if as_published else MeanFlowObjective(adaptive_power=0.0, tangent=tangent)

    def rival(method: str, description: str, **changes) -> Recipe:
        return replace(stmd, name=f"{name}-{method}", description=f"{description} {where}", **changes)

    return (
        stmd,
        rival(
            "stmd-paper",
            "STMD as published: no scaling, adaptive weight, conditional tangent,",
            model=PosteriorFlowConfig(network=network),
            objective=STMD(),
        ),
        rival(
            "stmd-plain",
            "STMD with Gaussian scaling and no adaptive weight, without the energy score,",
            model=scaled,
            objective=STMD(adaptive_power=0.0, tangent=tangent),
        ),
        rival(
            "distributional",
            "distributional diffusion, the energy score alone,",
            model=scaled,
            objective=EnergyScoreObjective(),
            sampler=Ancestral(steps=4),
        ),
        rival(
            "ddpm",
            "DDPM",
            model=DenoiserConfig(network=network, scaling=EpsilonScaling() if as_published else GaussianScaling()),
            objective=Denoising(),
            sampler=Ancestral(steps=64),
        ),
        rival(
            "mean-flow",
            "Mean Flow",
            model=MeanFlowConfig(network=network, standardise=not as_published),
            objective=mean_flow,
            sampler=FlowMap(steps=4),
        ),
        rival(
            "consistency",
            "consistency training",
            model=ConsistencyMapConfig(network=network),
            objective=ConsistencyTraining(last_intervals=1280 if as_published else 160),
            sampler=Ancestral(steps=2, kernel=0.0),
        ),
    )
