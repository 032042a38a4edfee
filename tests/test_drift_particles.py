"""Points that drift: to the data's law, slower where the field says so, and told what is wrong."""

import math

import pytest
import torch

from fewstep.drift import DriftingField
from fewstep.drift_particles import move
from fewstep.errors import UserError
from fewstep.kernels import Gaussian, Laplace
from fewstep.metrics import EnergyDistance
from problems import generator, normals, t2


@pytest.mark.parametrize("kernel", [Gaussian(bandwidth=0.5), Laplace(bandwidth=0.3)], ids=["gaussian", "laplace"])
def test_points_reach_the_data(kernel):
    """300 points of a normal law become draws of T2: energy distance from .5 to that of real ones, about .01."""
    y, x = t2().sample((600,), generator(0)), normals(300, 2, seed=1)
    field = DriftingField(kernel=kernel, normalisation="split")
    *_, end = move(field, x, y, rate=0.3, steps=150)
    fresh = t2().sample((3000,), generator(2))
    before, after = (EnergyDistance()(z.float(), fresh.float())["energy_distance"] for z in (x, end))
    assert before > 0.3
    assert after < 0.03


def test_the_relaxation_of_a_shift_has_the_rate_of_theory():
    """Normal laws of deviation s, Gaussian kernel h, no self mask: the mean shift is `h^2 / (s^2 + h^2) (m - x)`.

    So a difference of means falls as `(1 - rate h^2 / (s^2 + h^2))^steps`.
    """
    points = math.sqrt(2) * torch.special.erfinv(2 * (torch.arange(601).double() + 0.5) / 601 - 1)
    data, x = points[:, None], points[:, None] + 0.1
    h, rate, steps = 0.5, 0.2, 10
    field = DriftingField(kernel=Gaussian(bandwidth=h), normalisation="split", exclude_self=False)
    *_, end = move(field, x, data, rate, steps)
    expected = 0.1 * (1 - rate * h**2 / (1 + h**2)) ** steps
    assert end.mean().item() == pytest.approx(expected, rel=0.02)
    assert end.mean().item() != pytest.approx(0.1 * (1 - rate) ** steps, rel=0.2)


def test_bad_numbers_are_told():
    field, x = DriftingField(kernel=Gaussian(bandwidth=1.0)), normals(4, 2, seed=0)
    for rate, steps in ((0.0, 3), (-1.0, 3), (math.inf, 3), (0.1, 0)):
        with pytest.raises(UserError, match="finite rate above 0"):
            next(move(field, x, x, rate, steps))
