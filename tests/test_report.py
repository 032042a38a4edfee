"""The page about a run: one file with its pictures inside, and the pictures themselves."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep import pictures
from fewstep.datasets import Arrays, Digits, Ring
from fewstep.evaluation import EvaluationPlan, evaluate
from fewstep.models import DenoiserConfig
from fewstep.networks import MLPConfig
from fewstep.objectives import Denoising
from fewstep.pretrained import load
from fewstep.recipe import Recipe
from fewstep.recipes import find_recipe
from fewstep.report import _neighbours, write_report
from fewstep.samplers import Ancestral
from fewstep.training import TrainingOptions, train

NETWORK = MLPConfig(width=16, depth=1)


def foreign_references(page: str) -> list[str]:
    """Whatever would make a browser fetch something."""
    attributes = re.findall(r"(?:src|href|srcset|action|poster)\s*=\s*['\"]?([^'\" >]+)", page, re.IGNORECASE)
    found = [value for value in attributes if not value.startswith(("data:", "#"))]
    return found + re.findall(r"https?://\S+|@import|url\(|<script|<link|<iframe", page, re.IGNORECASE)


def images(page: str) -> list[Image.Image]:
    """The embedded pictures, decoded."""
    encoded = re.findall(r"src='data:image/png;base64,([^']*)'", page)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in encoded]


def trained(folder: Path, recipe: Recipe) -> Path:
    train(recipe, TrainingOptions(out=folder, device="cpu", quiet=True))
    return folder


@pytest.fixture(scope="module")
def ring_run(tmp_path_factory) -> Path:
    recipe = find_recipe("ring-stmd")
    recipe = replace(recipe, model=replace(recipe.model, network=NETWORK), steps=4, batch_size=8)
    return trained(tmp_path_factory.mktemp("ring"), replace(recipe, description="a <b>bold</b> & 'small' run"))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory) -> Path:
    recipe = Recipe(
        name="tiny",
        description="a denoiser of digits",
        dataset=Digits(),
        model=DenoiserConfig(network=NETWORK),
        objective=Denoising(),
        sampler=Ancestral(2),
        steps=3,
        batch_size=8,
    )
    return trained(tmp_path_factory.mktemp("digits"), recipe)


def test_a_page_of_points(ring_run):
    path = write_report(ring_run, steps=(1, 2), n=9)
    assert path == ring_run / "report.html"
    page = path.read_text()
    assert foreign_references(page) == []
    assert len(images(page)) == 6  # two numbers of steps, the default sampler, data, draws, curves
    assert "<b>bold</b>" not in page
    assert "&lt;b&gt;bold" in page
    assert "Measurements" not in page
    result = {"recipe": "ring-stmd", **evaluate(load(ring_run), Ring(), EvaluationPlan(n=30, steps=(2,), pairs=5))}
    (ring_run / "evaluation.json").write_text(json.dumps(result))
    page = write_report(ring_run, steps=(1,), n=9).read_text()
    assert "Measurements" in page
    assert "real vs real" in page
    assert foreign_references(page) == []


def test_a_page_of_images(digits_run):
    page = write_report(digits_run, steps=(1,), n=4).read_text()
    assert foreign_references(page) == []
    found = images(page)
    assert len(found) == 4  # one number of steps, data, nearest training items, curves
    assert "The randomness is kept" not in page
    assert all(min(image.size) > 20 for image in found)


def test_below_each_sample_stands_its_nearest_training_item():
    """Noisy copies of known items, in whole rows: the item itself is below, pixel by pixel."""
    train = Digits().train().x_0[:50]
    samples = train[:37] + 0.02
    picture = np.asarray(Image.open(io.BytesIO(_neighbours(samples, train, columns=16, rows=3))))
    expected = torch.cat([samples[:16], train[:16], samples[16:32], train[16:32]])  # 37 items are two whole rows
    assert np.array_equal(picture, pictures.grid(expected, columns=16, least=560))
    assert _neighbours(samples[:3], train) == pictures.png_bytes(
        pictures.grid(torch.cat([samples[:3], train[:3]]), columns=3, least=560)
    )


def test_a_page_of_draws_of_images(tmp_path):
    """A posterior with draws has a trajectory with several of them; a denoiser has none to show."""
    recipe = find_recipe("digits-stmd")
    recipe = replace(recipe, model=replace(recipe.model, network=NETWORK), steps=2, batch_size=8)
    page = write_report(trained(tmp_path / "run", recipe), steps=(1,), n=4).read_text()
    assert len(images(page)) == 6  # one number of steps, the default sampler, data, neighbours, the trajectory, curves
    assert "The randomness is kept" in page


def test_a_page_of_a_mean_flow(tmp_path):
    """The commands on it are those of its own sampler."""
    recipe = find_recipe("ring-mean-flow")
    recipe = replace(recipe, model=replace(recipe.model, network=NETWORK), steps=2, batch_size=8)
    page = write_report(trained(tmp_path / "run", recipe), steps=(1, 2), n=4).read_text()
    assert "--steps 2 --seed 0" in page
    assert "--flow-steps" not in page
    assert "The randomness is kept" not in page


def test_a_page_of_numbers(tmp_path):
    """Items of one component have no place in a plane, but they have a page."""
    np.savez(tmp_path / "numbers.npz", x_0=np.random.default_rng(0).normal(size=(60, 1)))
    ring = find_recipe("ring-stmd")
    recipe = replace(ring, model=replace(ring.model, network=NETWORK), steps=2, batch_size=8)
    recipe = replace(recipe, dataset=Arrays(path=str(tmp_path / "numbers.npz")))
    page = write_report(trained(tmp_path / "run", recipe), steps=(1,), n=5).read_text()
    assert len(images(page)) == 5


def test_the_check_of_references_can_fail():
    for bad in (
        "<img src='https://example.org/a.png'>",
        "<link rel=stylesheet href=style.css>",
        "<script>1</script>",
        "<style>@import 'x.css'</style>",
        "<img src='picture.png'>",
    ):
        assert foreign_references(bad)
    assert not foreign_references("<img src='data:image/png;base64,AAAA'>")


def test_grey_levels():
    levels = pictures.to_uint8(torch.tensor([-7.0, -1.0, 0.0, 1.0, 3.0]))
    assert levels.tolist() == [0, 0, 128, 255, 255]
    there = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(pictures.to_uint8(there.float() / 127.5 - 1), there)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_every_image_once(channels):
    x = torch.linspace(-0.8, 0.8, 7)[:, None, None, None].expand(7, channels, 5, 5)
    canvas = pictures.grid(x, columns=3, least=1)
    assert canvas.dtype == np.uint8
    assert canvas.ndim == (2 if channels == 1 else 3)
    counts = dict(zip(*np.unique(canvas, return_counts=True), strict=True))
    for level in pictures.to_uint8(x[:, 0, 0, 0]).tolist():
        assert counts.pop(level) == 25 * channels
    assert len(counts) == 1  # the frame
    assert pictures.grid(x, columns=3, least=200).shape[1] >= 200


def test_a_grid_is_read_like_a_page():
    x = torch.tensor([-0.5, 0.0, 0.5])[:, None, None, None].expand(3, 1, 4, 4)
    canvas = pictures.grid(x, columns=2, least=1)
    rows, columns = zip(*((np.argwhere(canvas == level).mean(0)) for level in (64, 128, 191)), strict=True)
    assert rows[0] == rows[1] < rows[2] or columns[0] < columns[1]
    places = [np.argwhere(canvas == level).mean(0) for level in (64, 128, 191)]
    assert places[0][0] == places[1][0] < places[2][0]
    assert places[0][1] == places[2][1] < places[1][1]


def test_files_hold_what_was_put_in():
    image = (np.arange(20 * 30 * 3) % 251).astype(np.uint8).reshape(20, 30, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures.png_bytes(image)))), image)
    array = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32) * 5
    loaded = np.load(io.BytesIO(pictures.npz_bytes({"x_0": array})))
    assert np.array_equal(loaded["x_0"], array)
