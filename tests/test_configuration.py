"""Configurations: there and back, and no name runs code that was not asked for."""

import json
import sys
from dataclasses import dataclass, replace

import pytest
from torch import Tensor

from fewstep.configuration import differences, from_config, to_config
from fewstep.errors import UserError
from fewstep.networks import MLPConfig
from fewstep.recipes import all_recipes
from fewstep.samplers import Ancestral
from fewstep.schedule import Schedule
from fewstep.times import CustomGrid, Grid, UniformGrid

RECIPES = all_recipes()


@dataclass(frozen=True)
class Foreign(Grid):
    """Somebody's own grid of times."""

    width: int = 3
    inner: Ancestral = Ancestral()

    def __call__(self, steps: int, schedule: Schedule) -> Tensor:
        return UniformGrid()(steps, schedule)


@dataclass(frozen=True)
class Holder:
    """Two fields of any kind."""

    a: object = None
    b: object = None


def there_and_back(value: object, trust_code: bool = False) -> object:
    return from_config(json.loads(json.dumps(to_config(value))), trust_code)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_comes_back_equal(name):
    assert there_and_back(RECIPES[name]) == RECIPES[name]
    assert there_and_back(replace(RECIPES[name], seed=1)) != RECIPES[name]


@pytest.mark.parametrize(
    "value",
    [
        Ancestral(3, grid=CustomGrid(times=(1.0, 0.3, 0.1, 0.0)), kernel=0.5),
        Ancestral(2, flow_steps=2, flow_grid=(1.0, 0.25, 0.0), max_batch=7),
        MLPConfig(width=16, depth=1),
        (1, 2.5, "three", None, True),
        0.1 + 0.2,
        None,
    ],
)
def test_values_come_back_with_their_types(value):
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


def test_what_has_no_place_in_a_configuration():
    for value in ({"a": 1}, {1}, object(), MLPConfig, len, Holder(a={}), b"bytes"):
        with pytest.raises(TypeError, match="has no place"):
            to_config(value)


def test_foreign_classes_need_trust():
    config = to_config(Foreign(width=5))
    with pytest.raises(UserError, match="trust_code"):
        from_config(config)
    assert from_config(config, trust_code=True) == Foreign(width=5)
    hidden = to_config(replace(Ancestral(), grid=Foreign()))
    with pytest.raises(UserError, match="trust_code"):
        from_config(hidden)
    assert from_config(hidden, trust_code=True).grid == Foreign()


def test_a_foreign_module_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text("import dataclasses\n@dataclasses.dataclass\nclass C: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("hostile.C", "fewstepper.C", "fewstep_extra.C", "hostile.fewstep.C"):
        with pytest.raises(UserError, match="trust_code"):
            from_config({"class": name})
    assert "hostile" not in sys.modules
    assert type(from_config({"class": "hostile.C"}, trust_code=True)).__name__ == "C"
    assert sys.modules.pop("hostile")


@pytest.mark.parametrize(
    "name",
    [
        "fewstep.training.loop.Path",  # imported from elsewhere
        "fewstep.files.os",
        "fewstep.files.shutil.rmtree",
        "fewstep.files.write_file",  # a function
        "fewstep.errors.UserError",  # a class, but no dataclass
        "fewstep.recipe.Ancestral",  # a dataclass, but not of this module
        "fewstep.networks.MLPConfig",
        "fewstep.configuration.importlib.import_module",
        "fewstep.nowhere.C",
        "fewstep.files.Nowhere",
        "fewstep.__version__",
    ],
)
def test_names_in_fewstep_that_are_no_configuration(name):
    with pytest.raises(UserError, match=r"not a configuration class|cannot be found"):
        from_config({"class": name})


@pytest.mark.parametrize("name", [None, 3, "", "MLPConfig", ".", "..", ".x", "fewstep.", "fewstep..x", ["fewstep.x"]])
@pytest.mark.parametrize("trust_code", [False, True])
def test_names_that_are_no_names(name, trust_code):
    with pytest.raises(UserError):
        from_config({"class": name}, trust_code)


def test_no_class_at_all():
    with pytest.raises(UserError, match="names its class"):
        from_config({"width": 3})


def test_unknown_fields_are_named():
    config = to_config(MLPConfig()) | {"colour": 1, "width": 3}
    with pytest.raises(UserError, match="MLPConfig has no field colour"):
        from_config(config)
    deep = to_config(RECIPES["ring-stmd"])
    deep["model"]["network"]["colour"] = 1
    with pytest.raises(UserError, match="colour"):
        from_config(deep)


def test_fields_out_of_range_are_refused():
    config = to_config(Ancestral()) | {"steps": 0}
    with pytest.raises(UserError, match="a whole number from 1 up"):
        from_config(config)


def test_differences_are_paths():
    a = to_config(RECIPES["ring-stmd"])
    assert differences(a, a) == []
    b = json.loads(json.dumps(a))
    b["steps"] = 7
    b["model"]["network"]["width"] = 16
    b["optimiser"]["colour"] = "red"
    found = differences(a, b)
    assert sorted(found) == [
        "model.network.width: 256 -> 16",
        "optimiser.colour: None -> red",
        f"steps: {a['steps']} -> 7",
    ]
    assert len(differences(b, a)) == 3
    other = differences(a, to_config(RECIPES["ring-ddpm"]))
    assert any(line.startswith("model.class: ") for line in other)
    assert not any(line.startswith("model.network") for line in other)


def test_differences_look_into_lists():
    a, b = (
        to_config(Ancestral(flow_steps=2, flow_grid=(1.0, 0.5, 0.0))),
        to_config(Ancestral(flow_steps=2, flow_grid=(1.0, 0.25, 0.0))),
    )
    assert len(differences(a, b)) == 1
    assert differences(a, b)[0].startswith("flow_grid")
