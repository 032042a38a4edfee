"""Steering with the exact posterior model of T2, where a linear and a quadratic reward make another mixture, known exactly.

Linear: `b = (.5, -1)`: log Z .80743961, weights .0895 .1729 .7376, KL .84841246. Quadratic: `r = -(y - A x)^2 / (2 Gam)`, a
measurement without its constant.
"""

import inspect
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fewstep import particles
from fewstep.errors import UserError
from fewstep.metrics import EnergyDistance
from fewstep.models import MeanFlow, MixturePosterior, PosteriorFlow
from fewstep.samplers import Ancestral
from fewstep.scaling import GaussianScaling
from fewstep.steering import (
    SMC,
    BestOfN,
    DegeneracyWarning,
    Guidance,
    SingleParticle,
    estimate_value,
    rewards_of,
)
from fewstep.steering.base import Tilt
from problems import SCHEDULE, TINY_MLP, doubles, generator, normals, randomise, seeded, t2, tau_of
from stats import accepts, rejects, z_tests

pytestmark = pytest.mark.filterwarnings("ignore::fewstep.steering.DegeneracyWarning")  # of those that are not asked for

MIXTURE, MODEL = t2(), MixturePosterior(t2(), SCHEDULE)
SLOPE = doubles(0.5, -1.0)
TILTED, LOG_Z = MIXTURE.tilt(SLOPE)
KL = (TILTED.mean @ SLOPE - LOG_Z).item()
A, GAM, Y = doubles(1.0, 0.5), 0.25, 0.5
MEASURED = MIXTURE.condition(doubles(Y), A[None], GAM * torch.eye(1).double())
LOG_Z_MEASURED = MIXTURE.log_evidence(doubles(Y), A[None], GAM * torch.eye(1).double()) + 0.5 * math.log(
    2 * math.pi * GAM
)


def linear(x):
    return x @ SLOPE.to(x)


def quadratic(x):
    return -((Y - x @ A.to(x)) ** 2) / (2 * GAM)


CASES = {"linear": (linear, TILTED, LOG_Z), "quadratic": (quadratic, MEASURED, LOG_Z_MEASURED)}
PROBLEMS = pytest.mark.parametrize(("reward", "law", "log_z"), CASES.values(), ids=CASES)


def steered(method, reward=linear, n=4000, seed=0, model=MODEL):
    return method(model, reward, n, generator(seed))


def test_the_numbers_of_the_tilt():
    """As they stand in the docs; the quadratic one has no linear term to hide a wrong sign."""
    assert_close(LOG_Z, doubles(0.80743961)[0], atol=1e-7, rtol=0)
    assert_close(TILTED.weights, doubles(0.08953848, 0.17287916, 0.73758236), atol=1e-7, rtol=0)
    assert pytest.approx(0.84841246, abs=1e-7) == KL
    x = MIXTURE.sample((200_000,), generator(0))
    assert accepts(z_tests(quadratic(x).exp(), LOG_Z_MEASURED.exp()))
    assert rejects(z_tests(quadratic(x).exp(), LOG_Z_MEASURED.exp() * 1.05))


# --- consistent methods


CONSISTENT = {
    "smc": SMC(steps=15, draws=8),
    "smc, one draw": SMC(steps=15, draws=1),
    "smc, no anneal": SMC(steps=15, draws=4, anneal=0.0),
    "single, weighted": SingleParticle(steps=15, draws=8, anneal=1.0, weighted=True),
    "soft best of n": BestOfN(n=4, soft=True, weighted=True, sampler=Ancestral(steps=8)),
    "importance": BestOfN(n=1, soft=True, weighted=True, sampler=Ancestral(steps=8)),
    "guidance, weighted": Guidance(steps=12, draws=16, weighted=True),
}
LIGHT = {"smc, no anneal", "guidance, weighted"}  # of heavy weights where the reward is far below 0


@pytest.mark.parametrize(
    ("name", "reward", "law", "log_z"),
    [(name, *case) for name in CONSISTENT for case in CASES.values() if not (name in LIGHT and case[0] is quadratic)],
)
def test_consistent_methods_sample_the_tilt(name, reward, law, log_z):
    """Weights of the components within .03, the mean within .06 in every coordinate, KL within .07, over 16 000 samples."""
    found = steered(CONSISTENT[name], reward, n=16_000)
    assert (found.expectation(law.responsibilities(found.x)) - law.weights).abs().max() < 0.03
    assert (found.expectation(found.x) - law.mean).abs().max() < 0.06
    assert found.log_z == pytest.approx(log_z.item(), abs=0.06)
    kl = (found.expectation(reward(found.x)) - log_z).item()
    assert found.kl == pytest.approx(kl, abs=0.07)
    assert not found.kl_is_bound
    assert (MIXTURE.weights - law.weights).abs().max() > 0.2  # what a method that ignores the reward would have


