"""Fine-tuning: what is weighted, that nothing is lost, and (slow) that T2 reaches its tilted law."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fewstep
from fewstep.datasets import Arrays, TensorExamples
from fewstep.draws import normal_like, seed_of_stream
from fewstep.errors import UserError
from fewstep.finetuning import FinetunePlan, finetune
from fewstep.metrics import EnergyDistance
from fewstep.objectives import RewardGradient
from fewstep.objectives.base import noised
from fewstep.pretrained import load
from fewstep.rewards import Linear, Reward
from fewstep.samplers import Ancestral
from fewstep.scaling import GaussianScaling
from fewstep.steering import rewards_of
from fewstep.steering.pools import Pool, placed, strongest, weigh
from fewstep.times import Uniform
from fewstep.training import TrainingOptions, train
from fewstep.training.checkpoint import stored_recipe
from problems import doubles, generator, normals, t2
from stats import accepts, chi_square, rejects
from tiny import tiny_recipe

SLOPE = doubles(0.5, -1.0)
REWARD = Linear(slope=(0.5, -1.0))
CALLS = {"number": 0, "fails_at": 10**9}


@dataclass(frozen=True, kw_only=True)
class Fails(Reward):
    """A linear reward that is NaN from a call on."""

    def __call__(self, x_0: Tensor) -> Tensor:
        CALLS["number"] += 1
        return x_0[:, 0] * (torch.nan if CALLS["number"] >= CALLS["fails_at"] else 1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small trained model."""
    folder = tmp_path_factory.mktemp("base") / "run"
    train(tiny_recipe(), TrainingOptions(out=folder, quiet=True, device="cpu"))
    return folder


def options(out, **changes):
    return TrainingOptions(out=out, quiet=True, device="cpu", **changes)


SMALL = FinetunePlan(pool=400, steps=8, batch_size=16)


# --- weighted data


def test_weighted_items_are_drawn_by_their_weights():
    items = TensorExamples(
        name="four", item_shape=(1,), x_0=torch.arange(4.0)[:, None], weights=doubles(0.1, 0.0, 0.6, 0.3)
    )
    batch = items.batch(5000, generator(0))["x_0"].long()
    assert accepts(chi_square(batch, items.weights))
    assert rejects(chi_square(batch, doubles(0.25, 0.25, 0.25, 0.25)))
    alone = [items.batch(1, g)["x_0"].item() for g in (generator(i) for i in range(200))]
    together = items.batch(200, [generator(i) for i in range(200)])["x_0"].flatten().tolist()
    assert alone == together
    many = replace(items, x_0=torch.arange(1000.0)[:, None], weights=torch.arange(1000.0))
    taken = many.take(1000)["x_0"]
    assert taken.mean() == pytest.approx(2 * 999 / 3, rel=0.01)  # systematically: hardly any noise
    assert not torch.equal(taken, taken.sort(0).values)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (doubles(1, 2), "one number for each"),
        (doubles(1, -1, 1), "not negative"),
        (doubles(0, 0, 0), "not all 0"),
        (doubles(1, math.nan, 1), "finite"),
        (torch.ones(3, dtype=torch.int64), "one number for each"),
    ],
)
def test_bad_weights_are_refused(weights, message, tmp_path):
    with pytest.raises(UserError, match=message):
        TensorExamples(name="three", item_shape=(1,), x_0=torch.zeros(3, 1), weights=weights)


def test_weights_of_a_file(tmp_path):
    path = tmp_path / "weighted.npz"
    np.savez(path, x_0=np.arange(100, dtype=np.float32)[:, None], weights=np.arange(100) / 100.0)
    data = Arrays(path=str(path))
    found, test = data.train(), data.test()
    assert_close(found.weights, found.x_0[:, 0].double() / 100)
    assert_close(test.weights, test.x_0[:, 0].double() / 100)
    np.savez(path, x_0=np.zeros((3, 1), np.float32), weights=np.ones(3, dtype=np.int64))
    with pytest.raises(UserError, match="weights are int64"):
        data.train()


# --- pools


def test_a_pool_is_weighted_to_the_tilt():
    """Of 50 000 draws of T2: the tilt's mean, log Z and KL; at strength 1/2 those of half the reward."""
    x = t2().sample((50_000,), generator(0))
    pool = Pool(x_0=x, g=x @ SLOPE, strength=0.0, log_z=0.0)
    for strength in (1.0, 0.5):
        law, log_z = t2().tilt(strength * SLOPE)
        found = weigh([pool], strength)
        assert ((found.weights[:, None] * x).sum(0) - law.mean).abs().max() < 0.05
        assert found.log_z == pytest.approx(log_z.item(), abs=0.02)
        assert found.kl == pytest.approx((strength * law.mean @ SLOPE - log_z).item(), abs=0.03)
        assert found.ess < 50_000


