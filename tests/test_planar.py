"""Shapes in the plane: their support, their law, their streams."""

import math

import pytest
import torch
from torch.testing import assert_close

from fewstep.datasets import Checkerboard, Moons, SwissRoll
from fewstep.draws import Shard
from fewstep.errors import UserError
from problems import generator
from stats import accepts, ks, rejects

N = 20_000


def test_the_spiral():
    """Without noise a point's distance tells its angle, and the parameter is uniform."""
    x = SwissRoll(std=0.0).train().take(N)["x_0"].double()
    t = 4.5 * math.pi * x.norm(dim=1)
    assert_close(torch.stack([t.cos(), t.sin()], dim=1) * x.norm(dim=1, keepdim=True), x, atol=1e-5, rtol=0)
    u = (t / math.pi - 0.5) / 4
    assert accepts(ks(u, "uniform"))
    assert rejects(ks(u.sqrt(), "uniform"))


def test_the_board():
    """Uniform on the dark cells: each of eight has its share, no light one any."""
    x = Checkerboard(std=0.0).train().take(N)["x_0"].double()
    cell = ((x + 1) * 2).floor().long()
    assert ((cell >= 0) & (cell <= 3)).all()
    assert (cell.sum(1) % 2 == 0).all()
    counts = torch.bincount(4 * cell[:, 0] + cell[:, 1], minlength=16)
    assert (counts > 0).sum() == 8
    assert counts[counts > 0].double().sub(N / 8).abs().max() < 5 * (N / 8) ** 0.5
    inside = ((x + 1) * 2).frac().flatten()
    assert accepts(ks(inside, "uniform"))


def test_the_half_circles():
    x = Moons(std=0.0).train().take(N)["x_0"].double()
    upper = (x.norm(dim=1) - 1).abs() < 1e-5
    lower = ((x - torch.tensor([1.0, 0.5])).norm(dim=1) - 1).abs() < 1e-5
    assert (upper | lower).all()
    assert upper.double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (x[upper & ~lower][:, 1] >= -1e-5).all()
    assert (x[lower & ~upper][:, 1] <= 0.5 + 1e-5).all()


@pytest.mark.parametrize("cls", [SwissRoll, Checkerboard, Moons])
def test_the_noise_the_streams_and_the_processes(cls):
    bare, noisy = (cls(std=std).train().take(N)["x_0"] for std in (0.0, 0.1))
    assert (noisy - bare).std().item() == pytest.approx(0.1, rel=0.03)
    data = cls()
    assert data.item_shape == (2,)
    assert not torch.equal(data.train().take(5)["x_0"], data.test().take(5)["x_0"])
    assert torch.equal(data.test().take(5)["x_0"], data.test().take(5)["x_0"])
    whole = data.train().batch(8, generator(0))["x_0"]
    parts = [data.train().batch(4, Shard(generator=generator(0), rank=rank, count=2))["x_0"] for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), whole)
    with pytest.raises(UserError, match="0 or more"):
        cls(std=-0.1)
    with pytest.raises(UserError, match="1 or more"):
        data.train().take(0)
