"""A model on the disk and back gives the same samples, and a sample does not depend on its neighbours."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch

from fewstep import Ancestral, GaussianMixture, MixturePosterior, VPSchedule, load, sample, save_pretrained
from fewstep.configuration import to_config
from fewstep.errors import UserError
from fewstep.files import CHECKSUMS, write_folder
from fewstep.models import DenoiserConfig, PosteriorFlowConfig
from fewstep.models.base import Model
from fewstep.networks import MLPConfig
from fewstep.scaling import GaussianScaling
from fewstep.schedule import CosineSchedule
from fewstep.times import LogSNRGrid
from problems import doubles, normals, randomise, seeded, t2

NETWORK = MLPConfig(width=16, depth=1)
CONFIGS = {
    "posterior flow": PosteriorFlowConfig(network=NETWORK),
    "posterior flow, scaled": PosteriorFlowConfig(network=NETWORK, scaling=GaussianScaling()),
    "denoiser": DenoiserConfig(network=NETWORK, schedule=CosineSchedule()),
}
SAMPLER = Ancestral(3, flow_steps=2, grid=LogSNRGrid())


def tiny(name: str = "posterior flow, scaled", item_shape: tuple[int, ...] = (2,)) -> Model:
    with seeded(0):
        model = randomise(CONFIGS[name].build(item_shape))
    model.fit(normals(50, *item_shape, seed=1, dtype=torch.float32) + 0.5)
    model.sampler = SAMPLER
    return model


def edit(folder: Path, name: str, change) -> None:
    """Change a JSON file of a saved model and make its checksums anew."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != CHECKSUMS}
    data = json.loads(files[name])
    change(data)
    write_folder(folder, files | {name: json.dumps(data).encode()})