def test_pools_of_two_rounds_are_one_law():
    """The second is of the tilt at strength .4; both together weigh to the whole, and better than the first alone."""
    first = t2().sample((4000,), generator(0))
    middle, log_z_middle = t2().tilt(0.4 * SLOPE)
    second = middle.sample((4000,), generator(1))
    pools = [
        Pool(x_0=first, g=first @ SLOPE, strength=0.0, log_z=0.0),
        Pool(x_0=second, g=second @ SLOPE, strength=0.4, log_z=log_z_middle.item()),
    ]
    law, log_z = t2().tilt(SLOPE)
    found = weigh(pools, 1.0)
    assert ((found.weights[:, None] * found.x_0).sum(0) - law.mean).abs().max() < 0.1
    assert found.log_z == pytest.approx(log_z.item(), abs=0.1)
    assert found.ess > weigh(pools[:1], 1.0).ess
    wrong = weigh([pools[0], replace_pool(pools[1], strength=0.0)], 1.0)  # as if it had been drawn from the reference
    assert ((wrong.weights[:, None] * wrong.x_0).sum(0) - law.mean).abs().max() > 0.2


def test_a_pool_is_placed_where_it_is():
    """Drawn from the reference though the model was to be at .4: its strength is about 0; drawn from .4, it is .4."""
    first = t2().sample((8000,), generator(0))
    old = Pool(x_0=first, g=first @ SLOPE, strength=0.0, log_z=0.0)
    for strength in (0.0, 0.4):
        law, log_z = t2().tilt(strength * SLOPE)
        x = law.sample((8000,), generator(3))
        found = placed([old], Pool(x_0=x, g=x @ SLOPE, strength=0.9, log_z=9.0))
        assert found.strength == pytest.approx(strength, abs=0.04)
        assert found.log_z == pytest.approx(log_z.item(), abs=0.03)


def replace_pool(pool, **changes):
    return Pool(**(vars(pool) | changes))


def test_the_strength_keeps_to_the_floor():
    x = 4 * normals(1000, seed=0)
    pool = Pool(x_0=x[:, None], g=x, strength=0.0, log_z=0.0)
    found = strongest([pool], 100.0)
    assert found.ess == pytest.approx(100, rel=1e-3)
    assert 0 < found.strength < 1
    assert strongest([pool], 1.0).strength == 1
    flat = Pool(x_0=x[:, None], g=torch.full((1000,), 7.0).double(), strength=0.0, log_z=0.0)
    same = strongest([flat], 1000 * (1 - 1e-9))
    assert same.strength == 1
    assert same.kl == pytest.approx(0, abs=1e-9)
    assert_close(same.weights, torch.full((1000,), 1e-3).double())


# --- the whole


@pytest.mark.parametrize(
    "changes", [{}, {"source": "model"}, {"method": "gradient"}], ids=["data", "model", "gradient"]
)
def test_fine_tuning_leaves_a_run_and_keeps_the_reference(run, tmp_path, changes):
    out = tmp_path / "tuned"
    found = finetune(run, REWARD, replace(SMALL, **changes), options(out))
    assert found.reason == "finished"
    before, after, kept = (load(folder) for folder in (run, out, out / "finetuning" / "reference"))
    assert all(torch.equal(a, b) for a, b in zip(before.state_dict().values(), kept.state_dict().values(), strict=True))
    assert not all(
        torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    )
    assert stored_recipe(out).start_from == str(out / "finetuning" / "reference")
    assert_close(after.data_mean, before.data_mean)  # the model's units are those that it was trained in
    with pytest.raises(UserError, match="not empty"):
        finetune(run, REWARD, SMALL, options(out))
    if changes:
        return
    (row,) = found.rounds
    g = rewards_of(REWARD, stored_recipe(run).dataset.train().up_to(400)["x_0"])
    assert row["mean_reward"] == pytest.approx((g.softmax(0) * g).sum().item())


def test_no_steps_change_nothing(run, tmp_path):
    """A learning rate of about 0: the run starts at the weights of the reference, not at fresh ones."""
    finetune(run, REWARD, replace(SMALL, lr=1e-30), options(tmp_path / "tuned"))
    a, b = (fewstep.sample(load(folder), 5) for folder in (run, tmp_path / "tuned"))
    assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes", [{"source": "model", "floor": 0.9, "rounds": 3}, {"method": "gradient"}])
