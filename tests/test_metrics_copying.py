"""Copies of training items are told from fresh items of the same law, which no distance to held-out items does."""

import pytest
import torch

from fewstep.errors import UserError
from fewstep.metrics import Copying, EnergyDistance
from fewstep.metrics.copying import nearest
from problems import normals

TRAIN, HELD_OUT, FRESH = normals(400, 3, seed=0), normals(300, 3, seed=1), normals(500, 3, seed=2)


def test_against_scalar_loops():
    x, y, train = normals(7, 2, seed=3), normals(6, 2, seed=4), normals(5, 2, seed=5)

    def least(z):
        return min(float((z - item).square().sum()) ** 0.5 for item in train)

    expected = sum(least(a) < least(b) for a in x for b in y) / 42
    assert Copying(train=train)(x, y)["copying"] == pytest.approx(expected, abs=1e-12)


def test_controls():
    """Fresh items .5 within three deviations; exact copies 1; noisy copies above; items beyond the data near 0; narrow above."""
    metric, deviation = Copying(train=TRAIN), 0.29 * (1 / 300 + 1 / 500) ** 0.5
    assert abs(metric(FRESH, HELD_OUT)["copying"] - 0.5) < 3 * deviation
    assert metric(TRAIN, HELD_OUT)["copying"] == 1
    assert metric(TRAIN + 0.05 * normals(400, 3, seed=6), HELD_OUT)["copying"] > 0.9
    assert metric(FRESH + 6, HELD_OUT)["copying"] < 0.01
    assert metric(0.65 * FRESH, HELD_OUT)["copying"] > 0.5 + 6 * deviation
    copies = EnergyDistance()(TRAIN[:300], HELD_OUT)["energy_distance"]
    fresh = EnergyDistance()(FRESH[:300], HELD_OUT)["energy_distance"]
    assert abs(copies - fresh) < 0.02  # a distance to held-out items does not see it


def test_half_copies_are_in_between():
    mixed = torch.cat([TRAIN[:250], FRESH[:250]])
    assert abs(Copying(train=TRAIN)(mixed, HELD_OUT)["copying"] - 0.75) < 0.05


def test_ties_count_half():
    items = normals(20, 2, seed=7)
    assert Copying(train=normals(9, 2, seed=8))(items, items)["copying"] == pytest.approx(0.5)


def test_at_most_bounds_the_work_and_not_the_training_items():
    """A copy of the last training item is found."""
    few = Copying(train=TRAIN, at_most=50)
    assert few(TRAIN[-60:], HELD_OUT)["copying"] == 1
    assert few(FRESH, HELD_OUT) != Copying(train=TRAIN, at_most=50, seed=1)(FRESH, HELD_OUT)


def test_nearest_gives_indices_for_any_shape_and_block():
    images = normals(30, 1, 8, 8, seed=9)
    distance, index = nearest(images[[4, 2, 29]] + 0.01, images, block=2)
    assert index.tolist() == [4, 2, 29]
    assert distance.tolist() == pytest.approx([0.08] * 3, rel=1e-6)
    with pytest.raises(UserError, match="training items of the same shape"):
        nearest(images, normals(30, 1, 4, 4, seed=9))
    with pytest.raises(UserError, match="training items of the same shape"):
        nearest(images, images[:0])
