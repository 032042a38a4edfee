"""The experiments that come with the library, one file a data set; every `Recipe` in these files is listed by name."""

import importlib
import pkgutil
from collections.abc import Iterable

from fewstep.errors import UserError
from fewstep.recipe import Recipe


def all_recipes() -> dict[str, Recipe]:
    """Every recipe of this folder by its name: the variables of its files that are recipes or tuples of them."""
    found: dict[str, Recipe] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            values: Iterable = value if isinstance(value, tuple) else (value,)
            found |= {recipe.name: recipe for recipe in values if isinstance(recipe, Recipe)}
    return dict(sorted(found.items()))


def find_recipe(name: str) -> Recipe:
    """The recipe of this name. Raises `UserError` with the names there are."""
    recipes = all_recipes()
    if name not in recipes:
        raise UserError(f"no recipe is called {name!r}: there are {', '.join(recipes)}; your own goes in a FILE.py")
    return recipes[name]