def test_a_stopped_fine_tuning_goes_on_bit_for_bit(run, tmp_path, changes):
    plan = replace(SMALL, **changes)
    finetune(run, REWARD, plan, options(tmp_path / "whole"))
    assert finetune(run, REWARD, plan, options(tmp_path / "parts", stop_after=0.0)).reason == "time"
    for _ in range(60):
        found = finetune(run, REWARD, plan, options(tmp_path / "parts", stop_after=0.0, resume=True))
        if found.reason == "finished":
            break
    assert found.reason == "finished"
    whole, parts = (load(tmp_path / name).state_dict().values() for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_where_the_floor_holds_it_says_how_far_it_came(run, tmp_path):
    sharp = Linear(slope=(30.0, 0.0))
    found = finetune(run, sharp, replace(SMALL, floor=0.5), options(tmp_path / "data"))
    assert found.rounds[-1]["strength"] < 1
    assert "the tilt ended at strength" in found.notes[0]
    rounds = finetune(
        run, sharp, replace(SMALL, floor=0.5, source="model", rounds=2), options(tmp_path / "model")
    ).rounds
    assert len(rounds) == 2
    assert rounds[0]["strength"] < rounds[1]["strength"]


def test_a_reward_that_fails_in_the_middle_loses_nothing(run, tmp_path):
    """NaN in the sixth step: an error, a checkpoint of the fifth, and going on is as if nothing had been."""
    plan = replace(SMALL, method="gradient")
    CALLS.update(number=0, fails_at=10**9)
    finetune(run, Fails(), plan, options(tmp_path / "whole"))
    CALLS.update(number=0, fails_at=7)  # asked once before the training
    with pytest.raises(UserError, match="NaN"):
        finetune(run, Fails(), plan, options(tmp_path / "parts"))
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step-000000005"]
    CALLS.update(number=0, fails_at=10**9)
    finetune(run, Fails(), plan, options(tmp_path / "parts", resume=True))
    whole, parts = (load(tmp_path / name).state_dict().values() for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("method", ["tilt", "gradient"])
def test_a_bad_reward_is_refused_before_anything_is_written(run, tmp_path, method):
    CALLS.update(number=0, fails_at=0)
    with pytest.raises(UserError, match="NaN"):
        finetune(run, Fails(), replace(SMALL, method=method), options(tmp_path / "tuned"))
    assert not (tmp_path / "tuned").exists()
    CALLS.update(number=0, fails_at=10**9)


def test_a_model_of_another_kind_is_refused(run, tmp_path):
    other = tiny_recipe(model=replace(tiny_recipe().model, network=replace(tiny_recipe().model.network, width=8)))
    with pytest.raises(UserError, match="holds another model"):
        train(replace(other, start_from=str(run)), options(tmp_path / "other"))
    denoiser = fewstep.recipes.find_recipe("ring-ddpm")
    small = replace(denoiser.model, network=tiny_recipe().model.network)
    train(tiny_recipe(model=small, objective=denoiser.objective, steps=1), options(tmp_path / "ddpm"))
    with pytest.raises(UserError, match="is for a PosteriorFlow"):
        finetune(tmp_path / "ddpm", REWARD, SMALL, options(tmp_path / "tuned"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"floor": 0.0}, "floor"),
        ({"pool": 10}, "no law to learn"),
        ({"rounds": 0}, "rounds"),
        ({"anchor": -1.0}, "anchor"),
    ],
)
def test_plans_out_of_range(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)


# --- by the gradient


