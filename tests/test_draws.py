"""Randomness as an argument: one stream, one per item, or one shared by processes."""

import pytest
import torch

from fewstep.draws import Shard, categorical, integers, item_generators, normal, normal_like, split, uniform
from problems import doubles, generator, generators
from stats import accepts, chi_square, ks, rejects, z_tests

LIKE = torch.empty((), dtype=torch.float64)
LOG_WEIGHTS = doubles(0.1, 0.0, 0.6, 0.3).log() + 1000  # an index of weight zero; a normaliser far from 1
DRAWS = {
    "normal": lambda source, n: normal((n, 3), source, like=LIKE),
    "normal_like": lambda source, n: normal_like(torch.zeros(n, 2), source, (4,)).transpose(0, 1),
    "uniform": lambda source, n: uniform((5, n), source, axis=1, like=LIKE).T,
    "integers": lambda source, n: integers(1000, (n, 7), source),
    "categorical": lambda source, n: categorical(LOG_WEIGHTS.expand(n, 4), source, (9,)).T,
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())


@every_draw
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(draw):
    assert torch.equal(draw(generator(3), 6), draw(generator(3), 6))
    assert not torch.equal(draw(generator(3), 6), draw(generator(4), 6))


@every_draw
def test_an_item_with_its_own_generator_does_not_see_the_batch(draw):
    batch = draw(generators(*range(8)), 8)
    for i in (0, 5, 7):
        assert torch.equal(draw(generators(i), 1)[0], batch[i])


@every_draw
def test_processes_see_equal_slices_of_the_joint_draw(draw):
    """Two processes, two draws in a row: the streams stay in step."""
    joint_source = generator(0)
    joint = [draw(joint_source, 6), draw(joint_source, 6)]
    for rank in (0, 1):
        shard = Shard(generator=generator(0), rank=rank, count=2)
        for whole in joint:
            part = draw(shard, 3)
            assert torch.equal(part, whole[3 * rank : 3 * rank + 3])
            assert not torch.equal(part, whole[3 - 3 * rank : 6 - 3 * rank])


def test_laws():
    source = generator(1)
    n = 40_000
    assert accepts(ks(normal((n,), source, like=LIKE), "norm"))
    assert rejects(ks(normal((n,), source, like=LIKE) * 1.2**0.5, "norm"))
    assert accepts(ks(uniform((n,), source, like=LIKE), "uniform"))
    assert rejects(ks(uniform((n,), source, like=LIKE) ** 1.1, "uniform"))
    assert accepts(chi_square(integers(5, (n,), source), torch.full((5,), 0.2)))
    assert rejects(chi_square(integers(5, (n,), source), torch.tensor([0.18, 0.22, 0.2, 0.2, 0.2])))


def test_categorical_frequencies_of_each_item():
    """Two items with different weights; the weights of one are rejected for the other."""
    probabilities = torch.stack([doubles(0.1, 0.0, 0.6, 0.3), doubles(0.4, 0.4, 0.2, 0.0)])
    draws = categorical(probabilities.log(), generator(2), (20_000,))
    for i in (0, 1):
        assert accepts(chi_square(draws[:, i], probabilities[i]))
        assert rejects(chi_square(draws[:, i], probabilities[1 - i]))


@pytest.mark.parametrize(("number", "index"), [(0.0, 1), (1 - 2**-53, 2)])
def test_an_index_of_weight_zero_is_not_drawn_at_the_ends(number, index, monkeypatch):
    """The least and the greatest uniform number find the first and the last index that has a weight."""
    monkeypatch.setattr(
        "fewstep.draws.uniform", lambda shape, *_, like, **__: torch.full(shape, number, dtype=like.dtype)
    )
    assert (categorical(doubles(0.0, 0.3, 0.7, 0.0).log().expand(3, 4), None) == index).all()


def test_generators_of_neighbouring_items_are_independent():
    """The first numbers of consecutive items are normal and uncorrelated; correlated ones are rejected."""
    x = normal((20_000,), item_generators(20_000, seed=7), like=LIKE)
    assert accepts(ks(x, "norm"))
    assert accepts(z_tests(x[1:] * x[:-1], doubles(0.0)))
    mixed = x[1:] + 0.1 * x[:-1]
    assert rejects(z_tests(mixed[1:] * mixed[:-1], doubles(0.0)))


def test_item_generators_continue_a_run_and_differ_between_seeds():
    whole = normal((6,), item_generators(6, seed=5), like=LIKE)
    assert torch.equal(normal((4,), item_generators(4, seed=5, first=2), like=LIKE), whole[2:])
    assert not torch.isin(normal((6,), item_generators(6, seed=6), like=LIKE), whole).any()


def test_split_serves_chunks():
    one, many = generator(0), generators(0, 1, 2, 3, 4)
    assert split(one, [2, 3]) == [one, one]
    assert split(many, [2, 3]) == [many[:2], many[2:]]


def test_the_global_stream_is_used_only_without_a_generator():
    torch.manual_seed(0)
    normal((3,), generator(0), like=LIKE)
    first = normal((3,), None, like=LIKE)
    torch.manual_seed(0)
    assert torch.equal(first, normal((3,), None, like=LIKE))


def test_the_number_of_generators_is_that_of_the_items():
    with pytest.raises(ValueError, match="one generator per item"):
        normal((3, 2), generators(0, 1), like=LIKE)
