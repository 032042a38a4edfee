"""Train a recipe: fewstep train RECIPE|FILE.py [flags]

RECIPE is a name from `fewstep recipes`; FILE.py is a file of yours with a variable `recipe = Recipe(...)`, and running
it runs its code. Every number, word and switch of the recipe is a flag, such as --steps 500 or
--objective.terms.2.draws 4; classes are chosen in a FILE.py. Training writes checkpoints and a log to the folder
--out; a run that was stopped goes on with --resume. On several processes (on CPUs with ACCELERATE_USE_CPU=true):
accelerate launch --multi_gpu --num_processes 2 -m fewstep train RECIPE.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewstep.cli._parsing import parse, parse_duration
from fewstep.errors import UserError
from fewstep.recipe import Recipe
from fewstep.recipes import find_recipe
from fewstep.user_code import run_file


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The recipe's fields, and where and how to run it."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    """Folder of the run; runs/NAME of the recipe if left out."""
    data: Path | None = None
    """Folder of the data sets; FEWSTEP_DATA if left out, and a download if that is not set."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder, bit for bit on a CPU."""
    stop_after: str | None = None
    """End cleanly with a checkpoint after this time: 90s, 10m, 1h30m."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the network in bfloat16 with float32 weights."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the newest two are kept."""
    log_every: int = 50
    """Steps between lines of log.jsonl."""
    tensorboard: bool = False
    """Also write the log for TensorBoard."""
    quiet: bool = False
    """No progress."""


def run(arguments: list[str]) -> int:
    """Train; 0 when finished or out of time, 130 when interrupted."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(
            __doc__ + "\nThe flags of a recipe: fewstep train RECIPE --help; the recipes: fewstep recipes\n"
        )
        return 0 if arguments else 2
    if arguments[0].startswith("-"):
        raise UserError("the recipe comes first: fewstep train RECIPE [flags]; the recipes: fewstep recipes")
    name, rest = arguments[0], arguments[1:]
    recipe = _from_file(Path(name)) if name.endswith(".py") else find_recipe(name)
    flags = parse(Flags, rest, f"train {name}", __doc__, default=Flags(recipe=recipe))
    if min(flags.checkpoint_every, flags.log_every) < 1:
        raise UserError("--checkpoint-every and --log-every count steps from 1 up")

    from fewstep.training import TrainingOptions, train

    command = shlex.join(["fewstep", "train", *(a for a in arguments if a != "--resume")])
    options = TrainingOptions(
        command=command,
        out=flags.out or Path("runs") / flags.recipe.name,
        stop_after=None if flags.stop_after is None else parse_duration(flags.stop_after),
        **{f: getattr(flags, f) for f in _SHARED},
    )
    outcome = train(flags.recipe, options)
    done = f"{outcome.step} of {flags.recipe.steps} steps in {outcome.seconds:.0f} s, {outcome.skipped} skipped"
    end = {"finished": "finished", "time": "stopped for time", "interrupted": "interrupted"}[outcome.reason]
    sys.stdout.write(f"{end}: {done}; checkpoint {outcome.checkpoint}\n")
    kept = 1.0 if flags.recipe.ema_warmup else 1 - flags.recipe.ema_decay**outcome.step
    if kept < 0.95:
        sys.stdout.write(
            f"note: after {outcome.step} steps the averaged weights, which are what is saved, are still {1 - kept:.0%} the "
            "initial ones: train longer, lower --ema-decay, or start anew with --ema-warmup\n"
        )
    if outcome.reason != "finished":
        sys.stdout.write(f"go on with: {command} --resume\n")
    return 130 if outcome.reason == "interrupted" else 0


_SHARED = ("data", "resume", "device", "precision", "checkpoint_every", "log_every", "tensorboard", "quiet")


def _from_file(path: Path) -> Recipe:
    if not path.exists():
        raise UserError(f"{path} does not exist: give a recipe's name or a Python file with a variable recipe")
    if path.stem in sys.stdlib_module_names or path.stem in sys.modules:
        raise UserError(f"{path} would take the place of the module {path.stem}: give the file another name")
    module = run_file(path, path.stem)
    recipe = vars(module).get("recipe")
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path} has no variable `recipe` that is a fewstep.recipe.Recipe")
    return recipe
