"""The regression on a stopped field: its gradient, its value, its scales, and what bad clouds are told."""

import pytest
import torch
from torch.testing import assert_close

from fewstep.clouds import pair_of
from fewstep.drift import DriftingField
from fewstep.drift_regression import DriftRegression, scaled
from fewstep.errors import UserError
from fewstep.kernels import Gaussian, InverseMultiquadric, Laplace, Matern
from problems import normals

FIELD = DriftingField(kernel=Laplace(bandwidth=0.7))
PLAIN = DriftRegression(field=FIELD, temperatures=(1.0,), relative=False, equalise=False)


def clouds(shift=0.5, n=12, d=5):
    return normals(n, d, seed=0), normals(20, d, seed=1) + shift


@pytest.mark.parametrize("normalisation", ["split", "joint", "both", "sharp"])
def test_the_gradient_is_that_of_the_stopped_field(normalisation):
    """`-2 V / (N C)`; a gradient through the field itself is another direction."""
    x, y = clouds()
    x.requires_grad_()
    field = DriftingField(kernel=Laplace(bandwidth=0.7), normalisation=normalisation)
    regression = DriftRegression(field=field, temperatures=(1.0,), relative=False, equalise=False)
    regression(x, y).per_point.mean().backward()
    expected = -2 * field(x.detach(), y) / (12 * 5)
    assert_close(x.grad, expected, atol=1e-15, rtol=0)
    assert (x.grad + expected).abs().max() > 1e-4  # the sign is told apart


