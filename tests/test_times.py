"""Laws of training times, and the grids that samplers visit."""

import math

import pytest
import torch
from scipy.stats import norm, uniform
from torch.testing import assert_close

from fewstep.errors import UserError
from fewstep.schedule import CosineSchedule, VPSchedule
from fewstep.times import CustomGrid, LogitNormal, LogSNRGrid, TimePairs, Uniform, UniformGrid
from problems import doubles, generator
from stats import accepts, ks, rejects, share

LIKE = torch.empty((), dtype=torch.float64)
N = 40_000


def logit_normal_cdf(mean, std):
    return lambda t: norm.cdf((torch.as_tensor(t).logit() - mean) / std)


@pytest.mark.parametrize(
    ("law", "right", "wrong"),
    [
        (Uniform(), uniform(0.001, 0.999).cdf, uniform(0.001, 0.97).cdf),
        (Uniform(low=0.2, high=0.5), uniform(0.2, 0.3).cdf, uniform(0.2, 0.31).cdf),
        (LogitNormal(), logit_normal_cdf(-0.4, 1.0), logit_normal_cdf(-0.4, 1.2**0.5)),
        (LogitNormal(mean=-2.0, std=2.0), logit_normal_cdf(-2.0, 2.0), logit_normal_cdf(-1.9, 2.0)),
    ],
    ids=["default-uniform", "uniform", "default-logit-normal", "logit-normal"],
)
def test_laws_of_one_time(law, right, wrong):
    t = law.sample(N, generator(0), LIKE)
    assert t.shape == (N,)
    assert t.dtype == torch.float64
    assert accepts(ks(t, right))
    assert rejects(ks(t, wrong))


def test_pairs_are_ordered_independent_times():
    """With r < t everywhere, t is the larger and r the smaller of two: `F^2` and `1 - (1 - F)^2`, and swapped ones are not."""
    r, t = TimePairs(frac_r_below_t=1.0).sample(N, generator(1), LIKE)
    cdf = logit_normal_cdf(-0.4, 1.0)
    larger, smaller = (lambda x: cdf(x) ** 2), (lambda x: 1 - (1 - cdf(x)) ** 2)
    assert (r < t).all()
    assert accepts(ks(t, larger))
    assert accepts(ks(r, smaller))
    assert rejects(ks(r, larger))
    assert rejects(ks(t, smaller))


def test_pairs_of_two_laws():
    """Of a uniform and a logit-normal time, r is the smaller, `1 - (1 - F)(1 - G)`, and t the larger, `F G`."""
    pairs = TimePairs(first=Uniform(low=0.0), second=LogitNormal(), frac_r_below_t=1.0)
    r, t = pairs.sample(N, generator(2), LIKE)
    cdf = logit_normal_cdf(-0.4, 1.0)
    smaller, larger = (lambda x: 1 - (1 - x) * (1 - cdf(x))), (lambda x: x * cdf(x))
    assert accepts(ks(r, smaller))
    assert accepts(ks(t, larger))
    assert rejects(ks(r, larger))
    assert rejects(ks(t, lambda x: cdf(x) ** 2))


@pytest.mark.parametrize("atom", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.75, 1.0])
def test_shares_of_the_pairs(fraction, atom):
    """The share of r < t is what its name says, not its complement; the atom sits at t = 1 whatever r is."""
    r, t = TimePairs(frac_r_below_t=fraction, atom_t_1=atom).sample(N, generator(3), LIKE)
    assert ((r >= 0) & (r <= t) & (t <= 1)).all()
    assert accepts(share(r < t, fraction))
    assert rejects(share(r < t, 1 - fraction))
    assert accepts(share(t == 1, atom))
    assert rejects(share(t == 1, 0.2))
    if 0 < atom < 1 and 0 < fraction < 1:
        assert accepts(share((r < t)[t == 1], fraction))


GRIDS = [UniformGrid(), LogSNRGrid(), LogSNRGrid(tau_min=0.3)]


@pytest.mark.parametrize("schedule", [VPSchedule(), CosineSchedule()], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 16, 256])
def test_grids_fall_from_1_to_0(grid, steps, schedule):
    times = grid(steps, schedule)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[0] == 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()


@pytest.mark.parametrize("schedule", [VPSchedule(), CosineSchedule()], ids=str)
def test_log_snr_grid_is_even_in_log_snr(schedule):
    times = LogSNRGrid(tau_min=0.05)(9, schedule)
    assert times[-2].item() == pytest.approx(0.05, rel=1e-12)
    log_snr = schedule.log_snr(times[:-1])
    assert_close(log_snr.diff(), log_snr.diff().mean().expand(8), rtol=1e-10, atol=0)
    assert schedule.log_snr(UniformGrid()(9, schedule)[:-1]).diff().std() > 0.1


def test_uniform_and_custom_grids_are_as_given():
    assert_close(UniformGrid()(4, VPSchedule()), doubles(1, 0.75, 0.5, 0.25, 0))
    assert torch.equal(CustomGrid(times=(1.0, 0.6, 0.2, 0.0))(3, VPSchedule()), doubles(1, 0.6, 0.2, 0))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Uniform(low=0.5, high=0.5),
        lambda: Uniform(low=-0.1),
        lambda: Uniform(high=1.1),
        lambda: LogitNormal(std=0.0),
        lambda: LogitNormal(std=-1.0),
        lambda: TimePairs(frac_r_below_t=1.5),
        lambda: TimePairs(atom_t_1=-0.1),
        lambda: TimePairs(frac_r_below_t=math.nan),
        lambda: LogSNRGrid(tau_min=0.0),
        lambda: LogSNRGrid(tau_min=1.0),
        lambda: CustomGrid(times=(1.0, 0.5, 0.5, 0.0)),
        lambda: CustomGrid(times=(0.9, 0.0)),
        lambda: CustomGrid(times=(1.0, 0.1)),
        lambda: CustomGrid(times=(1.0,)),
        lambda: CustomGrid(times=()),
        lambda: CustomGrid(times=(1.0, 0.5, 0.0))(3, VPSchedule()),
        lambda: UniformGrid()(0, VPSchedule()),
        lambda: LogSNRGrid()(0, VPSchedule()),
    ],
)
def test_what_is_refused(wrong):
    with pytest.raises(UserError):
        wrong()