def test_the_anchor_is_at_rest_at_the_reference(run):
    """Without a reward the loss of the reference is 0 and has no slope; moved away, it is half the squared move in deviations."""
    model = load(run).requires_grad_(True)
    objective = RewardGradient(reward=Linear(slope=(0.0, 0.0)), reference=str(run), anchor=2.0)
    batch = {"x_0": normals(16, 2, seed=0, dtype=torch.float32)}
    loss = objective(model, batch, generator(0))
    assert_close(loss.per_sample, torch.zeros(16), atol=1e-6, rtol=0)
    loss.per_sample.sum().backward()
    assert all(p.grad.abs().max() < 1e-4 for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    moved = objective(model, batch, generator(0))
    assert_close(moved.per_sample, moved.raw)
    assert moved.raw.min() > 0


def test_the_loss_of_the_gradient_is_its_formula(run, tmp_path):
    """`-r / T + anchor / 2 ||G - G_ref||^2 / s^2` written out, with T = 2 and anchor = 3; and the plan's numbers reach it."""
    model, reference = load(run).requires_grad_(True), load(run)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    objective = RewardGradient(reward=REWARD, reference=str(run), temperature=2.0, anchor=3.0)
    x_0, source = normals(16, 2, seed=0, dtype=torch.float32), generator(5)
    loss = objective(model, {"x_0": x_0}, generator(5))
    x_tau, tau = noised(x_0, Uniform(), model.schedule, source)
    z = normal_like(x_0, source)
    drawn, old = (m(x_tau, tau).sample(noise=z) for m in (model, reference))
    _, scale = GaussianScaling().coefficients(x_tau, tau, model.schedule, model.data_mean, model.data_std)
    moved = (drawn - old).square().sum(1) / scale.square()
    assert_close(loss.per_sample, -REWARD(drawn) / 2 + 1.5 * moved, rtol=1e-4, atol=1e-5)
    finetune(run, REWARD, replace(SMALL, method="gradient", temperature=2.0, anchor=3.0), options(tmp_path / "tuned"))
    stored = stored_recipe(tmp_path / "tuned").objective
    assert (stored.temperature, stored.anchor) == (2.0, 3.0)


def test_a_later_pool_is_drawn_from_the_round_before(run, tmp_path):
    """And not from the reference; its strength is looked for, not assumed."""
    plan = replace(SMALL, floor=0.9, source="model", rounds=2, lr=5e-3)
    finetune(run, Linear(slope=(3.0, 0.0)), plan, options(tmp_path / "tuned"))
    folder = tmp_path / "tuned" / "finetuning"
    with np.load(folder / "round-2" / "pool.npz") as pool:
        x_0 = torch.from_numpy(pool["x_0"])
    seed = seed_of_stream(plan.seed, 2)
    assert_close(x_0, fewstep.sample(load(folder / "round-1" / "run"), 400, seed=seed))
    assert (x_0 - fewstep.sample(load(run), 400, seed=seed)).abs().max() > 1e-3


@dataclass(frozen=True, kw_only=True)
class Steps(Reward):
    """No derivative."""

    def __call__(self, x_0: Tensor) -> Tensor:
        return (x_0[:, 0] > 0).to(x_0)


def test_a_reward_without_a_derivative_is_refused(run, tmp_path):
    with pytest.raises(UserError, match="no derivative"):
        finetune(run, Steps(), replace(SMALL, method="gradient"), options(tmp_path / "tuned"))
    assert finetune(run, Steps(), SMALL, options(tmp_path / "tilted")).reason == "finished"


def test_a_learnt_reward_and_a_temperature(run, tmp_path):
    """A reward with weights of its own is one like others; the pool is weighted by `r / T`."""
    plan = replace(SMALL, temperature=2.0)
    finetune(run, Learnt(), plan, options(tmp_path / "tuned"))
    with np.load(tmp_path / "tuned" / "finetuning" / "round-1" / "pool.npz") as pool:
        assert_close(torch.from_numpy(pool["g"]), torch.from_numpy(pool["x_0"][:, 0]).double() / 2)


@dataclass(frozen=True, kw_only=True)
class Learnt(Reward):
    """A reward whose result has a graph."""

    def __call__(self, x_0: Tensor) -> Tensor:
        return x_0[:, 0] * torch.ones((), requires_grad=True)


@pytest.mark.slow
def test_t2_reaches_its_tilted_law(tmp_path):
    """Trained, then fine-tuned: energy distance to the tilted law at most .01 at N = 1, 4 and 16 (the law itself has .0004)."""
    recipe = fewstep.recipes.find_recipe("t2-stmd")
    train(recipe, options(tmp_path / "t2"))
    finetune(tmp_path / "t2", REWARD, FinetunePlan(pool=50_000, steps=1500), options(tmp_path / "tuned"))
    law, _ = t2().tilt(SLOPE)
    truth = law.sample((10_000,), generator(5))
    for folder, good in ((tmp_path / "t2", False), (tmp_path / "tuned", True)):
        for steps in (1, 4, 16):
            x = fewstep.sample(load(folder), 10_000, sampler=Ancestral(steps=steps), batch_size=10_000)
            assert (EnergyDistance()(x.double(), truth)["energy_distance"] < 0.01) == good
