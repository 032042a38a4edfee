"""The methods that every data set is trained with: on one network, one budget and one optimiser."""

from dataclasses import replace
from typing import Literal

from fewstep.models import ConsistencyMapConfig, DenoiserConfig, MeanFlowConfig, ModelConfig, PosteriorFlowConfig
from fewstep.objectives import (
    STMD,
    ConsistencyTraining,
    Denoising,
    EnergyScoreObjective,
    MeanFlowObjective,
    Objective,
    Semigroup,
    STMDDrifting,
    WeightedSum,
)
from fewstep.recipe import Recipe
from fewstep.samplers import Ancestral, FlowMap, Sampler
from fewstep.scaling import EpsilonScaling, GaussianScaling


def calibrated(
    weight: float, share: float = 1.0, detour: float = 0.0, mean_weight: float = 0.0, semigroup_share: float = 0.5
) -> WeightedSum:
    """Our default, three terms for three parts of the flow map of the posterior (docs/calibration.md).

    The velocity at r = t by regression (STMD with `frac_r_below_t = 0`), longer steps by the semigroup law, and the corner
    t = 1, r = 0 by the energy score of draws with this weight, on this share of the items, and this share of the scored
    draws by a detour of two steps. On images `mean_weight` keeps biases of the mean from adding up over many steps; beside a
    score that grows as `d^(1/2)` it is taken in proportion to `d^(-1/2)`. No derivative of the network is needed.
    """
    velocity = STMD(adaptive_power=0.0, frac_r_below_t=0.0, peers=True)
    score = EnergyScoreObjective(draws=2, share=share, detour=detour, mean_weight=mean_weight, peers=True)
    return WeightedSum(terms=(velocity, Semigroup(share=semigroup_share), score), weights=(1.0, 1.0, weight))


def rivals(
    stmd: Recipe, where: str, tangent: Literal["conditional", "own"] = "conditional", as_published: bool = False
) -> tuple[Recipe, ...]:
    """The recipe `NAME-stmd`, and one for each other method, which differ from it in model, objective and sampler alone.

    `where` ends their descriptions. `tangent` is that of STMD and Mean Flow without a score. With `as_published`, DDPM and
    Mean Flow run on the noise and the data as their authors have them, instead of in the scaling of `stmd`.
    """
    name, network = stmd.name.removesuffix("-stmd"), stmd.model.network
    scaled = PosteriorFlowConfig(network=network, scaling=GaussianScaling())
    noise = DenoiserConfig(network=network, scaling=EpsilonScaling() if as_published else GaussianScaling())
    mean_flow = MeanFlowObjective() if as_published else MeanFlowObjective(adaptive_power=0.0, tangent=tangent)
    table: list[tuple[str, str, ModelConfig, Objective, Sampler]] = [
        (
            "stmd-paper",
            "STMD as published: no scaling, adaptive weight, conditional tangent,",
            PosteriorFlowConfig(network=network),
            STMD(),
            stmd.sampler,
        ),
        (
            "stmd-plain",
            "STMD with Gaussian scaling and no adaptive weight, without the energy score,",
            scaled,
            STMD(adaptive_power=0.0, tangent=tangent),
            stmd.sampler,
        ),
        (
            "stmd-scored",
            "STMD with Gaussian scaling and no adaptive weight, and the energy score of one-step draws beside it,",
            scaled,
            WeightedSum(
                terms=(STMD(adaptive_power=0.0, tangent=tangent), EnergyScoreObjective(share=0.25)), weights=(1.0, 1.0)
            ),
            stmd.sampler,
        ),
        (
            "distributional",
            "distributional diffusion, the energy score alone,",
            scaled,
            EnergyScoreObjective(),
            Ancestral(steps=4),
        ),
        (
            "stmd-drifting",
            "the posterior by drifting between one-step draws and the items that could have made the state,",
            scaled,
            STMDDrifting(),
            Ancestral(steps=4),
        ),
        ("ddpm", "DDPM", noise, Denoising(), Ancestral(steps=64)),
        (
            "mean-flow",
            "Mean Flow",
            MeanFlowConfig(network=network, standardise=not as_published),
            mean_flow,
            FlowMap(steps=4),
        ),
        (
            "consistency",
            "consistency training",
            ConsistencyMapConfig(network=network),
            ConsistencyTraining(last_intervals=1280 if as_published else 160),
            Ancestral(steps=2, kernel=0.0),
        ),
    ]
    others = [
        replace(
            stmd,
            name=f"{name}-{method}",
            description=f"{description} {where}",
            model=model,
            objective=objective,
            sampler=sampler,
        )
        for method, description, model, objective, sampler in table
    ]
    return (stmd, *others)
