"""Sums, stages, learnt weights, the semigroup term and distillation: what they compute, and what a run keeps of them."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fewstep
from fewstep.errors import UserError
from fewstep.models import Denoiser, MixturePosterior, PosteriorFlow
from fewstep.objectives import (
    STMD,
    ConsistencyTraining,
    Distillation,
    EnergyScoreObjective,
    LearnedWeight,
    Semigroup,
    Stages,
    WeightedSum,
    distillation,
)
from fewstep.objectives.distillation import taught_mean
from fewstep.pretrained import save_pretrained
from fewstep.recipe import Optimiser
from fewstep.scaling import IdentityScaling
from fewstep.schedule import VPSchedule
from fewstep.times import Uniform
from fewstep.training import train
from fewstep.training.loop import LossModule
from problems import SCHEDULE, TINY_MLP, LinearFlow, doubles, generator, normals, randomise, seeded, t2
from stats import accepts, rejects, z_tests
from test_training import assert_same_bits, options, weights
from tiny import tiny_recipe

BATCH = {"x_0": normals(6, 2, seed=0)}
PLAIN = STMD(adaptive_power=0.0)


def small_model():
    with seeded(0):
        return PosteriorFlow(
            randomise(TINY_MLP.build((2,), inputs=2, times=3).double()), SCHEDULE, IdentityScaling(), (2,)
        ).double()


class LinearNetwork(nn.Module):
    """The exact average velocity to N(m, s^2 I), whatever `x_tau` is; `error` is added to it where r < t."""

    def __init__(self, error: float = 0.0):
        super().__init__()
        self.flow = LinearFlow(0.7, 0.4)
        self.error = nn.Parameter(torch.tensor(error, dtype=torch.float64))

    def forward(self, x, times):
        u = self.flow(x[:, :2], times[:, 0] - times[:, 1], times[:, 0])
        return u + self.error * times[:, 1:2]


def test_a_sum_adds_its_terms_by_their_weights():
    model, score = small_model(), EnergyScoreObjective()
    whole = WeightedSum(terms=(PLAIN, score), weights=(2.0, 0.5))
    source = generator(0)
    first, second = PLAIN(model, BATCH, source), score(model, BATCH, source)
    loss = whole(model, BATCH, generator(0))
    assert_close(loss.per_sample, 2 * first.per_sample + 0.5 * second.per_sample)
    assert torch.equal(loss.raw, first.raw)
    assert torch.equal(loss.logs["term_0_STMD"], first.per_sample)
    assert torch.equal(loss.logs["term_1_EnergyScoreObjective"], second.per_sample)


def test_a_sum_is_named_by_what_it_holds():
    for terms, numbers in (((), ()), ((PLAIN,), (0.0,)), ((PLAIN,), (1.0, 1.0)), ((PLAIN,), (float("nan"),))):
        with pytest.raises(UserError, match="at least one term, and for each a weight above 0"):
            WeightedSum(terms=terms, weights=numbers)
    assert WeightedSum().num_times == 3
    assert not WeightedSum().sees_the_batch
    assert WeightedSum(terms=(STMD(peers=True),), weights=(1.0,)).sees_the_batch


def test_stages_follow_the_progress():
    model = small_model()
    stages = Stages(first=PLAIN, second=EnergyScoreObjective(), until=0.3)
    for progress, expected in ((0.0, stages.first), (0.29, stages.first), (0.3, stages.second), (None, stages.second)):
        batch = BATCH if progress is None else BATCH | {"progress": torch.full((6,), progress)}
        assert torch.equal(
            stages(model, batch, generator(1)).per_sample, expected(model, BATCH, generator(1)).per_sample
        )
    with pytest.raises(UserError, match="until"):
        Stages(until=1.0)


def test_the_semigroup_law_holds_for_the_exact_flow_alone():
    """Zero to rounding for the exact average velocity, far from it for one with an error of .1 where r < t."""
    x_0 = normals(200, 2, seed=3)
    for error, low, high in ((0.0, 0.0, 1e-20), (0.1, 1e-5, 1.0)):
        model = PosteriorFlow(LinearNetwork(error), SCHEDULE, IdentityScaling(), (2,)).double()
        loss = Semigroup()(model, {"x_0": x_0}, generator(0))
        assert low <= loss.per_sample.mean() <= high


def test_the_semigroup_term_visits_the_corner_and_detaches_its_target():
    model = PosteriorFlow(LinearNetwork(0.1), SCHEDULE, IdentityScaling(), (2,)).double()
    loss = Semigroup(corner=0.5)(model, {"x_0": normals(4000, 2, seed=0)}, generator(0))
    corner = (loss.times[:, 0] == 1) & (loss.times[:, 1] == 1)
    assert abs(corner.double().mean() - 0.5) < 5 * 0.5 / 4000**0.5
    loss.per_sample.mean().backward()
    # d/de of (e (t - r) + u - sg(target))^2: the graph goes through one evaluation only
    expected = (2 * loss.per_sample.detach().sqrt() * (loss.times[:, 1] * 2**0.5)).mean()
    assert model.network.error.grad.abs() == pytest.approx(expected.item(), rel=1e-9)
    with pytest.raises(UserError, match="corner"):
        Semigroup(corner=1.5)


def test_a_share_of_the_items_of_the_semigroup_term_has_the_same_mean():
    model, x_0 = (
        PosteriorFlow(LinearNetwork(0.1), SCHEDULE, IdentityScaling(), (2,)).double(),
        normals(20_000, 2, seed=0),
    )
    whole, part = (Semigroup(share=s)(model, {"x_0": x_0}, generator(0)).per_sample.detach() for s in (1.0, 0.25))
    assert abs((part > 0).double().mean() - 0.25) < 0.02
    assert accepts(z_tests((part - whole)[:, None], torch.zeros(1, dtype=torch.float64)))
    assert rejects(z_tests((0.25 * part - whole)[:, None], torch.zeros(1, dtype=torch.float64)))
    with pytest.raises(UserError, match="share"):
        Semigroup(share=0.0)


def test_a_learnt_weight_finds_the_size_of_the_loss_at_each_time():
    """With a model held fixed, `exp(s)` becomes the mean loss near those times; the constant weight 1 is far from it."""
    model = small_model().requires_grad_(False)
    function = LearnedWeight(objective=PLAIN, width=32).build()
    function.double()
    optimiser = torch.optim.Adam(function.parameters(), lr=1e-2)
    source = generator(0)
    x_0 = 3 * normals(128, 2, seed=5)
    for _ in range(200):
        loss = function(model, {"x_0": x_0}, source)
        optimiser.zero_grad()
        loss.per_sample.mean().backward()
        optimiser.step()
    with torch.no_grad():
        held_out = [PLAIN(model, {"x_0": x_0}, generator(i)) for i in range(40)]
        raw = torch.cat([loss.per_sample for loss in held_out])
        times = torch.cat([loss.times for loss in held_out])
        predicted = function.log_error(times)[:, 0].exp()
        for inside in (times[:, 1] == 0, times[:, 1] > 0.3, times[:, 2] < 0.2, times[:, 2] > 0.8):
            ratio = (raw[inside].mean() / predicted[inside].mean()).item()
            assert 0.75 < ratio < 1.35
            assert not 0.75 < raw[inside].mean().item() < 1.35


def test_a_learnt_weight_starts_as_no_weight_and_keeps_the_direction_of_the_gradient():
    model, plain = small_model(), PLAIN(small_model(), BATCH, generator(0))
    function = LearnedWeight(objective=PLAIN).build().double()
    assert_close(function(model, BATCH, generator(0)).per_sample, plain.per_sample)
    function.log_error.out.bias.data.fill_(1.0)
    assert_close(function(model, BATCH, generator(0)).per_sample, plain.per_sample / torch.e + 1)
    with pytest.raises(UserError, match="names no times"):
        LearnedWeight(objective=ConsistencyTraining())


def nested():
    """A sum with a learnt weight in it, in the second of two stages."""
    inner = LearnedWeight(objective=PLAIN, width=8)
    whole = WeightedSum(terms=(inner, EnergyScoreObjective(draws=2)), weights=(1.0, 0.5))
    return Stages(first=STMD(frac_r_below_t=0.0), second=whole, until=0.4)


def test_weights_of_the_objective_are_trained_stored_and_resumed_bit_for_bit(tmp_path):
    recipe = tiny_recipe(objective=nested())
    train(recipe, options(tmp_path / "whole"))
    while train(recipe, options(tmp_path / "parts", stop_after=0.0, resume=True)).reason != "finished":
        pass
    found = weights(tmp_path / "whole")
    assert_same_bits(found, weights(tmp_path / "parts"))
    stored = {name: value for name, value in found.items() if name.startswith("objective.")}
    bias = next(value for name, value in stored.items() if name.endswith("log_error.out.bias"))
    assert bias.abs().item() > 0
    assert not any("log_error" in name for name in fewstep.load(tmp_path / "whole").state_dict())


def test_only_objectives_with_weights_become_modules():
    model = small_model()
    for objective, own in ((PLAIN, 0), (WeightedSum(), 0), (Stages(), 0), (LearnedWeight(), 1), (nested(), 1)):
        module = LossModule(model, objective)
        extra = sum(1 for _ in module.parameters()) - sum(1 for _ in model.parameters())
        assert (extra > 0) == bool(own)
        if not own:
            assert module.objective is objective


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    with seeded(1):
        model = Denoiser(TINY_MLP.build((2,), inputs=1, times=1), SCHEDULE, IdentityScaling(), (2,))
    randomise(model.network, 1)
    folder = tmp_path_factory.mktemp("teacher") / "denoiser"
    save_pretrained(model, folder)
    return folder


def test_distillation_regresses_on_the_teachers_velocity(teacher):
    """At r = t the target is `(z - E[x_0 | y]) / t`, by the teacher; the data enter through the states alone."""
    model = small_model()
    objective = Distillation(teacher=str(teacher), adaptive_power=0.0, frac_r_below_t=0.0)
    calls, u = [], model.u
    model.u = lambda *arguments: calls.append(arguments) or u(*arguments)
    loss = objective(model, BATCH, generator(0))
    z, r, t, x_tau, tau = calls[-1]
    assert torch.equal(r, t)
    known = fewstep.load(teacher).double()
    lam = (SCHEDULE.alpha(tau) / SCHEDULE.sigma(tau)) ** 2 + ((1 - t) / t) ** 2
    y = (SCHEDULE.alpha(tau) / SCHEDULE.sigma(tau) ** 2)[:, None] * x_tau + ((1 - t) / t**2)[:, None] * z
    at = SCHEDULE.tau_at(lam.log())
    mean = known(SCHEDULE.alpha(at)[:, None] * y / lam[:, None], at).mean()
    expected = (u(z, t, t, x_tau, tau) - (z - mean) / t[:, None]).square().sum(1)
    assert_close(loss.per_sample, expected, rtol=1e-5, atol=1e-8)
    assert_close(loss.times, torch.stack([t, t - r, tau], dim=1))


def test_the_teacher_is_neither_trained_nor_stored(teacher, tmp_path):
    before = (teacher / "model.safetensors").read_bytes()
    recipe = tiny_recipe(
        objective=Stages(first=Distillation(teacher=str(teacher), adaptive_power=0.0, frac_r_below_t=0.0), until=0.5),
        optimiser=Optimiser(lr=1e-2),
    )
    train(recipe, options(tmp_path / "run"))
    assert not any(name.startswith("objective.") for name in weights(tmp_path / "run"))
    assert (teacher / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("wrap", ["alone", "sum", "stages", "learnt weight"])
def test_a_teacher_is_loaded_once_for_a_run(teacher, tmp_path, monkeypatch, wrap):
    """Also where it stands inside another objective: not at every step."""
    objective = Distillation(teacher=str(teacher), adaptive_power=0.0)
    wrapped = {
        "alone": objective,
        "sum": WeightedSum(terms=(objective, EnergyScoreObjective(draws=2)), weights=(1.0, 1.0)),
        "stages": Stages(first=objective, until=0.9),
        "learnt weight": LearnedWeight(objective=objective),
    }
    loads, load = [], distillation.load
    monkeypatch.setattr(distillation, "load", lambda folder: loads.append(folder) or load(folder))
    train(tiny_recipe(steps=4, objective=wrapped[wrap]), options(tmp_path / "run"))
    assert len(loads) == 1


def test_a_teacher_that_ends_in_less_noise_is_asked_no_further(tmp_path):
    """A diffusion that stops early knows nothing of more noise; within its reach the exact teacher has the exact mean."""
    short, mixture = VPSchedule(beta_max=4.0), t2()
    with seeded(1):
        early = Denoiser(TINY_MLP.build((2,), inputs=1, times=1), short, IdentityScaling(), (2,))
    save_pretrained(early, tmp_path / "early")
    model, whole = small_model(), Distillation(teacher=str(tmp_path / "early"), adaptive_power=0.0)
    with pytest.raises(UserError, match=r"let its tau end at 0\.\d+ \(--objective.tau-law.high\)") as error:
        whole(model, BATCH, generator(0))
    reach = float(re.search(r"end at (0\.\d+)", str(error.value)).group(1))
    part = replace(whole, tau_law=Uniform(high=reach))
    assert part(model, BATCH, generator(0)).per_sample.isfinite().all()
    exact, tau = MixturePosterior(mixture, short), doubles(0.999 * reach)
    y = doubles(0.4, -1.0)[None]
    found = taught_mean(exact, y, (SCHEDULE.alpha(tau) / SCHEDULE.sigma(tau)) ** 2)
    truth = MixturePosterior(mixture, SCHEDULE)(SCHEDULE.alpha(tau) * y, tau).mean()
    assert_close(found, truth, rtol=1e-6, atol=1e-6)
    late = doubles(1.0)
    beyond = taught_mean(exact, y, (SCHEDULE.alpha(late) / SCHEDULE.sigma(late)) ** 2)
    assert (beyond - MixturePosterior(mixture, SCHEDULE)(SCHEDULE.alpha(late) * y, late).mean()).norm() > 0.2


def test_a_teacher_that_draws_takes_its_noise_from_the_generator(tmp_path):
    """The mean of a posterior flow is estimated from a draw: the global stream stays where it is, and runs repeat."""
    save_pretrained(small_model().float(), tmp_path / "flow")
    objective, state = Distillation(teacher=str(tmp_path / "flow"), adaptive_power=0.0), torch.get_rng_state()
    first, again = (objective(small_model(), BATCH, generator(0)).per_sample for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, objective(small_model(), BATCH, generator(1)).per_sample)


def test_a_teacher_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs a teacher"):
        Distillation().build()
    with pytest.raises(UserError, match="no folder"):
        Distillation(teacher=str(tmp_path / "absent")).build()
