"""The laws of a variance-preserving diffusion, at the ends of the clock too."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from jaxtyping import TypeCheckError
from torch.testing import assert_close

from fewstep import transition
from fewstep.errors import UserError
from fewstep.schedule import CosineSchedule, VPSchedule
from problems import doubles

SCHEDULES = [VPSchedule(), VPSchedule(0.5, 0.5), CosineSchedule(), CosineSchedule(0.1)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
TINY = [1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2]
CLOCK = torch.cat([doubles(*TINY), torch.linspace(0.02, 1, 500, dtype=torch.float64)])


@every_schedule
def test_variance_is_preserved_from_data_to_noise(schedule):
    alpha, sigma = schedule.alpha(CLOCK), schedule.sigma(CLOCK)
    assert_close(alpha**2 + sigma**2, torch.ones_like(CLOCK), rtol=0, atol=1e-14)
    zero = doubles(0.0)
    assert schedule.alpha(zero) == 1
    assert schedule.sigma(zero) == 0
    assert schedule.log_snr(zero) == math.inf


@every_schedule
def test_log_snr_strictly_decreases_and_is_that_of_alpha_and_sigma(schedule):
    log_snr = schedule.log_snr(CLOCK)
    assert (log_snr.diff() < 0).all()
    assert_close(log_snr, 2 * (schedule.alpha(CLOCK) / schedule.sigma(CLOCK)).log(), rtol=1e-12, atol=1e-12)


@every_schedule
def test_beta_is_the_rate_of_noising(schedule):
    tau = CLOCK.clone().requires_grad_()
    (rate,) = torch.autograd.grad(schedule.alpha(tau).log().sum(), tau)
    assert_close(schedule.beta(CLOCK), -2 * rate, rtol=1e-10, atol=1e-12)


@every_schedule
def test_tau_at_inverts_log_snr(schedule):
    assert_close(schedule.tau_at(schedule.log_snr(CLOCK)), CLOCK, rtol=1e-11, atol=0)
    log_snr = torch.linspace(20, schedule.log_snr(doubles(1.0)).item(), 100, dtype=torch.float64)
    assert_close(schedule.log_snr(schedule.tau_at(log_snr)), log_snr, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 4e-15), (torch.float32, 4e-7)])
def test_vp_near_zero_against_sixty_digits(dtype, accuracy):
    """Nothing cancels where sigma^2 is about 1e-13: sigma and the log-SNR are right to the rounding of the dtype."""
    schedule = VPSchedule()
    for tau in torch.tensor(TINY, dtype=dtype):
        with localcontext(prec=60):
            exact = Decimal(tau.item())
            alpha_squared = (-(Decimal("0.1") * exact + Decimal("9.95") * exact**2)).exp()
            sigma = (1 - alpha_squared).sqrt()
            log_snr = (alpha_squared / sigma**2).ln()
        assert schedule.sigma(tau).item() == pytest.approx(float(sigma), rel=accuracy, abs=0)
        assert schedule.log_snr(tau).item() == pytest.approx(float(log_snr), rel=accuracy, abs=accuracy)


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float64, 4e-15), (torch.float32, 4e-7)])
def test_cosine_near_zero_is_the_angle(dtype, accuracy):
    schedule = CosineSchedule()
    for tau in torch.tensor(TINY, dtype=dtype):
        assert schedule.sigma(tau).item() == pytest.approx(math.sin(schedule.theta * tau.item()), rel=accuracy, abs=0)


def test_a_sigma_that_cancels_is_told_apart():
    """The textbook form `sqrt(1 - alpha^2)` loses what the tests above ask for."""
    tau = doubles(1e-10)
    assert abs((1 - VPSchedule().alpha(tau) ** 2).sqrt() / VPSchedule().sigma(tau) - 1) > 1e-8


def test_known_numbers():
    assert VPSchedule().alpha(doubles(1.0)).item() == pytest.approx(math.exp(-5.025), rel=1e-14)
    assert VPSchedule().beta(doubles(0.5)).item() == pytest.approx(10.05, rel=1e-14)
    assert CosineSchedule().alpha(doubles(1.0)).item() == pytest.approx(0.005, rel=1e-11)
    assert CosineSchedule().alpha(doubles(0.5)).item() == pytest.approx(math.sqrt(1.005 / 2), rel=1e-13)


@pytest.mark.parametrize("arguments", [(0.0, 20.0), (-0.1, 20.0), (2.0, 1.0), (math.nan, 1.0), (0.1, math.nan)])
def test_vp_refuses_rates_that_do_not_noise(arguments):
    with pytest.raises(UserError, match="beta_min"):
        VPSchedule(*arguments)


@pytest.mark.parametrize("alpha_1", [0.0, 1.0, -0.5, math.nan])
def test_cosine_refuses_a_signal_outside_0_and_1(alpha_1):
    with pytest.raises(UserError, match="alpha_1"):
        CosineSchedule(alpha_1)


def test_annotated_shapes_are_checked():
    """Three times against two: the annotations of the package are enforced while it is tested."""
    with pytest.raises(TypeCheckError):
        transition.moments(CLOCK[:3], CLOCK[:2], VPSchedule())
