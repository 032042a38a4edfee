"""The training loop: what a step does, what a checkpoint keeps, and what happens when something goes wrong."""

import errno
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

import fewstep
from fewstep import files
from fewstep.errors import UserError
from fewstep.pretrained import load, newest_checkpoint, save_default_sampler
from fewstep.recipe import Optimiser
from fewstep.recipes import find_recipe
from fewstep.samplers import Ancestral
from fewstep.training import TrainingOptions, train
from fewstep.training.checkpoint import check_recipe, stored_recipe
from fewstep.training.log import BUCKETS, Averages, read_log
from fewstep.training.loop import LossModule, ema_update, learning_rate
from fewstep.training.packing import pack, unpack
from tiny import COUNT, Poisoned, tiny_recipe


def options(out, **changes) -> TrainingOptions:
    return TrainingOptions(out=out, quiet=True, device="cpu", **changes)


def weights(run) -> dict[str, torch.Tensor]:
    """Raw weights, averaged weights, moments and random states of a run's newest checkpoint."""
    folder = newest_checkpoint(run)
    tensors = safetensors.torch.load((folder / "training.safetensors").read_bytes())
    averaged = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    return tensors | {f"ema.{name}": value for name, value in averaged.items()}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different


def test_a_run_stopped_after_every_step_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    recipe = tiny_recipe()
    train(recipe, options(tmp_path / "whole"))
    for step in range(1, recipe.steps + 1):
        outcome = train(recipe, options(tmp_path / "parts", stop_after=0.0, resume=True))
        assert (outcome.step, outcome.reason) == (step, "time" if step < recipe.steps else "finished")
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_another_seed_gives_other_weights(tmp_path):
    train(tiny_recipe(), options(tmp_path / "a"))
    train(tiny_recipe(seed=1), options(tmp_path / "b"))
    with pytest.raises(AssertionError):
        assert_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_the_newest_two_checkpoints_are_kept(tmp_path):
    train(tiny_recipe(), options(tmp_path, checkpoint_every=3))
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000000009", "step-000000012"]


def test_the_loaded_model_has_the_averaged_weights_and_the_measured_data(tmp_path):
    recipe = tiny_recipe()
    train(recipe, options(tmp_path))
    model, stored = fewstep.load(tmp_path), weights(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[f"ema.{name}"])
    assert not torch.equal(stored["weights.network.into.weight"], stored["ema.network.into.weight"])
    assert model.data_std.item() == pytest.approx(1, abs=0.02)  # the ring has unit variance per axis
    assert model.sampler == recipe.sampler
    assert not model.training


def test_a_run_goes_on_elsewhere_in_parts(tmp_path):
    """Packed, unpacked in another folder and resumed there, it ends with the same bits, recipe and log."""
    recipe = tiny_recipe()
    train(recipe, options(tmp_path / "whole", log_every=1))
    for _ in range(5):
        train(recipe, options(tmp_path / "here", stop_after=0.0, resume=True, log_every=1))
    pack(tmp_path / "here", tmp_path / "parts", 5000)
    unpack(tmp_path / "parts", tmp_path / "there")
    assert stored_recipe(tmp_path / "there") == recipe
    train(recipe, options(tmp_path / "there", resume=True, log_every=1))
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "there"))
    assert [line["step"] for line in read_log(tmp_path / "there")] == list(range(1, 13))


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    train(tiny_recipe(), options(tmp_path))
    with pytest.raises(UserError, match=r"already holds a run .*--resume"):
        train(tiny_recipe(), options(tmp_path))


def test_resuming_with_another_recipe_lists_the_differences(tmp_path):
    train(tiny_recipe(), options(tmp_path))
    other = tiny_recipe(batch_size=32, optimiser=Optimiser(lr=3e-3))
    with pytest.raises(UserError, match=r"another recipe .*optimiser.lr: 0.001 -> 0.003"):
        train(other, options(tmp_path, resume=True))


@pytest.mark.parametrize("name", ["training.safetensors", "model.safetensors", "training.json", "checksums.json"])
def test_one_flipped_byte_is_found_and_named(tmp_path, name):
    train(tiny_recipe(), options(tmp_path, checkpoint_every=6))
    path = newest_checkpoint(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path.parent.name}.*damaged"):
        train(tiny_recipe(), options(tmp_path, resume=True))


