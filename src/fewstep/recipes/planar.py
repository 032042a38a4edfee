"""Drifting in the plane: four shapes, a Laplace and a Gaussian kernel; a minute each on a CPU."""

from dataclasses import replace

from fewstep.datasets import Checkerboard, Moons, Ring, SwissRoll
from fewstep.datasets.base import Dataset
from fewstep.drift import DriftingField
from fewstep.drift_regression import DriftRegression
from fewstep.kernels import Gaussian, Kernel, Laplace
from fewstep.models import GeneratorConfig
from fewstep.networks import MLPConfig
from fewstep.objectives import Drifting
from fewstep.recipe import Optimiser, Recipe
from fewstep.recipes._drifting import regression
from fewstep.samplers import OneStep

TAU = 0.1  # of the Laplace kernel, in units of the data
MATCHED = 3**0.5  # of a Gaussian kernel where the density is even: h^2 = (d + 1) tau^2 in d = 2


def one_scale(kernel: Kernel) -> DriftRegression:
    """The plain field V_p - V_q in units of the data."""
    field = DriftingField(kernel=replace(kernel, bandwidth=TAU * kernel.bandwidth), normalisation="split")
    return DriftRegression(field=field, temperatures=(1.0,), relative=False, equalise=False)


def recipe(name: str, shape: str, dataset: Dataset, kernel: Kernel) -> Recipe:
    """The recipe of a shape and a kernel; the ring's is algorithm A1 at three shares of the mean distance.

    Of a fine temperature alone separated modes keep wrong weights, for a time that is exponential in their distance over it.
    """
    return Recipe(
        name=name,
        description=f"a one-step generator by drifting with a {type(kernel).__name__} kernel on {shape} (a minute on a CPU)",
        dataset=dataset,
        model=GeneratorConfig(network=MLPConfig(width=128, depth=3)),
        objective=Drifting(regression=(regression if isinstance(dataset, Ring) else one_scale)(kernel)),
        sampler=OneStep(),
        optimiser=Optimiser(lr=1e-3, decay="cosine", warmup_steps=50),
        steps=1500,
        batch_size=512,
        ema_decay=0.995,
        ema_warmup=False,
    )


SHAPES: dict[str, tuple[str, Dataset]] = {
    "swissroll": ("a spiral", SwissRoll()),
    "checkerboard": ("a checkerboard", Checkerboard()),
    "moons": ("two half circles", Moons()),
    "ring": ("the eight-mode ring", Ring()),
}
recipes = tuple(
    recipe(f"{name}-drifting{suffix}", *shape, kernel)
    for name, shape in SHAPES.items()
    for suffix, kernel in (("", Laplace(bandwidth=1.0)), ("-gaussian", Gaussian(bandwidth=MATCHED)))
)
