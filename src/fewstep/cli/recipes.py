"""List the recipes, one line each: fewstep recipes"""

import sys
from dataclasses import dataclass

from fewstep.cli._parsing import parse
from fewstep.recipes import all_recipes


@dataclass(frozen=True)
class Flags:
    """No flags."""


def run(arguments: list[str]) -> int:
    """Print the list."""
    parse(Flags, arguments, "recipes", __doc__)
    recipes = all_recipes()
    width = max(map(len, recipes)) + 2
    for name, recipe in recipes.items():
        sys.stdout.write(f"{name:<{width}}{recipe.description}\n")
    return 0
