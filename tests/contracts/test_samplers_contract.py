"""The laws of every sampler: each file of the family is found, and each sampler draws from the model it is for."""

import pytest
import torch
from torch.testing import assert_close

import fewstep.samplers
from fewstep.draws import item_generators, normal
from fewstep.models import MixturePosterior, PosteriorModel
from fewstep.samplers import Ancestral, Sampler
from problems import SCHEDULE, generator, members, models_for, normals, ring

SAMPLERS = members(fewstep.samplers, Sampler)
EXACT = MixturePosterior(ring(), SCHEDULE)


def models(sampler):
    """Small networks of every kind that the sampler takes and, where it takes posteriors, the exact one."""
    found = models_for(type(sampler).__call__, dtype=torch.float32)
    return [*found, EXACT] if any(isinstance(model, PosteriorModel) for model in found) else found


CASES = [(sampler, model) for sampler in (cls() for cls in SAMPLERS) for model in models(sampler)]
every_case = pytest.mark.parametrize(
    ("sampler", "model"), CASES, ids=[f"{type(s).__name__}-{type(m).__name__}" for s, m in CASES]
)


def test_the_family_is_found():
    assert Ancestral in SAMPLERS


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