@PROBLEMS
def test_smc_estimates_log_z_without_bias(reward, law, log_z):
    """60 populations of 100: the mean of `Zhat / Z` is 1, and is not without the bridge's part of the weight."""
    ratios = doubles(*[steered(SMC(steps=10, draws=2), reward, 100, seed).log_z for seed in range(60)]) - log_z
    assert accepts(z_tests(ratios.exp(), torch.ones(1).double()))
    assert ratios.exp().std() < 1


def test_smc_without_the_correction_of_the_bridge_is_biased(monkeypatch):
    from fewstep.steering import nested

    right = nested._step

    def wrong(*arguments):
        x, correction = right(*arguments)
        return x, torch.zeros_like(correction)

    monkeypatch.setattr(nested, "_step", wrong)
    ratios = (
        doubles(*[steered(SMC(steps=10, draws=2), quadratic, 100, seed).log_z for seed in range(60)]) - LOG_Z_MEASURED
    )
    assert rejects(z_tests(ratios.exp(), torch.ones(1).double()))


def test_weights_are_carried_where_nothing_is_resampled():
    """The effective number never falls below the share 0, or below a tenth: expectations are those of the tilt all the same."""
    for share in (0.0, 0.1):
        found = steered(SMC(steps=15, draws=8, resample=share), n=16_000)
        assert (found.expectation(found.x) - TILTED.mean).abs().max() < 0.06
        lost = found.x.mean(0)  # what remains if the weights between resamplings are lost
        assert (lost - TILTED.mean).abs().max() > 0.06


def test_a_constant_reward_changes_nothing():
    """The law is the model's, all weights are equal, log Z is the constant and nothing is paid."""
    own = MIXTURE.sample((4000,), generator(9))
    for method in CONSISTENT.values():
        found = steered(method, lambda x: x.new_full((len(x),), 7.0))
        assert_close(found.log_w, torch.full((4000,), -math.log(4000)).double())
        assert found.log_z == pytest.approx(7, abs=1e-9)
        assert found.kl == pytest.approx(0, abs=1e-9)
        assert EnergyDistance()(found.x, own)["energy_distance"] < 0.02
    assert EnergyDistance()(steered(CONSISTENT["smc"]).x, own)["energy_distance"] > 0.1


def test_a_temperature_divides_the_reward():
    found = steered(SMC(steps=15, temperature=2.0), lambda x: 2 * linear(x))
    assert torch.equal(found.x, steered(SMC(steps=15)).x)
    assert found.mean_reward == pytest.approx(2 * steered(SMC(steps=15)).mean_reward)


# --- heuristics, and what they pay


def test_heuristics_gain_and_pay_at_most_their_bound():
    """The reward grows from -.1; what is reached costs `KL(q || p)` of one dimension at least, and no bound is below that."""
    least = {}
    for method in (
        SingleParticle(steps=15, draws=8),
        BestOfN(n=4, sampler=Ancestral(steps=8)),
        BestOfN(n=4, soft=True, sampler=Ancestral(steps=8)),
        Guidance(steps=30, draws=32),
        Guidance(steps=30, gradient="plug-in"),
    ):
        found = steered(method)
        assert found.kl_is_bound
        assert found.log_z is None
        assert found.mean_reward > 0.8
        assert_close(found.log_w, torch.full((4000,), -math.log(4000)).double())
        least[str(method)] = _cost(found.mean_reward)
        assert found.kl > least[str(method)]
    assert max(least.values()) > 0.3


def _cost(mean_reward):
    """The least divergence at which this mean reward can be had: that of a tilt, at the temperature that has it."""
    low, high = 0.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        law, log_z = MIXTURE.tilt(middle * SLOPE)
        low, high = (middle, high) if law.mean @ SLOPE < mean_reward else (low, middle)
    return (middle * law.mean @ SLOPE - log_z).item()