def test_the_gradient_of_the_normalised_loss():
    """`-2 V~ / (S N C)`, with S and every temperature's root mean square as they are."""
    x, y = clouds()
    x.requires_grad_()
    regression = DriftRegression(field=FIELD, temperatures=(0.1, 0.5))
    regression(x, y).per_point.mean().backward()
    rho = FIELD.pair(x.detach(), y).mean_distance()
    fields = [DriftingField(kernel=Laplace(bandwidth=0.7 * t * rho))(x.detach(), y) for t in (0.1, 0.5)]
    pull = sum(v / v.square().mean().sqrt() for v in fields)
    assert_close(x.grad, -2 * pull / (rho / 5**0.5) / (12 * 5), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("normalisation", ["split", "joint", "both"])
def test_a_far_field_in_single_precision_is_normalised_too(normalisation):
    """Squares of it are 0 in float32: the loss of one temperature is 1 all the same, or 0 where nothing is left of the field."""
    x, y = (z.float() for z in clouds(8.0, d=2))
    field = DriftingField(kernel=Laplace(bandwidth=1.0), normalisation=normalisation)
    for temperature in (0.2, 0.05, 0.02, 0.01, 0.003):
        found = DriftRegression(field=field, temperatures=(temperature,))(x, y)
        assert found.per_point.mean().item() == pytest.approx(1 if found.rms[temperature] > 0 else 0, abs=1e-4)


def test_the_field_is_in_single_precision_under_autocast():
    """Eight narrow modes: rounded to bfloat16 the centroids would be off by more than the drift."""
    angle = torch.arange(400) * 2 * torch.pi / 8
    ring = 3 * torch.stack([angle.cos(), angle.sin()], dim=1)
    x, y = (ring + 0.05 * normals(400, 2, seed=seed, dtype=torch.float32) for seed in (0, 1))
    for normalisation in ("split", "both"):
        regression = DriftRegression(field=DriftingField(kernel=Laplace(bandwidth=0.1), normalisation=normalisation))
        plain = regression(x, y), regression.field(x, y)
        with torch.autocast("cpu", torch.bfloat16):
            cast = regression(x, y), regression.field(x, y)
            rough = x @ y.T
        assert_close(cast[0].per_point, plain[0].per_point, rtol=1e-5, atol=1e-6)
        assert cast[0].distance == pytest.approx(plain[0].distance, rel=1e-6)
        assert_close(cast[1], plain[1], rtol=1e-5, atol=1e-6)
        assert rough.dtype == torch.bfloat16


def test_a_gradient_through_the_field_is_another_direction():
    x, y = clouds()
    x.requires_grad_()
    k = torch.cdist(x, y), torch.cdist(x, x) + torch.diag(torch.full((12,), torch.inf))
    w_pos, w_neg = ((-r / 0.7).softmax(1) for r in k)
    drift = w_pos @ y - w_neg @ x
    drift.square().mean().backward()
    stopped = -2 * drift.detach() / (12 * 5)
    assert torch.cosine_similarity(x.grad.flatten(), stopped.flatten(), dim=0) < 0.99


@pytest.mark.parametrize("shift", [0.0, 0.5, 30.0])
@pytest.mark.parametrize("kernel", [Laplace(bandwidth=1.0), Gaussian(bandwidth=1.0)], ids=["laplace", "gaussian"])
def test_the_normalised_loss_of_one_temperature_is_one(kernel, shift):
    """Exactly, whatever the mismatch (with the floor where it is far); of three between 0 and 9; the raw rms tells."""
    x, y = clouds(shift)
    field = DriftingField(kernel=kernel, floor=1e-6)
    one = DriftRegression(field=field, temperatures=(0.2,))(x, y)
    assert one.per_point.mean().item() == pytest.approx(1, abs=1e-12)
    three = DriftRegression(field=field, temperatures=(0.02, 0.05, 0.2))(x, y)
    assert 0 < three.per_point.mean().item() <= 9 + 1e-12
    assert three.rms.keys() == {0.02, 0.05, 0.2}
    closer = DriftRegression(field=field, temperatures=(0.2,))(x, clouds(0.0)[1])
    assert shift < 30 or closer.rms[0.2] < one.rms[0.2]


@pytest.mark.parametrize("factor", [10.0, 0.01])
def test_units_change_nothing_where_temperatures_are_relative(factor):
    x, y = clouds()
    here, there = (DriftRegression()(c * x, c * y) for c in (1.0, factor))
    assert_close(there.per_point, here.per_point, rtol=1e-11, atol=0)
    assert there.distance == pytest.approx(factor * here.distance, rel=1e-12)
    for temperature, rms in here.rms.items():
        assert there.rms[temperature] == pytest.approx(factor * rms, rel=1e-9)
    fixed = [PLAIN(c * x, c * y).per_point for c in (1.0, factor)]
    assert (fixed[0] - fixed[1]).abs().max() > 1e-3


def test_the_mean_distance_is_of_both_clouds_without_own_pairs_and_by_weight():
    x, y = clouds()
    own = torch.cdist(x, x).sum() / (12 * 11)
    to_y = torch.cdist(x, y)
    expected = (to_y.sum() + own * 12 * 11) / (12 * 20 + 12 * 11)
    assert FIELD.pair(x, y).mean_distance() == pytest.approx(expected.item(), rel=1e-12)
    w = torch.linspace(0, 2, 20, dtype=torch.float64)
    weighted = ((to_y * w).sum() + own * 12 * 11) / (12 * w.sum() + 12 * 11)
    assert FIELD.pair(x, y, positive_weights=w).mean_distance() == pytest.approx(weighted.item(), rel=1e-12)
    assert FIELD.pair(x, y).mean_distance() != pytest.approx(weighted.item(), rel=1e-3)
    few = DriftingField(kernel=FIELD.kernel, block=40)
    assert few.pair(x, y, positive_weights=w).mean_distance() == pytest.approx(weighted.item(), rel=1e-12)


def test_temperatures_are_those_of_the_kernel():
    """With relative temperatures the field is that of the kernel at T rho, and the loss is in units of S = rho / sqrt(C)."""
    x, y = clouds()
    found = DriftRegression(field=FIELD, temperatures=(0.3,), equalise=False)(x, y)
    rho = FIELD.pair(x, y).mean_distance()
    drift = DriftingField(kernel=Laplace(bandwidth=0.7 * 0.3 * rho))(x, y)
    assert_close(found.per_point, (drift * 5**0.5 / rho).square().mean(1), rtol=1e-12, atol=0)
    assert_close(found.raw, drift.square().mean(1), rtol=1e-12, atol=0)
    for kernel in (Laplace(bandwidth=2.0), Matern(bandwidth=2.0), InverseMultiquadric(bandwidth=2.0, power=4.0)):
        assert scaled(kernel, 1.5).bandwidth == 3.0
        assert type(scaled(kernel, 1.5)) is type(kernel)


def test_a_part_of_the_points_has_the_pull_that_it_has_among_all():
    """Rows of all points, and groups of all groups: the statistics are those of all."""
    x, y = clouds()
    whole = DriftRegression()(x, y)
    part = DriftRegression()(x[3:7], y, x, own=True, among=(x, 0, slice(3, 7)))
    assert_close(part.per_point, whole.per_point[3:7], rtol=1e-12, atol=0)
    alone = DriftRegression()(x[3:7], y)
    assert (alone.per_point - whole.per_point[3:7]).abs().max() > 1e-3
    groups, data = normals(4, 6, 3, seed=2), normals(4, 9, 3, seed=3)
    whole = DriftRegression()(groups, data)
    part = DriftRegression()(groups[2:], data, groups, own=True, among=(groups, 0, slice(2, 4)))
    assert_close(part.per_point, whole.per_point[2:], rtol=1e-12, atol=0)


def test_at_equal_laws_the_loss_is_a_noise_floor_that_falls_with_the_number_of_points():
    """RMS V of N(0, I) against itself in the plane, tau = .2, split, masked: .576 .292 .147 at N = 8, 32, 128."""
    field = DriftingField(kernel=Laplace(bandwidth=0.2), normalisation="split")
    regression = DriftRegression(field=field, temperatures=(1.0,), relative=False, equalise=False)
    for n, expected in ((8, 0.576), (32, 0.292), (128, 0.147)):
        runs = 4000 // n
        squares = [
            regression(normals(n, 2, seed=2 * i), normals(n, 2, seed=2 * i + 1)).raw.mean().item() for i in range(runs)
        ]
        assert (sum(squares) / runs) ** 0.5 == pytest.approx(expected, rel=0.15)


def test_half_precision_is_regressed_in_single():
    x, y = clouds()
    whole = DriftRegression()(x.float(), y.float())
    half = DriftRegression()(x.bfloat16(), y.bfloat16())
    assert half.per_point.dtype == torch.float32
    assert_close(half.per_point, whole.per_point, rtol=0.1, atol=0.1)


def test_bad_input_is_told():
    x, y = clouds()
    for bad in ((), (0.0,), (-0.1,), (float("nan"),), (float("inf"),)):
        with pytest.raises(UserError, match="temperatures are above 0"):
            DriftRegression(temperatures=bad)
    with pytest.raises(UserError, match="given twice"):
        DriftRegression(temperatures=(0.1, 0.1))
    with pytest.raises(UserError, match="all points are one"):
        DriftRegression()(torch.ones(3, 2), torch.ones(4, 2))
    with pytest.raises(UserError, match="needs 2 or more"):
        DriftRegression()(x[:1], y)
    with pytest.raises(UserError, match="two negatives or more"):
        DriftRegression()(x, y, negative_weights=torch.eye(12)[0].double())
    with pytest.raises(UserError, match="floating numbers"):
        DriftRegression()(x, y.long())
    with pytest.raises(UserError, match="NaN"):
        DriftRegression()(x, y.clone().fill_(torch.nan))
    with pytest.raises(UserError, match="give as many"):
        DriftRegression()(x, y, x[:5], own=True)
    with pytest.raises(UserError, match="one for each"):
        pair_of(x, y, x, torch.ones(3).double(), None, False, 100)
    spread = DriftRegression()(x, torch.ones(4, 5).double())  # data in one point, samples not: a field there is
    assert spread.per_point.isfinite().all()
