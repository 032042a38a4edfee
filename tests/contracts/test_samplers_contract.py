"""The laws of every sampler: each file of the family is found, and each sampler draws from the model it is for."""

import inspect
import typing

import pytest
import torch
from torch.testing import assert_close

import fewstep.models
import fewstep.samplers
from fewstep.configuration import from_config, to_config
from fewstep.draws import item_generators, normal
from fewstep.errors import UserError
from fewstep.models import ConsistencyMap, EvaluationCounter, MixturePosterior, Model, ModelConfig, PosteriorModel
from fewstep.samplers import Ancestral, FlowMap, OfMeans, OneStep, ProbabilityFlow, ReverseSDE, Sampler
from fewstep.samplers.base import step_counts
from problems import SCHEDULE, generator, members, models_for, normals, ring

SAMPLERS = members(fewstep.samplers, Sampler)
EXACT = MixturePosterior(ring(), SCHEDULE)


def models(sampler):
    """Small networks of every kind that the sampler takes and, where it takes posteriors, the exact one."""
    found = models_for(type(sampler).__call__, dtype=torch.float32)
    if isinstance(sampler, OfMeans | ProbabilityFlow | ReverseSDE):  # a consistency map has no mean to give them
        found = [model for model in found if not isinstance(model, ConsistencyMap)]
    return [*found, EXACT] if any(isinstance(model, PosteriorModel) for model in found) else found


CASES = [(sampler, model) for sampler in (cls() for cls in SAMPLERS) for model in models(sampler)]
every_case = pytest.mark.parametrize(
    ("sampler", "model"), CASES, ids=[f"{type(s).__name__}-{type(m).__name__}" for s, m in CASES]
)


of_many_steps = pytest.mark.parametrize(
    ("sampler", "model"),
    [case for case in CASES if case[0].takes_steps],
    ids=[f"{type(s).__name__}-{type(m).__name__}" for s, m in CASES if s.takes_steps],
)
every_sampler = pytest.mark.parametrize("sampler", [cls() for cls in SAMPLERS], ids=lambda s: type(s).__name__)


def test_the_family_is_found():
    """And there is a model for each: `models_for` goes by the annotation, which tells flow maps and posteriors apart."""
    assert {Ancestral, FlowMap, OfMeans, ProbabilityFlow, ReverseSDE} <= set(SAMPLERS)
    assert {sampler for sampler, _ in CASES} == {cls() for cls in SAMPLERS}
    assert len(members(fewstep.models, ModelConfig)) > len(models(FlowMap())) > 0


@every_sampler
def test_a_model_of_another_kind_is_refused(sampler):
    """With a `UserError`, past the test run's check of types, which would come first."""
    call = inspect.unwrap(type(sampler).__call__)
    wanted = typing.get_type_hints(type(sampler).__call__)["model"]
    others = [model for model in (*models_for(_any_model), EXACT) if not isinstance(model, wanted)]
    assert others
    for model in others:
        with pytest.raises(UserError, match=f"{type(sampler).__name__} draws from a {wanted.__name__}"):
            call(sampler, model, normals(6, *model.item_shape, seed=0), generator(1))


def _any_model(model: Model):
    """For `models_for`: every model there is."""


@every_sampler
def test_there_and_back_through_its_configuration(sampler):
    """As a saved model keeps it."""
    assert from_config(to_config(sampler), trust_code=False) == sampler
    more = sampler.with_steps(3 if sampler.takes_steps else 1)
    assert from_config(to_config(more), trust_code=False) == more


@of_many_steps
def test_another_number_of_steps_is_another_cost_and_nothing_else(sampler, model):
    """The cost grows by the same amount with each step; without numbers the sampler is as it was."""
    assert sampler.with_steps() == sampler
    assert sampler.with_steps(3).with_steps(5) == sampler.with_steps(5)
    assert type(sampler.with_steps(3)) is type(sampler)
    noise, costs = normals(4, *model.item_shape, seed=0, dtype=torch.float32), []
    for steps in (1, 2, 3):
        with EvaluationCounter(model) as counter:
            sampler.with_steps(steps)(model, noise, generator(1))
        assert counter.items == 4 * counter.calls
        costs.append(counter.calls)
    assert costs[0] == 1
    assert costs[2] - costs[1] == costs[1] - costs[0] > 0
    with pytest.raises(UserError):
        sampler.with_steps(0)


def test_one_step_is_one_step():
    """It costs one evaluation whatever the budget, and no other number can be asked for."""
    (sampler,) = [s for s in (cls() for cls in SAMPLERS) if not s.takes_steps]
    assert sampler == OneStep()
    assert sampler.with_nfe(8) == sampler == sampler.with_steps(1) == sampler.with_steps(None, 1)
    assert step_counts(sampler) == {"steps": 1, "flow_steps": 1}
    for changes in ((2, None), (None, 4)):
        with pytest.raises(UserError, match="OneStep has no"):
            sampler.with_steps(*changes)


@every_case
def test_samples_are_finite_items_without_a_graph(sampler, model):
    noise = normals(6, *model.item_shape, seed=0, dtype=torch.float32)
    x_0 = sampler(model, noise, generator(1))
    assert x_0.shape == noise.shape
    assert x_0.dtype == noise.dtype
    assert x_0.isfinite().all()
    assert not x_0.requires_grad


@every_case
def test_the_seed_and_the_noise_decide(sampler, model):
    noise, other = (normals(6, *model.item_shape, seed=seed, dtype=torch.float32) for seed in (0, 1))
    x_0 = sampler(model, noise, generator(1))
    assert torch.equal(x_0, sampler(model, noise, generator(1)))
    assert not torch.equal(x_0, sampler(model, other, generator(1)))


@pytest.mark.parametrize("model", models(FlowMap()), ids=lambda m: type(m).__name__)
def test_of_a_flow_map_the_noise_alone_decides(model):
    """An ancestral sampler sees its generator, in a posterior of the same kind of network."""
    noise = normals(6, *model.item_shape, seed=0, dtype=torch.float32)
    assert torch.equal(FlowMap(3)(model, noise, generator(1)), FlowMap(3)(model, noise, generator(2)))
    assert torch.equal(FlowMap(3)(model, noise), FlowMap(3)(model, noise, generator(2)))
    exact = normals(6, *EXACT.item_shape, seed=0, dtype=torch.float32)
    assert not torch.equal(Ancestral(3)(EXACT, exact, generator(1)), Ancestral(3)(EXACT, exact, generator(2)))


@every_case
def test_an_item_with_its_own_generator_does_not_see_the_batch(sampler, model):
    def samples(n, first=0):
        sources = item_generators(n, seed=2, first=first)
        return sampler(model, normal((n, *model.item_shape), sources, like=torch.empty(())), sources)

    whole = samples(64)
    for i in (0, 13, 63):
        assert_close(samples(1, first=i)[0], whole[i], rtol=1e-4, atol=1e-4)
        assert not torch.equal(whole[i], whole[i - 1])


@every_case
def test_the_global_stream_is_left_alone(sampler, model):
    before = torch.get_rng_state()
    sampler(model, normals(6, *model.item_shape, seed=0, dtype=torch.float32), generator(1))
    assert torch.equal(torch.get_rng_state(), before)