def test_best_of_n_takes_the_largest_and_guidance_of_strength_0_nothing():
    four = steered(BestOfN(n=4, sampler=Ancestral(steps=4)), n=2000)
    one = steered(BestOfN(n=1, sampler=Ancestral(steps=4)), n=8000)
    largest = one.rewards.reshape(2000, 4).amax(1)
    assert abs(four.mean_reward - largest.mean()) < 5 * largest.std() / 2000**0.5
    assert four.kl == pytest.approx(math.log(4) - 3 / 4)
    still = steered(Guidance(steps=8, draws=4, strength=0.0))
    assert still.kl == pytest.approx(0)
    assert abs(still.mean_reward - one.mean_reward) < 0.12


def test_a_walk_can_change_its_mind():
    """State by state, the draws to look at; a reward that turns round ends elsewhere."""
    ends = []
    wish = SLOPE.clone()
    for turned in (False, True):
        wish.copy_(SLOPE)
        walk = SingleParticle(steps=10, draws=64, temperature=0.1).walk(MODEL, lambda x: x @ wish, generator(3))
        for state in walk:
            assert state.drawn.shape[1:] == (1, 2)
            if turned and state.tau < 0.75:
                wish.copy_(-SLOPE)
        assert state.tau == 0
        ends.append(linear(state.x).item())
    assert ends[0] > 1 > -0.5 > ends[1]


# --- the value and its gradient


def law_of(model=MODEL, reward=linear, seed=0):
    return Tilt(model=model, generator=generator(seed), flow_steps=1, max_batch=10**6, reward=reward, temperature=1.0)


TABLE = {  # alpha^2: V and its gradient at x_tau = (.4, -.7), of the measurement
    0.9: (-1.37420147, (2.15859633, 1.09070074)),
    0.5: (-2.24182695, (0.91474041, -0.49837737)),
    0.1: (-3.09231478, (0.36066244, -0.39124584)),
}


def log_density(x):
    return quadratic(x) - 0.5 * math.log(2 * math.pi * GAM)


@pytest.mark.parametrize("alpha_squared", TABLE)
def test_the_value_and_its_gradient_are_those_of_the_table(alpha_squared):
    """1000 draws at 400 states: unbiased to what it says of itself, which is right within a tenth; the plug-in is off."""
    tau, x_tau = tau_of(alpha_squared), doubles(0.4, -0.7).expand(400, 2)
    value, gradient = TABLE[alpha_squared][0], doubles(*TABLE[alpha_squared][1])
    found = estimate_value(law_of(reward=log_density), x_tau, tau, 1000, "covariance")
    assert accepts(z_tests(found.log_value - found.bias, doubles(value)))
    assert accepts(z_tests(found.gradient - found.gradient_bias, gradient))
    assert rejects(z_tests(found.gradient, gradient + 0.1 * gradient.abs()))
    assert found.std.mean() == pytest.approx(found.log_value.std().item(), rel=0.15)
    assert_close(found.gradient_std.mean(0), found.gradient.std(0), rtol=0.15, atol=0)
    plug_in = estimate_value(law_of(reward=log_density), x_tau[:1], tau, 1, "plug-in")
    assert (plug_in.gradient[0] - gradient).norm() > 1
    assert abs(plug_in.log_value - value) > 0.1
    assert plug_in.gradient_std.isnan().all()


@pytest.mark.parametrize("alpha_squared", [0.9, 0.5, 0.1])
def test_the_value_of_a_linear_reward(alpha_squared):
    """`V = log E[exp(b x_0) | x_tau]` of the posterior mixture in closed form, its gradient by a central difference."""
    tau = tau_of(alpha_squared)

    def exact(x):
        return _log_z(x, tau)

    x, h = doubles(0.4, -0.7), 1e-5
    slope = torch.stack([(exact(x + h * e) - exact(x - h * e)) / (2 * h) for e in torch.eye(2).double()])
    found = estimate_value(law_of(), x.expand(400, 2), tau, 1000, "covariance")
    assert accepts(z_tests(found.log_value - found.bias, exact(x)[None]))
    assert accepts(z_tests(found.gradient - found.gradient_bias, slope))


def _log_z(x, tau):
    law = MIXTURE.posterior(x[None], tau, SCHEDULE)
    gains = law.means[0] @ SLOPE + 0.5 * torch.einsum(
        "i,kij,j->k", SLOPE, law.covariances.reshape(-1, 2, 2)[-3:], SLOPE
    )
    return (law.weights[0].log() + gains).logsumexp(0)


def test_few_draws_are_biased_as_they_say():
    """With 8 draws the value is too small by about what the delta method says."""
    tau, x_tau = tau_of(0.5), doubles(0.4, -0.7).expand(20_000, 2)
    found = estimate_value(law_of(), x_tau, tau, 8, "covariance")
    off = found.log_value.mean() - _log_z(doubles(0.4, -0.7), tau)
    assert off < -0.02
    assert abs(off - found.bias.mean()) < 0.5 * abs(off)


