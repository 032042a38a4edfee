"""The recipes that come with the library: their names, their models, and that pairs compare like with like."""

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch

from fewstep.datasets import CIFAR10, MNIST, T2, Checkerboard, Correlated, Digits, Moons, Ring, SwissRoll
from fewstep.drift_regression import DriftRegression
from fewstep.encoders import Masked
from fewstep.errors import UserError
from fewstep.models import ConsistencyMap, Denoiser, Generator, MeanFlow, PosteriorFlow
from fewstep.networks import UNetConfig
from fewstep.networks.masked_autoencoder import MaskedAutoencoder
from fewstep.objectives import (
    STMD,
    ConsistencyTraining,
    Denoising,
    Drifting,
    EnergyScoreObjective,
    GuidedDrifting,
    MeanFlowObjective,
    Semigroup,
    STMDDrifting,
    WeightedSum,
)
from fewstep.recipe import Optimiser, Recipe
from fewstep.recipes import all_recipes, find_recipe
from fewstep.samplers import Ancestral, FlowMap, OneStep
from fewstep.scaling import EpsilonScaling, GaussianScaling, IdentityScaling
from problems import generator, normals, seeded

RECIPES = all_recipes()
DATA = {
    "ring": Ring(),
    "t2": T2(),
    "correlated": Correlated(),
    "digits": Digits(),
    "mnist": MNIST(),
    "mnist-small": MNIST(),
}
METHODS = {
    "stmd": (PosteriorFlow, WeightedSum, Ancestral),
    "stmd-paper": (PosteriorFlow, STMD, Ancestral),
    "stmd-plain": (PosteriorFlow, STMD, Ancestral),
    "stmd-scored": (PosteriorFlow, WeightedSum, Ancestral),
    "distributional": (PosteriorFlow, EnergyScoreObjective, Ancestral),
    "stmd-drifting": (PosteriorFlow, STMDDrifting, Ancestral),
    "ddpm": (Denoiser, Denoising, Ancestral),
    "mean-flow": (MeanFlow, MeanFlowObjective, FlowMap),
    "consistency": (ConsistencyMap, ConsistencyTraining, Ancestral),
}
for drifting in ("drifting", "drifting-gaussian", "drifting-features", "drifting-features-gaussian"):
    METHODS[drifting] = (Generator, Drifting, OneStep)  # they have a budget of their own
METHODS["drifting-guided"] = (Generator, GuidedDrifting, OneStep)
RIVALS = [method for method, (model, *_) in METHODS.items() if model is not Generator]
OF_DRIFTING_ALONE = {"swissroll": SwissRoll(), "checkerboard": Checkerboard(), "moons": Moons(), "cifar10": CIFAR10()}
OF_THE_METHOD = {"name", "description", "model", "objective", "sampler"}  # the rest is the same for every method


@pytest.fixture(autouse=True)
def _no_data(monkeypatch, tmp_path):
    """No recipe may read or fetch data before it is trained."""
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "no data here"))
    monkeypatch.setattr(Masked, "train", _untrained)
    monkeypatch.setattr(Masked, "key", lambda encoder, data: "untrained")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def _untrained(encoder, data=None):
    with seeded(0):
        return MaskedAutoencoder(encoder.dataset.item_shape, encoder.width, encoder.blocks)


def test_names():
    assert set(RECIPES) >= {f"{data}-{method}" for data in DATA for method in RIVALS}
    for data in ("swissroll", "checkerboard", "moons", "ring", "digits", "mnist", "cifar10"):
        assert {f"{data}-drifting", f"{data}-drifting-gaussian"} <= set(RECIPES)
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


def method_of(name):
    """The data set and the method in a name."""
    data = max((data for data in [*DATA, *OF_DRIFTING_ALONE] if name.startswith(f"{data}-")), key=len)
    method = name.removeprefix(f"{data}-")
    assert method in METHODS
    return data, method


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_fits_learns_and_samples(name):
    """A loss and a gradient for the items of its data set, and finite items from its own sampler."""
    recipe, (_, method) = RECIPES[name], method_of(name)
    shape = recipe.dataset.item_shape
    with seeded(0):
        model = recipe.model.build(shape)
    x_0 = 0.5 * normals(20, *shape, seed=0, dtype=torch.float32) + 0.1
    model.fit(x_0)
    assert (type(model), type(recipe.objective), type(recipe.sampler)) == METHODS[method]
    batch = {"x_0": x_0[:4], "progress": torch.zeros(4), "labels": torch.arange(4)}
    loss = recipe.objective(model, batch, generator(1))
    assert loss.per_sample.shape == ((recipe.objective.groups,) if method == "drifting-guided" else (4,))
    assert loss.per_sample.isfinite().all()
    loss.per_sample.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    samples = recipe.sampler(model, normals(2, *shape, seed=2, dtype=torch.float32), generator(3))
    assert samples.shape == (2, *shape)
    assert samples.isfinite().all()


def differing(one, other):
    """The fields of a recipe in which two differ."""
    return {field.name for field in fields(Recipe) if getattr(one, field.name) != getattr(other, field.name)}


@pytest.mark.parametrize("data", DATA)
def test_equal_terms(data):
    """Recipes of one data set differ in the method only: not in data, network, optimiser, steps, batch, average or seed."""
    recipes = [r for name, r in RECIPES.items() if method_of(name)[0] == data and method_of(name)[1] in RIVALS]
    assert len(recipes) >= len(RIVALS)
    assert recipes[0].dataset == DATA[data]
    for recipe in recipes:
        assert differing(recipe, recipes[0]) <= OF_THE_METHOD, recipe.name
        assert recipe.model.network == recipes[0].model.network
        assert recipe.model.network.num_classes == 0
    for wrong in ({"steps": 7}, {"batch_size": 7}, {"seed": 7}, {"ema_decay": 0.5}, {"optimiser": Optimiser(lr=0.7)}):
        assert not differing(replace(recipes[1], **wrong), recipes[0]) <= OF_THE_METHOD