def test_after_a_damaged_checkpoint_is_deleted_the_run_goes_on_from_the_one_before(tmp_path):
    train(tiny_recipe(), options(tmp_path / "whole"))
    train(tiny_recipe(), options(tmp_path / "run", checkpoint_every=6))
    newest = newest_checkpoint(tmp_path / "run")
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    train(tiny_recipe(), options(tmp_path / "run", resume=True))
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "recipe.json").write_text('{"flour": 500}')
    (tmp_path / "log.jsonl").write_text('{"water": 1}')
    with pytest.raises(UserError, match="not a run of fewstep: choose another --out"):
        train(tiny_recipe(), options(tmp_path, resume=True))
    assert (tmp_path / "recipe.json").read_text() == '{"flour": 500}'


def test_a_full_disk_while_logging_names_the_checkpoint(tmp_path, monkeypatch):
    true_open = Path.open

    def full(self, mode="r", *arguments, **more):
        if self.name == "log.jsonl" and mode == "a" and newest_checkpoint(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return true_open(self, mode, *arguments, **more)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=r"log.jsonl.*No space left.*step-000000003.*--resume"):
        train(tiny_recipe(), options(tmp_path, checkpoint_every=3, log_every=2))


def test_a_full_disk_while_checkpointing_loses_nothing(tmp_path, monkeypatch):
    recipe = tiny_recipe()
    train(recipe, options(tmp_path / "whole"))
    calls = {"n": 0}
    true_write = files._write_flushed

    def write(path, content):
        calls["n"] += 1
        if "checkpoints" in str(path) and calls["n"] > 9:  # in the second checkpoint, behind its first files
            path.write_bytes(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        true_write(path, content)

    monkeypatch.setattr(files, "_write_flushed", write)
    with pytest.raises(UserError, match=r"No space left.*newest whole checkpoint is .*step-000000004.*--resume"):
        train(recipe, options(tmp_path / "run", checkpoint_every=4))
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000004"]
    monkeypatch.undo()
    train(recipe, options(tmp_path / "run", resume=True))
    assert_same_bits(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    COUNT["calls"] = 0
    recipe = tiny_recipe(objective=Poisoned(adaptive_power=0.0, first=5, last=7), steps=8)
    outcome = train(recipe, options(tmp_path / "run", log_every=1))
    assert outcome.skipped == 3
    stored = weights(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in stored.values() if value.is_floating_point())
    assert stored["optimiser.0.step"].item() == 5
    assert stored["ema.n_averaged"].item() == 5
    lines = read_log(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [0, 0, 0, 0, 0, 1, 2, 3]
    assert "loss" not in lines[6]


def test_ten_steps_in_a_row_that_are_not_finite_stop_the_run(tmp_path):
    """No checkpoint is written amid them, because the step that ruined the weights may have been finite."""
    COUNT["calls"] = 0
    recipe = tiny_recipe(objective=Poisoned(adaptive_power=0.0, first=8, last=99), steps=40)
    with pytest.raises(UserError, match=r"10 steps in a row up to step 18 .*last good checkpoint is .*step-000000006"):
        train(recipe, options(tmp_path, checkpoint_every=6))
    assert all(value.isfinite().all() for value in weights(tmp_path).values() if value.is_floating_point())


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    recipe = tiny_recipe()
    train(recipe, options(tmp_path, checkpoint_every=6, log_every=1))
    newest = newest_checkpoint(tmp_path)
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # cut off by a crash
    train(recipe, options(tmp_path, resume=True, log_every=1))
    assert [line["step"] for line in read_log(tmp_path)] == list(range(1, 13))


def test_raw_loss_is_sorted_by_bucket():
    averages = Averages()
    bucket = torch.tensor([0.0, 0.0, 0.1, 0.25, 0.3, 0.6, 1.0])
    averages.add({"loss": 2.0}, torch.arange(7.0), {"bucket": bucket})
    line = averages.line()
    assert line["loss"] == 2
    assert line["raw"] == 3
    assert line["raw_by_bucket"] == dict(zip(BUCKETS, [0.5, 2.5, 4.0, 5.0, 6.0], strict=True))


def test_bf16_trains_with_float32_weights(tmp_path):
    outcome = train(tiny_recipe(), options(tmp_path, precision="bf16"))
    assert outcome.reason == "finished"
    assert outcome.skipped == 0
    assert weights(tmp_path)["weights.network.into.weight"].dtype == torch.float32


def test_bf16_goes_through_the_unet_and_gives_nearly_the_gradient_of_float32():
    """Also through its derivative in forward mode, whose tangents autocast must not leave in another precision."""
    recipe = find_recipe("digits-stmd")
    torch.manual_seed(0)
    model = recipe.model.build((1, 8, 8))
    batch = recipe.dataset.train().batch(32, torch.Generator().manual_seed(0))
    gradients = {}
    for precision in ("no", "bf16"):
        per_sample, _, _ = LossModule(model, recipe.objective, precision)(batch, torch.Generator().manual_seed(1))
        found = torch.autograd.grad(per_sample.mean(), [p for p in model.parameters() if p.requires_grad])
        gradients[precision] = torch.cat([g.flatten() for g in found])
    assert gradients["bf16"].dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(gradients["no"], gradients["bf16"], dim=0)
    assert 0.99 < cosine < 1 - 1e-9  # and it is not float32 after all


def test_tensorboard_gets_the_log(tmp_path):
    train(tiny_recipe(), options(tmp_path, tensorboard=True, log_every=6))
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_tensorboard_bears_a_line_without_a_loss(tmp_path):
    COUNT["calls"] = 0
    recipe = tiny_recipe(objective=Poisoned(adaptive_power=0.0, first=2, last=3), steps=6)
    outcome = train(recipe, options(tmp_path, tensorboard=True, log_every=2))
    assert outcome.skipped == 2
    assert "loss" not in read_log(tmp_path)[1]


def test_warm_up_and_cosine():
    config = Optimiser(lr=2.0, warmup_steps=10, decay="cosine")
    assert learning_rate(config, 0, 100) == pytest.approx(0.2)
    assert learning_rate(config, 50, 100) == pytest.approx(1.0)
    assert learning_rate(config, 100, 100) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(Optimiser(lr=2.0), 99, 100) == 2.0


@pytest.mark.parametrize("warmup", [False, True])
def test_averaged_weights_follow_the_recursion(warmup):
    values, average = [3.0, -1.0, 2.0, 7.0], [torch.zeros(1, dtype=torch.float64)]
    expected, update = 0.0, ema_update(0.9, warmup)
    for k, value in enumerate(values):
        update(average, [torch.tensor([value], dtype=torch.float64)], torch.tensor(k))
        d = min(0.9, (1 + k) / (10 + k)) if warmup else 0.9
        expected = d * expected + (1 - d) * value
    assert average[0].item() == pytest.approx(expected, rel=1e-12)


def test_training_learns(tmp_path):
    """Two hundred steps take a tenth off the loss of the instantaneous velocity; it ends near its variance."""
    recipe = tiny_recipe(steps=200, batch_size=256)
    network = replace(recipe.model.network, width=64, depth=2)
    train(replace(recipe, model=replace(recipe.model, network=network)), options(tmp_path, log_every=25))
    lines = read_log(tmp_path)
    assert lines[-1]["raw_by_bucket"]["0"] < 0.9 * lines[0]["raw_by_bucket"]["0"]
    assert math.isfinite(lines[-1]["grad_norm"])
    assert json.loads((tmp_path / "recipe.json").read_text())["steps"] == 200


def test_a_field_that_is_newer_than_the_run_has_its_default(tmp_path):
    """A run from before a recipe had the field goes on; one in which it had another value does not."""
    recipe = tiny_recipe(steps=4)
    train(recipe, options(tmp_path, stop_after=0.0))
    stored = json.loads((tmp_path / "recipe.json").read_text())
    del stored["model"]["gaussian_skip"]
    check_recipe(stored, recipe, tmp_path)
    skipping = replace(recipe, model=replace(recipe.model, gaussian_skip=True))
    with pytest.raises(UserError, match="gaussian_skip: False -> True"):
        check_recipe(stored, skipping, tmp_path)


def test_a_default_sampler_that_was_stored_with_the_model_outlives_more_training(tmp_path):
    recipe = tiny_recipe(steps=4)
    first = train(recipe, options(tmp_path, stop_after=0.0))
    assert first.step < 4
    save_default_sampler(first.checkpoint, Ancestral(7, kernel=0.5))
    last = train(recipe, options(tmp_path, resume=True))
    assert last.step == 4
    assert load(tmp_path).sampler == Ancestral(7, kernel=0.5)
