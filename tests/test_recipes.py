"""The recipes that come with the library: their names, their models, and that pairs compare like with like."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from fewstep.datasets import MNIST, Digits, Ring
from fewstep.errors import UserError
from fewstep.models import Denoiser, DenoiserConfig, PosteriorFlow, PosteriorFlowConfig
from fewstep.networks import UNetConfig
from fewstep.objectives import STMD, Denoising
from fewstep.recipe import Optimiser, Recipe
from fewstep.recipes import all_recipes, find_recipe
from fewstep.samplers import Ancestral
from fewstep.scaling import EpsilonScaling, IdentityScaling
from problems import generator, normals, seeded

RECIPES = all_recipes()
DATA = {"ring": Ring(), "digits": Digits(), "mnist": MNIST()}


@pytest.fixture(autouse=True)
def _no_data(monkeypatch, tmp_path):
    """No recipe may read or fetch data before it is trained."""
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "no data here"))


def test_names():
    assert set(RECIPES) >= {f"{data}-{method}" for data in DATA for method in ("stmd", "ddpm")}
    assert list(RECIPES) == sorted(RECIPES)
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert find_recipe(name) is recipe
        assert recipe.description
        assert "\n" not in recipe.description


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(UserError, match="no recipe is called 'ring'") as error:
        find_recipe("ring")
    assert all(name in str(error.value) for name in RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_its_model(name):
    """A posterior of the items of its data set, and a loss for each of them."""
    recipe = RECIPES[name]
    shape = recipe.dataset.item_shape
    with seeded(0):
        model = recipe.model.build(shape)
    model.fit(normals(20, *shape, seed=0, dtype=torch.float32))
    x_tau = normals(2, *shape, seed=1, dtype=torch.float32)
    with torch.no_grad():
        x_0 = model(x_tau, 0.5).sample((3,), generator=generator(2))
    assert x_0.shape == (3, 2, *shape)
    assert x_0.isfinite().all()
    denoises = "ddpm" in name
    assert type(model) is (Denoiser if denoises else PosteriorFlow)
    assert type(recipe.objective) is (Denoising if denoises else STMD)


@pytest.mark.parametrize("data", DATA)
def test_stmd_and_ddpm_differ_in_the_method_only(data):
    stmd, ddpm = RECIPES[f"{data}-stmd"], RECIPES[f"{data}-ddpm"]
    assert stmd.dataset == ddpm.dataset == DATA[data]
    assert stmd.model.network == ddpm.model.network
    assert stmd.model.schedule == ddpm.model.schedule
    for field in ("optimiser", "steps", "batch_size", "ema_decay", "ema_warmup", "seed"):
        assert getattr(stmd, field) == getattr(ddpm, field), field
    assert isinstance(ddpm.model, DenoiserConfig)
    assert isinstance(stmd.model, PosteriorFlowConfig)
    # the published DDPM predicts the noise; where STMD is scaled, so is its rival
    assert ddpm.model.scaling == (EpsilonScaling() if data == "mnist" else stmd.model.scaling)


def test_mnist_is_as_in_the_paper():
    """Tables 1 and 2."""
    recipe = RECIPES["mnist-stmd"]
    assert recipe.optimiser.lr == 5e-4
    assert recipe.optimiser.decay == "constant"
    assert recipe.optimiser.weight_decay == 0
    assert recipe.steps == 150_000
    assert recipe.batch_size == 64
    assert recipe.ema_decay == 0.9995
    assert recipe.objective.adaptive_power == 0.75
    assert recipe.model.scaling == IdentityScaling()
    network = recipe.model.network
    assert isinstance(network, UNetConfig)
    assert network.block_out_channels == (32, 64, 32)
    assert network.layers_per_block == 1
    with seeded(0):
        model = recipe.model.build((1, 28, 28))
    assert 1.0e6 < sum(parameter.numel() for parameter in model.parameters()) < 1.25e6


def test_a_recipe_is_a_value():
    recipe = RECIPES["ring-stmd"]
    with pytest.raises(FrozenInstanceError):
        recipe.steps = 3
    variant = replace(recipe, steps=3)
    assert variant.steps == 3
    assert recipe.steps != 3
    assert hash(recipe) == hash(replace(variant, steps=recipe.steps))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}, {"ema_decay": 1.0}, {"ema_decay": -0.1}])
def test_budgets_out_of_range(wrong):
    with pytest.raises(UserError, match="a recipe needs"):
        replace(RECIPES["ring-stmd"], **wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.0}, {"lr": -1.0}, {"lr": float("nan")}, {"warmup_steps": -1}, {"clip_norm": 0.0}, {"beta_2": 1.0}],
)
def test_optimisers_out_of_range(wrong):
    with pytest.raises(UserError, match=r"an optimiser needs|clip_norm is above 0|beta_1 and beta_2 lie"):
        Optimiser(**wrong)


def test_the_default_sampler_is_ancestral():
    assert all(isinstance(recipe.sampler, Ancestral) for recipe in RECIPES.values())
    assert all(isinstance(recipe, Recipe) for recipe in RECIPES.values())