@pytest.mark.parametrize("data", DATA)
def test_where_one_method_is_scaled_its_rivals_are(data):
    """And there is one diffusion. DDPM and Mean Flow of MNIST are as published: on the noise, and on the data."""
    models = {method: RECIPES[f"{data}-{method}"].model for method in RIVALS}
    assert len({models[method].schedule for method in RIVALS if method != "mean-flow"}) == 1
    assert models["stmd-paper"].scaling == IdentityScaling()
    assert not models["stmd-paper"].gaussian_skip
    for method in ("stmd", "stmd-plain", "stmd-scored", "distributional", "consistency"):
        assert models[method].scaling == GaussianScaling()
    published = data == "mnist"
    assert models["ddpm"].scaling == (EpsilonScaling() if published else GaussianScaling())
    assert models["mean-flow"].standardise == (not published)


@pytest.mark.parametrize("data", DATA)
def test_both_mean_flows_have_the_same_options(data):
    """Law of the times, tangent and weight are STMD's; the law of tau is STMD's own."""
    twin = "stmd-paper" if data == "mnist" else "stmd-plain"
    stmd, mean_flow = (RECIPES[f"{data}-{method}"].objective for method in (twin, "mean-flow"))
    for field in fields(MeanFlowObjective):
        assert getattr(stmd, field.name) == getattr(mean_flow, field.name), field.name


@pytest.mark.parametrize("data", DATA)
def test_the_default_trains_every_part_of_the_flow_map(data):
    """The velocity at r = t, longer steps by the semigroup law, the corner by the energy score; no adaptive weight."""
    velocity, semigroup, score = RECIPES[f"{data}-stmd"].objective.terms
    assert isinstance(velocity, STMD)
    assert (velocity.frac_r_below_t, velocity.adaptive_power) == (0, 0)
    assert isinstance(semigroup, Semigroup)
    assert isinstance(score, EnergyScoreObjective)
    assert velocity.peers
    assert score.peers


@pytest.mark.parametrize("data", DATA)
def test_the_papers_recipe_is_the_papers(data):
    """Eq. 22 with the adaptive weight of eq. 73, on the data themselves."""
    recipe = RECIPES[f"{data}-stmd-paper"]
    assert recipe.objective == STMD()
    assert recipe.objective.adaptive_power == 0.75
    assert recipe.objective.adaptive_constant == 1e-3
    assert recipe.objective.tangent == "conditional"
    assert not recipe.objective.peers
    assert recipe.model.scaling == IdentityScaling()


def test_mnist_is_as_in_the_paper():
    """Tables 1 and 2."""
    recipe = RECIPES["mnist-stmd-paper"]
    assert recipe.optimiser.lr == 5e-4
    assert recipe.optimiser.decay == "constant"
    assert recipe.optimiser.weight_decay == 0
    assert recipe.steps == 150_000
    assert recipe.batch_size == 64
    assert recipe.ema_decay == 0.9995
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


def test_a_consistency_map_samples_by_renoising():
    """Its end is neither a mean nor a draw, so that no bridge goes with it."""
    for name, recipe in RECIPES.items():
        assert isinstance(recipe, Recipe)
        if "consistency" in name:
            assert recipe.sampler.kernel == 0
        elif isinstance(recipe.sampler, Ancestral):
            assert recipe.sampler.kernel == "bridge"


@pytest.mark.parametrize("name", ["digits-drifting", "digits-drifting-gaussian", "digits-drifting-guided"])
def test_the_field_in_pixels_spreads_a_new_generators_samples(name):
    """With the affinity floor of the authors' code it draws them together, to one image (docs/drifting.md)."""
    data, model = Digits().train().up_to(128)["x_0"].flatten(1), find_recipe("digits-drifting").model
    with torch.no_grad(), seeded(0):
        x = model.build((1, 8, 8))(torch.randn(128, 1, 8, 8)).flatten(1)

    def spreading(regression: DriftRegression, floor: float) -> list[float]:
        field, found = replace(regression.field, floor=floor), []
        rho = field.pair(x, data).mean_distance()
        for temperature in regression.temperatures:
            kernel = replace(field.kernel, bandwidth=field.kernel.bandwidth * temperature * rho)
            drift = replace(field, kernel=kernel)(x, data)
            found.append(torch.cosine_similarity(x - x.mean(0), drift - drift.mean(0), dim=1).mean().item())
        return found

    regression = find_recipe(name).objective.regression
    assert find_recipe("digits-drifting-features").objective.regression.field.floor == 1e-6
    assert min(spreading(regression, regression.field.floor)) > 0.02
    assert min(spreading(regression, 1e-6)) < -0.1


@pytest.mark.parametrize("name", ["ring-drifting", "ring-drifting-gaussian"])
def test_the_modes_of_the_ring_want_algorithm_a1_at_several_shares_of_the_distance(name):
    """One scale, or rows alone, leave them with wrong weights (docs/log.md)."""
    regression = find_recipe(name).objective.regression
    assert regression.field.normalisation == "both"
    assert regression.relative
    assert regression.equalise
    assert regression.temperatures == (0.02, 0.05, 0.2)
