"""A checkpoint in parts and back: the same bytes, and nothing is put together from damaged parts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from fewstep.cli.checkpoint import parse_size
from fewstep.errors import UserError
from fewstep.files import CHECKSUMS, write_folder
from fewstep.networks import MLPConfig
from fewstep.pretrained import newest_checkpoint
from fewstep.recipes import find_recipe
from fewstep.training.checkpoint import TrainingState, save_checkpoint
from fewstep.training.packing import MANIFEST, pack, unpack
from problems import generator, seeded


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of one checkpoint, of a model that was never trained."""
    recipe = find_recipe("ring-stmd")
    recipe = replace(recipe, model=replace(recipe.model, network=MLPConfig(width=16, depth=1)))
    with seeded(0):
        model = recipe.model.build((2,))
    optimiser = torch.optim.AdamW(model.parameters())
    sum(parameter.square().sum() for parameter in model.parameters()).backward()
    optimiser.step()
    state = TrainingState(model=model, ema=AveragedModel(model), optimiser=optimiser, generator=generator(0), step=3)
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder, state, recipe)
    return folder


@pytest.fixture
def parts(run, tmp_path) -> Path:
    pack(run, tmp_path / "parts", 8000)
    return tmp_path / "parts"


@pytest.mark.parametrize("size", [5000, 8192, 10**9])
def test_the_same_bytes_come_back(run, tmp_path, size):
    paths = pack(run, tmp_path / "parts", size)
    assert set(paths) == set((tmp_path / "parts").iterdir())
    assert max(path.stat().st_size for path in paths) <= size
    back = unpack(tmp_path / "parts", tmp_path / "other run")
    assert back == newest_checkpoint(tmp_path / "other run")
    assert back.name == newest_checkpoint(run).name
    assert contents(back) == contents(newest_checkpoint(run))


def test_as_few_parts_as_fit(run, tmp_path):
    total = sum(map(len, contents(newest_checkpoint(run)).values()))
    small = len(pack(run, tmp_path / "small", 8000))
    assert total / 8000 < small < 2 * total / 8000 + 6
    assert len(pack(run, tmp_path / "large", 10**9)) == 3  # one part, the manifest, the checksums


def test_packing_refuses(run, tmp_path):
    with pytest.raises(UserError, match="too small"):
        pack(run, tmp_path / "parts", 1023)
    with pytest.raises(UserError, match="larger"):
        pack(run, tmp_path / "parts", 1024)  # the list of the parts is longer than a part
    with pytest.raises(UserError, match="no checkpoint"):
        pack(tmp_path / "nothing", tmp_path / "parts", 8000)
    assert not (tmp_path / "parts").exists()
    (tmp_path / "parts").mkdir()
    with pytest.raises(UserError, match="exists"):
        pack(run, tmp_path / "parts", 8000)


def test_a_damaged_checkpoint_is_not_packed(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    weights = newest_checkpoint(copy) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match="damaged"):
        pack(copy, tmp_path / "parts", 8000)


def test_every_part_is_checked(parts, tmp_path):
    for path in sorted(parts.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(UserError, match="damaged"):
            unpack(parts, tmp_path / "run")
        path.unlink()
        with pytest.raises(UserError, match="missing"):
            unpack(parts, tmp_path / "run")
        path.write_bytes(whole)
    assert not (tmp_path / "run").exists()
    assert unpack(parts, tmp_path / "run").exists()


def test_a_checkpoint_is_not_replaced(parts, tmp_path):
    unpack(parts, tmp_path / "run")
    with pytest.raises(UserError, match="exists already"):
        unpack(parts, tmp_path / "run")


@pytest.mark.parametrize("name", ["../../../outside", "step-1/../../../../outside", "ABSOLUTE"])
def test_parts_do_not_write_outside_the_run(parts, tmp_path, name):
    """The manifest comes with the parts, from wherever they come."""
    outside = tmp_path / "outside"
    files = {path.name: path.read_bytes() for path in parts.iterdir() if path.name != CHECKSUMS}
    manifest = json.loads(files[MANIFEST]) | {"checkpoint": name.replace("ABSOLUTE", str(outside))}
    write_folder(parts, files | {MANIFEST: json.dumps(manifest).encode()})
    with pytest.raises(UserError):
        unpack(parts, tmp_path / "a" / "run")
    assert not outside.exists()
    assert not (tmp_path / "a" / "outside").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        ("500kB", 500_000),
        ("16MiB", 2**24),
        ("1GB", 10**9),
        ("16mib", 2**24),
        ("2 KiB", 2048),
        ("3B", 3),
        ("1GiB", 2**30),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "1.5MiB", "-1kB", "0", "0MiB", "16 MiBs", "16mbi", "1e3", "16MiB "])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="is not a size"):
        parse_size(text)