@pytest.fixture
def folder(tmp_path) -> Path:
    save_pretrained(tiny(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("item_shape", [(2,), (1, 4, 4)], ids=["vectors", "images"])
@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_gives_the_same_bits(tmp_path, name, item_shape):
    model = tiny(name, item_shape)
    save_pretrained(model, str(tmp_path / "model"))
    loaded = load(str(tmp_path / "model"))
    assert torch.equal(sample(model, 5, seed=3), sample(loaded, 5, seed=3))
    assert loaded.schedule == model.schedule
    assert loaded.sampler == SAMPLER
    assert loaded.item_shape == item_shape
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_a_loaded_model_is_for_use(folder):
    model = load(folder)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_another_sampler_can_be_saved(tmp_path):
    save_pretrained(tiny(), tmp_path / "model", sampler=Ancestral(7))
    assert load(tmp_path / "model").sampler == Ancestral(7)


def test_a_model_without_a_sampler(tmp_path):
    model = tiny()
    model.sampler = None
    save_pretrained(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.sampler is None
    assert torch.equal(sample(loaded, 2, steps=2), sample(loaded, 2, sampler=Ancestral(2)))
    assert not torch.equal(sample(loaded, 2), sample(loaded, 2, sampler=Ancestral(2)))


def test_a_model_without_a_configuration_cannot_be_saved(tmp_path):
    with pytest.raises(UserError):
        save_pretrained(MixturePosterior(t2(), VPSchedule()), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_there_is_no_pickle(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["checksums.json", "config.json", "model.safetensors"]
    for path in folder.glob("*.json"):
        json.loads(path.read_text())
    weights = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + length])
    assert {"data_mean", "data_std"} < set(header)


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    """Saving replaces a saved model; a folder with other things in it is somebody's work."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("chapter 1")
    with pytest.raises((UserError, OSError)):
        save_pretrained(tiny(), tmp_path / "work")
    assert (tmp_path / "work" / "thesis.tex").read_text() == "chapter 1"


@pytest.mark.parametrize(("field", "value"), [("beta_max", 19.9), ("beta_min", 0.11)])
def test_another_schedule_under_the_same_name(folder, field, value):
    edit(folder, "config.json", lambda config: config["model"]["schedule"].update({field: value}))
    with pytest.raises(UserError, match=r"alpha\(1\)"):
        load(folder)


def test_an_edit_that_changes_nothing_is_no_error(folder):
    edit(folder, "config.json", lambda config: config.update(fewstep="another version"))
    assert torch.equal(sample(load(folder), 2), sample(tiny(), 2))


def test_damaged_and_missing_files(folder, tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nothing"):
        load(tmp_path / "nothing")
    for name in ("config.json", "model.safetensors", CHECKSUMS):
        broken = tmp_path / f"without {name}"
        shutil.copytree(folder, broken)
        (broken / name).unlink()
        with pytest.raises(UserError, match=f"{name} is missing"):
            load(broken)
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (broken / name).write_bytes(bytes(content))
        with pytest.raises(UserError, match="damaged"):
            load(broken)


def test_foreign_code_is_not_run(folder):
    edit(folder, "config.json", lambda config: config["sampler"].update({"class": "subprocess.Popen"}))
    with pytest.raises(UserError, match="trust_code"):
        load(folder)


def test_a_run_is_its_newest_checkpoint(tmp_path):
    for step, steps in ((9, 2), (10, 5), (8, 3)):
        save_pretrained(tiny(), tmp_path / "checkpoints" / f"step-{step:09d}", sampler=Ancestral(steps))
    (tmp_path / "checkpoints" / ".partial-step-000000011").mkdir()
    assert load(tmp_path).sampler == Ancestral(5)
    assert load(tmp_path / "checkpoints" / "step-000000009").sampler == Ancestral(2)


@pytest.mark.parametrize("exact", [True, False], ids=["exact posterior", "network"])
def test_an_item_does_not_see_the_others(exact):
    model = MixturePosterior(t2(), VPSchedule()) if exact else tiny()
    model.sampler = Ancestral(3, flow_steps=1 if exact else 2)
    whole = sample(model, 9, seed=4)
    assert whole.shape == (9, 2)
    for other in (
        sample(model, 9, seed=4, batch_size=1),
        sample(model, 9, seed=4, batch_size=4),
        torch.cat([sample(model, 5, seed=4), sample(model, 4, seed=4, first=5)]),
        sample(model, 20, seed=4)[:9],
    ):
        torch.testing.assert_close(other, whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(sample(model, 9, seed=4), whole)
    shifted = sample(model, 9, seed=4, first=1)
    assert not torch.isclose(shifted, whole, atol=1e-3).all(1).any()
    assert not torch.isclose(sample(model, 9, seed=5), whole, atol=1e-3).all(1).any()


def test_sampling_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    sample(tiny(), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_replace_those_of_the_sampler():
    model = tiny()
    assert torch.equal(sample(model, 4, steps=5), sample(model, 4, sampler=Ancestral(5, 2, grid=LogSNRGrid())))
    assert torch.equal(sample(model, 4, flow_steps=1), sample(model, 4, sampler=Ancestral(3, 1, grid=LogSNRGrid())))
    assert not torch.equal(sample(model, 4, steps=5), sample(model, 4))


def test_progress_counts_to_n():
    done: list[int] = []
    sample(tiny(), 7, batch_size=3, progress=done.append)
    assert done == [3, 6, 7]


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": -1}, {"batch_size": 0}, {"steps": 0}, {"flow_steps": 0}])
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(UserError, match="from 1 up"):
        sample(tiny(), **({"n": 2} | wrong))


def test_a_constant_law_is_sampled_exactly():
    """One narrow component: the samples lie within its width, whatever the number of steps."""
    mixture = GaussianMixture(doubles(1.0), doubles(3, -1)[None], 1e-6 * torch.eye(2).double()[None])
    model = MixturePosterior(mixture, VPSchedule())
    for steps in (1, 4):
        x_0 = sample(model, 20, sampler=Ancestral(steps))
        assert (x_0 - torch.tensor([3.0, -1.0])).abs().max() < 1e-2


def test_configurations_hold_no_tensors():
    assert json.loads(json.dumps(to_config(tiny().config))) == to_config(tiny().config)
