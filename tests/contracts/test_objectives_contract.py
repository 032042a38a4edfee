"""The laws of every objective: each file of the family is found, and each objective meets the model it is for."""

import pytest
import torch
from torch.testing import assert_close

import fewstep.objectives
from fewstep.configuration import from_config, to_config
from fewstep.draws import Shard
from fewstep.objectives import STMD, ConsistencyTraining, Denoising, MeanFlowObjective, Objective
from problems import generator, generators, gradients, members, models_for, normals

OBJECTIVES = members(fewstep.objectives, Objective)
FIELD_OF_THE_BATCH = "drift"  # objectives in files of this name use a statistic of the batch
BATCH = {"x_0": normals(8, 3, seed=0)}
every_objective = pytest.mark.parametrize("objective", [cls() for cls in OBJECTIVES], ids=lambda o: type(o).__name__)


def model_of(objective):
    (model,) = models_for(type(objective).__call__)  # an objective trains one kind of model
    return model


def test_the_family_is_found():
    """The abstract ones are no members."""
    assert {STMD, Denoising, MeanFlowObjective, ConsistencyTraining} <= set(OBJECTIVES)
    assert fewstep.objectives.base.AverageVelocityObjective not in OBJECTIVES


@every_objective
def test_there_and_back_through_its_configuration(objective):
    """As a checkpoint keeps it."""
    assert from_config(to_config(objective), trust_code=False) == objective


@every_objective
def test_what_comes_with_the_data_in_training_changes_no_shape(objective):
    """The loop adds the share of the training that is done; an objective may use it, item by item."""
    batch = BATCH | {"progress": torch.linspace(0, 1, 8).double(), "labels": torch.zeros(8, dtype=torch.int64)}
    model = model_of(objective)
    whole = objective(model, batch, generators(*range(8)))
    assert whole.per_sample.shape == (8,)
    assert whole.per_sample.isfinite().all()
    for i in (0, 3, 7):
        alone = objective(model, {name: x[i : i + 1] for name, x in batch.items()}, generators(i))
        assert_close(alone.per_sample[0], whole.per_sample[i], rtol=1e-9, atol=1e-12)


@every_objective
def test_losses_are_per_item_finite_and_not_negative(objective):
    loss = objective(model_of(objective), BATCH, generator(0))
    for numbers in (loss.per_sample, loss.raw, *loss.logs.values()):
        assert numbers.shape == (8,)
        assert numbers.isfinite().all()
    assert (loss.raw >= 0).all()
    assert not loss.raw.requires_grad
    assert not any(numbers.requires_grad for numbers in loss.logs.values())


@every_objective
def test_every_parameter_has_a_finite_gradient(objective):
    model = model_of(objective)
    objective(model, BATCH, generator(0)).per_sample.mean().backward()
    found = gradients(model)
    assert found.isfinite().all()
    assert found.norm() > 0


@every_objective
def test_the_seed_decides(objective):
    model = model_of(objective)
    losses = [objective(model, BATCH, generator(seed)).per_sample for seed in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@every_objective
def test_the_loss_of_an_item_does_not_see_the_batch(objective):
    if FIELD_OF_THE_BATCH in type(objective).__module__:
        pytest.skip("its field is a statistic of the batch")
    model = model_of(objective)
    whole = objective(model, BATCH, generators(*range(8)))
    for i in range(8):
        alone = objective(model, {"x_0": BATCH["x_0"][i : i + 1]}, generators(i))
        assert_close(alone.per_sample[0], whole.per_sample[i], rtol=1e-9, atol=1e-12)
        assert_close(alone.raw[0], whole.raw[i], rtol=1e-9, atol=1e-12)
        assert abs(alone.raw[0] - whole.raw[i - 1]) > 1e-6


@every_objective
def test_two_processes_see_the_halves_of_one_batch(objective):
    if FIELD_OF_THE_BATCH in type(objective).__module__:
        pytest.skip("its field is a statistic of the batch")
    model = model_of(objective)
    whole = objective(model, BATCH, generator(0)).per_sample
    for rank, half in enumerate((slice(0, 4), slice(4, 8))):
        source = Shard(generator=generator(0), rank=rank, count=2)
        part = objective(model, {"x_0": BATCH["x_0"][half]}, source).per_sample
        assert_close(part, whole[half], rtol=1e-9, atol=1e-12)


@every_objective
def test_the_global_stream_is_left_alone(objective):
    before = torch.get_rng_state()
    objective(model_of(objective), BATCH, generator(0))
    assert torch.equal(torch.get_rng_state(), before)
