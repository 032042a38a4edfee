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
    for name, recipe in all_recipes().items():
        sys.stdout.write(f"{name:<20}{recipe.description}\n")
    return 0
