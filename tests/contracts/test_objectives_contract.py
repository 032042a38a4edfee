"""The laws of every objective: each file of the family is found, and each objective meets the model it is for."""

import tempfile
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import fewstep.objectives
from fewstep.configuration import from_config, to_config
from fewstep.draws import Shard
from fewstep.models import Denoiser, PosteriorFlow
from fewstep.objectives import (
    STMD,
    ConsistencyTraining,
    Denoising,
    Distillation,
    EnergyScoreObjective,
    GuidedDrifting,
    MeanFlowObjective,
    Objective,
    RewardGradient,
    STMDDrifting,
)
from fewstep.pretrained import save_pretrained
from fewstep.rewards import Linear
from fewstep.scaling import GaussianScaling
from fewstep.training.loop import LossModule
from problems import (
    SCHEDULE,
    TINY_MLP,
    generator,
    generators,
    gradients,
    members,
    models_for,
    normals,
    randomise,
    seeded,
)

TEACHERS = tempfile.TemporaryDirectory()


def taught() -> Distillation:
    """Distillation from a small denoiser in general position."""
    folder = Path(TEACHERS.name) / "denoiser"
    if not folder.exists():
        with seeded(1):
            network = randomise(TINY_MLP.build((3,), inputs=1, times=1), 1)
        save_pretrained(Denoiser(network, SCHEDULE, GaussianScaling(), (3,)), folder)
    return Distillation(teacher=str(folder))


def steered() -> RewardGradient:
    """Fine-tuning to a linear reward, near a small model in general position."""
    folder = Path(TEACHERS.name) / "reference"
    if not folder.exists():
        with seeded(2):
            network = randomise(TINY_MLP.build((3,), inputs=2, times=3), 2)
        save_pretrained(PosteriorFlow(network, SCHEDULE, GaussianScaling(), (3,)), folder)
    return RewardGradient(reward=Linear(slope=(1.0, -2.0, 0.5)), reference=str(folder))


OBJECTIVES = members(fewstep.objectives, Objective)
MADE = {
    Distillation: taught,  # members that need arguments
    RewardGradient: steered,
    GuidedDrifting: lambda: GuidedDrifting(groups=8, draws=3),  # as many groups as the batch has items
    STMDDrifting: lambda: STMDDrifting(share=1.0, draws=4),
}
MORE = [STMD(peers=True), EnergyScoreObjective(peers=True)]  # the loss of an item sees the batch
BATCH = {"x_0": normals(8, 3, seed=0)}
every_objective = pytest.mark.parametrize(
    "objective",
    [*(MADE.get(cls, cls)() for cls in OBJECTIVES), *MORE],
    ids=lambda o: type(o).__name__ + " of the batch" * o.sees_the_batch,
)


def model_of(objective):
    inner = vars(objective).get("objective", objective)  # a wrapper trains what it wraps
    (model,) = models_for(type(inner).__call__)  # an objective trains one kind of model
    return model


def test_the_family_is_found():
    """The abstract ones are no members."""
    assert {STMD, Denoising, MeanFlowObjective, ConsistencyTraining, EnergyScoreObjective} <= set(OBJECTIVES)
    assert fewstep.objectives.base.AverageVelocityObjective not in OBJECTIVES


@every_objective
def test_there_and_back_through_its_configuration(objective):
    """As a checkpoint keeps it."""
    assert from_config(to_config(objective), trust_code=False) == objective


@every_objective
def test_what_comes_with_the_data_in_training_changes_no_shape(objective):
    """The loop adds the share of the training that is done, the same for all items; an objective may use it."""
    model = model_of(objective)
    for progress in (0.0, 0.4, 0.99):
        batch = BATCH | {"progress": torch.full((8,), progress), "labels": torch.zeros(8, dtype=torch.int64)}
        whole = objective(model, batch, generators(*range(8)))
        assert whole.per_sample.shape == (8,)
        assert whole.per_sample.isfinite().all()
        for i in (0, 3, 7) if not objective.sees_the_batch else ():
            alone = objective(model, {name: x[i : i + 1] for name, x in batch.items()}, generators(i))
            assert_close(alone.per_sample[0], whole.per_sample[i], rtol=1e-9, atol=1e-12)


@every_objective
def test_losses_are_per_item_and_finite_and_squares_not_negative(objective):
    loss = objective(model_of(objective), BATCH, generator(0))
    for numbers in (loss.per_sample, loss.raw, *loss.logs.values()):
        assert numbers.shape == (8,)
        assert numbers.isfinite().all()
    assert objective.num_times == (0 if loss.times is None else loss.times.shape[1])
    if loss.times is not None:
        assert loss.times.shape == (8, objective.num_times)
        assert ((loss.times >= 0) & (loss.times <= 1)).all()
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
def test_what_training_calls_has_the_same_loss_at_the_start(objective):
    """An objective with weights of its own becomes a module, which starts as the objective without them."""
    model = model_of(objective)
    losses = LossModule(model, objective).double()
    batch = BATCH | {"progress": torch.zeros(8)}
    per_sample, *_ = losses(batch, generator(0))
    assert_close(per_sample, objective(model, batch, generator(0)).per_sample)
    with pytest.raises(AssertionError):
        assert_close(per_sample, objective(model, batch, generator(1)).per_sample)


@every_objective
def test_the_seed_decides(objective):
    model = model_of(objective)
    losses = [objective(model, BATCH, generator(seed)).per_sample for seed in (0, 0, 1)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@every_objective
def test_the_loss_of_an_item_does_not_see_the_batch(objective):
    """Unless it says so, and then it does."""
    model = model_of(objective)
    whole = objective(model, BATCH, generators(*range(8)))
    if objective.sees_the_batch:
        other = {"x_0": torch.cat([BATCH["x_0"][:1], normals(7, 3, seed=1)])}
        seen = objective(model, other, generators(*range(8)))
        assert abs(seen.per_sample[0] - whole.per_sample[0]) > 1e-9
        return
    for i in range(8):
        alone = objective(model, {"x_0": BATCH["x_0"][i : i + 1]}, generators(i))
        assert_close(alone.per_sample[0], whole.per_sample[i], rtol=1e-9, atol=1e-12)
        assert_close(alone.raw[0], whole.raw[i], rtol=1e-9, atol=1e-12)
        assert abs(alone.raw[0] - whole.raw[i - 1]) > 1e-6


@every_objective
def test_two_processes_see_the_halves_of_one_batch(objective):
    if objective.sees_the_batch:
        pytest.skip("each process sees its own part of the batch")
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
