"""Drifting of images: in pixels and in the features of a masked autoencoder, by a Laplace and by a Gaussian kernel."""

from dataclasses import replace

from fewstep.datasets.base import Dataset
from fewstep.drift import DriftingField
from fewstep.drift_regression import DriftRegression
from fewstep.encoders import Masked
from fewstep.kernels import Gaussian, Kernel, Laplace
from fewstep.models import GeneratorConfig
from fewstep.networks import NetworkConfig
from fewstep.objectives import Drifting
from fewstep.recipe import Optimiser, Recipe
from fewstep.samplers import OneStep

SHARES = (0.02, 0.05, 0.2)  # temperatures of a Laplace kernel, as shares of the mean distance rho
MATCHED_SHARES = tuple(t**0.5 for t in SHARES)  # of a Gaussian kernel, h^2 = tau rho
PUBLISHED = Optimiser(lr=1e-3, beta_2=0.95, warmup_steps=100, decay="cosine", clip_norm=2.0)


def regression(kernel: Kernel, temperatures: tuple[float, ...] = SHARES, floor: float = 0.0) -> DriftRegression:
    """The published one, algorithm A1.

    The authors' code has a floor of 1e-6, good for clouds far apart. A cloud narrower than its distance to the data it draws
    together, to one point: pixels go without it (docs/drifting.md).
    """
    field = DriftingField(kernel=kernel, normalisation="both", floor=floor)
    return DriftRegression(field=field, temperatures=temperatures)


def drifting(
    name: str,
    dataset: Dataset,
    network: NetworkConfig,
    encoder: Masked,
    where: str,
    budget: Recipe,
    most_places: int | None = None,
) -> tuple[Recipe, ...]:
    """`NAME-drifting`, `-gaussian`, `-features` and `-features-gaussian`, with steps, batch and average of `budget`."""
    return tuple(
        replace(
            budget,
            name=f"{name}-drifting{'-features' if seen else ''}{suffix}",
            description=(
                f"a one-step generator by drifting {'in features of a masked autoencoder' if seen else 'in pixels'} with a "
                f"{type(kernel).__name__} kernel {where}"
            ),
            dataset=dataset,
            model=GeneratorConfig(network=network),
            objective=Drifting(
                regression=regression(kernel, temperatures, 1e-6 if seen else 0.0),
                encoder=encoder if seen else None,
                most_places=most_places,
            ),
            sampler=OneStep(),
            optimiser=PUBLISHED,
        )
        for seen in (False, True)
        for suffix, kernel, temperatures in (
            ("", Laplace(bandwidth=1.0), SHARES),
            ("-gaussian", Gaussian(bandwidth=1.0), MATCHED_SHARES),
        )
    )
