"""A run that a command opens: its model, its recipe, and what every result says of it."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.cli._parsing import allow_code_here
from fewstep.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Run:
    """The model, the recipe it was trained by, its checkpoint (or the folder), and the keys that a result starts with."""

    model: Any
    recipe: Recipe
    checkpoint: Path
    about: dict[str, Any]


def open_run(folder: Path, device: str, trust_code: bool, command: str, arguments: list[str]) -> Run:
    """The run in this folder, for `fewstep COMMAND ARGUMENTS`. Raises `UserError` where it holds none."""
    from fewstep.pretrained import load, newest_checkpoint
    from fewstep.training.checkpoint import stored_recipe, training_cost

    allow_code_here(trust_code)
    model = load(folder, device=device, trust_code=trust_code)
    recipe = stored_recipe(folder, trust_code)
    checkpoint = newest_checkpoint(folder) or folder
    about = {
        "recipe": recipe.name,
        "command": shlex.join(["fewstep", command, *arguments]),
        "checkpoint": checkpoint.name,
        "training": training_cost(checkpoint),
    }
    return Run(model=model, recipe=recipe, checkpoint=checkpoint, about=about)