def flow():
    with seeded(0):
        network = randomise(TINY_MLP.build((2,), inputs=2, times=3).double())
    return PosteriorFlow(network, SCHEDULE, GaussianScaling(), (2,)).double()


def test_the_reparametrised_gradient_is_a_central_difference():
    model, tau, x = flow(), doubles(0.4)[0], normals(3, 2, seed=1)
    found = estimate_value(law_of(model), x, tau, 5, "reparametrised")

    def value(at):
        return particles.log_mean_exp(linear(law_of(model).push(at, tau, law_of(model).normal(x, (5,)))))

    with torch.no_grad():
        slopes = [(value(x + 1e-6 * e) - value(x - 1e-6 * e)) / 2e-6 for e in torch.eye(2).double()]
    assert_close(found.gradient, torch.stack(slopes, dim=1), rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match="no function of Gaussian noise"):
        estimate_value(law_of(), x, tau, 5, "reparametrised")


# --- bad rewards and numbers


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda x: linear(x).where(x[:, 0] < 0, torch.nan), "NaN or \\+infinity"),
        (lambda x: linear(x) + torch.inf, "NaN or \\+infinity"),
        (lambda x: x, r"tensor \(\d+, 2\)"),
        (lambda x: linear(x).sum(), r"tensor \(\)"),
        (lambda x: linear(x).tolist(), "gave a list"),
        (lambda x: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_bad_rewards_are_refused(reward, message):
    for method in (SMC(steps=3), BestOfN(), Guidance(steps=3), SingleParticle(steps=3)):
        with pytest.raises(UserError, match=message):
            steered(method, reward, n=100)
    with pytest.raises(UserError, match=message):
        rewards_of(reward, normals(50, 2, seed=0))


def test_a_reward_of_a_million_is_a_hard_choice_and_is_told():
    """Finite numbers throughout; the samples are the few that are left, and a note says so."""
    with pytest.warns(DegeneracyWarning, match="carries more than half"):
        found = steered(SMC(steps=10), lambda x: 1e6 * linear(x), n=500)
    assert found.log_w.exp().sum() == pytest.approx(1)
    assert math.isfinite(found.log_z)
    assert math.isfinite(found.mean_reward)
    assert linear(found.x).mean() > 2
    many = steered(BestOfN(n=8), lambda x: 1e6 * linear(x), n=500)
    assert 1 < linear(many.x).mean() < 3


@pytest.mark.parametrize("draws", [1, 8])
def test_items_that_must_not_be(draws):
    """-infinity excludes: no sample is in the left half plane, what is left has the right law, for a single draw too."""
    method = SMC(steps=15, draws=draws)
    found = steered(method, lambda x: torch.zeros(len(x)).double().where(x[:, 0] > 0, -torch.inf), n=8000)
    x = MIXTURE.sample((400_000,), generator(1))
    right = x[x[:, 0] > 0]
    assert found.log_z == pytest.approx(math.log(len(right) / len(x)), abs=0.1)
    assert found.x[found.log_w.isfinite()][:, 0].min() > 0
    assert (found.expectation(found.x) - right.mean(0)).abs().max() < 0.1


def test_a_particle_that_is_given_up_for_ever_biases_the_law(monkeypatch):
    """Why potentials on the way are positive: with a single draw, only paths that never looked left would remain."""
    from fewstep.steering import nested

    monkeypatch.setattr(nested, "_possible", lambda g, b: g.where(g.isfinite(), -700.0))
    found = steered(
        SMC(steps=15, draws=1), lambda x: torch.zeros(len(x)).double().where(x[:, 0] > 0, -torch.inf), n=8000
    )
    share = (MIXTURE.sample((200_000,), generator(1))[:, 0] > 0).double().mean().item()
    assert found.log_z < math.log(share) - 0.2


def test_forbidden_samples_are_told():
    """A method that does not weigh may keep them: then it says so, and knows no divergence."""

    def half(x):
        return torch.zeros(len(x)).double().where(x[:, 0] > 0, -torch.inf)

    found = steered(Guidance(steps=5), half, n=200)
    assert found.kl is None
    assert "must not be" in found.notes[-1]
    assert not [note for note in steered(SMC(steps=10), half, n=200).notes if "must not be" in note]


def test_nothing_is_possible():
    for method in (SMC(steps=5), BestOfN(), Guidance(steps=5)):
        with pytest.raises(UserError, match="none of the 50 samples"):
            steered(method, lambda x: x.new_full((len(x),), -torch.inf), n=50)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SMC(temperature=0.0), "temperature"),
        (lambda: SMC(temperature=math.nan), "temperature"),
        (lambda: SMC(steps=0), "steps"),
        (lambda: SMC(resample=1.5), "resample"),
        (lambda: SMC(anneal=-1.0), "anneal"),
        (lambda: BestOfN(n=0), "n counts"),
        (lambda: BestOfN(weighted=True), "soft=True"),
        (lambda: Guidance(draws=1), "draws"),
        (lambda: Guidance(strength=-1.0), "strength"),
        (lambda: steered(SMC(), n=0), "num_samples"),
        (lambda: SMC()(MODEL, linear, 3, [generator(0)] * 3), "one generator"),
        (
            lambda: steered(Guidance(steps=3, gradient="plug-in"), lambda x: linear(x.detach()), 10),
            "no derivative",
        ),
        (
            lambda: SMC()(MeanFlow(TINY_MLP.build((2,), inputs=1, times=2), (2,)), linear, 3),
            "needs a model of q",
        ),
    ],
)
def test_numbers_out_of_range(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_decode_hook():
    """The reward looks at what the decoder makes of latent items."""
    seen = []

    def decode(x):
        seen.append(x.shape)
        return torch.cat([x, x], dim=1)

    found = SMC(steps=4, draws=2)(MODEL, lambda x: x[:, 2] - x[:, 1], 50, generator(0), decode=decode)
    assert found.x.shape == (50, 2)
    assert_close(found.rewards, found.x[:, 0] - found.x[:, 1])
    assert all(shape[1] == 2 for shape in seen)


def test_evaluations_and_memory_are_counted():
    model = flow()
    found = SMC(steps=5, draws=3)(model, linear, 20, generator(0))
    assert found.nfe == pytest.approx(15 + 64 / 20)
    guided = Guidance(steps=5, draws=3)(model, linear, 20, generator(0))
    assert guided.nfe == 4 * 3 + 1
    small = replace(Guidance(steps=5, draws=3), max_batch=12)(model, linear, 20, generator(0))
    assert small.x.shape == guided.x.shape


def test_a_reward_that_writes_into_the_items_is_refused():
    """Silently, the samples would be those that it made of them."""

    def writes(x):
        x.mul_(0.5)
        return x @ SLOPE.to(x)

    with pytest.raises(UserError, match=r"in place: work on a copy, x\.clone\(\)"):
        steered(BestOfN(), writes, 8)
    assert steered(BestOfN(), lambda x: (0.5 * x) @ SLOPE.to(x), 8).x.isfinite().all()


def test_potentials_beyond_all_numbers_are_refused():
    with pytest.raises(UserError, match="raise the temperature"):
        steered(BestOfN(temperature=1e-310), n=8)
    with pytest.raises(UserError, match="raise the temperature"):
        steered(SMC(temperature=1e-150), lambda x: 1e200 * (x @ SLOPE.to(x)), 8)


def test_one_draw_does_not_know_how_far_off_it_is():
    x, tau = normals(3, 2, seed=0), tau_of(0.5)
    for gradient in ("covariance",):
        one = estimate_value(law_of(), x, tau, 1, gradient)
        assert all(numbers.isnan().all() for numbers in (one.bias, one.std, one.gradient_bias, one.gradient_std))
        assert one.log_value.isfinite().all()
        two = estimate_value(law_of(), x, tau, 2, gradient)
        assert all(numbers.isfinite().all() for numbers in (two.bias, two.std, two.gradient_bias, two.gradient_std))


def test_a_walk_leaves_no_graph_and_knows_its_model():
    model = randomised_flow()
    states = list(SingleParticle(steps=3, draws=4).walk(model, lambda x: x.sum(1), generator(0)))
    assert not states[-1].x.requires_grad
    assert torch.is_grad_enabled()
    walk = inspect.unwrap(SingleParticle.walk)  # past the test run's check of types, which would come first
    other = MeanFlow(TINY_MLP.build((2,), inputs=1, times=2), (2,))
    with pytest.raises(UserError, match="needs a model of q"):
        next(walk(SingleParticle(steps=3), other, linear, generator(0)))


def randomised_flow() -> PosteriorFlow:
    with seeded(0):
        network = TINY_MLP.build((2,), inputs=2, times=3)
    return PosteriorFlow(randomise(network, 0), SCHEDULE, GaussianScaling(), (2,))
