"""Checkpoints: folders `step-000001000` that are whole or absent, of which the newest two are kept.

Each is a saved model (EMA weights, `config.json` + `model.safetensors`) that `fewstep.load` reads, and beside it what
the training needs to go on: `training.safetensors` (weights, those of the objective where it has any, optimiser,
states of the random generators) and `training.json` (step, counts, recipe, alpha(1) and sigma(1)). Every file has its
SHA-256 in `checksums.json`. No pickle.
"""

import json
import math
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fewstep.configuration import differences, from_config, to_config
from fewstep.errors import UserError
from fewstep.files import parse_json, read_checked, write_folder
from fewstep.models.base import Model
from fewstep.pretrained import (
    CONFIG,
    WEIGHTS,
    check_fingerprint,
    fingerprint,
    load,
    newest_checkpoint,
    pretrained_files,
    tensor_bytes,
)
from fewstep.recipe import Recipe
from fewstep.samplers.base import Sampler

STATE, TENSORS = "training.json", "training.safetensors"
PREPARED = "finetuning"  # a folder of the run for what it needs and that is there before it


@dataclass
class TrainingState:
    """Everything that changes while a model is trained."""

    model: Model
    ema: AveragedModel
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    skipped: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    sampler: Sampler | None = None  # the default, where it is not the recipe's
    objective: nn.Module | None = None  # where the objective has weights or state of its own


def save_checkpoint(run: Path, state: TrainingState, recipe: Recipe, keep: int = 2) -> Path:
    """Write the state atomically to `run/checkpoints` and remove all but the newest `keep` checkpoints.

    Raises `UserError` that names the newest whole checkpoint where the disk refuses; nothing is lost then.
    """
    folder = run / "checkpoints" / f"step-{state.step:09d}"
    record = {
        "step": state.step,
        "skipped": state.skipped,
        "seconds": state.seconds,
        "images": state.step * recipe.batch_size,
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "peak_memory": state.peak_memory,
        "recipe": to_config(recipe),
        "schedule": fingerprint(state.model.schedule),
    }
    files = pretrained_files(_averaged(state.ema), state.sampler or recipe.sampler)
    files |= {STATE: json.dumps(record, indent=1).encode(), TENSORS: tensor_bytes(_tensors(state))}
    try:
        write_folder(folder, files)
    except OSError as error:
        last = newest_checkpoint(run)
        safe = f"the newest whole checkpoint is {last}" if last else "there is no earlier checkpoint"
        need = math.ceil(sum(map(len, files.values())) / 2**20)
        raise UserError(
            f"cannot write {folder} ({error.strerror or error}); {safe}; free {need} MiB and go on with --resume"
        ) from error
    for old in sorted(folder.parent.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return folder


def restore_checkpoint(folder: Path, state: TrainingState, recipe: Recipe) -> None:
    """Fill the state from a checkpoint. Raises `UserError` where it is damaged or belongs to another recipe."""
    record = read_record(folder)
    check_recipe(record["recipe"], recipe, folder)
    check_fingerprint(state.model.schedule, record["schedule"], folder)
    stored = parse_json(read_checked(folder, CONFIG), folder / CONFIG)["sampler"]
    if stored != to_config(recipe.sampler):
        state.sampler = from_config(stored)
    averaged = safetensors.torch.load(read_checked(folder, WEIGHTS))
    tensors = safetensors.torch.load(read_checked(folder, TENSORS))
    state.model.load_state_dict(_below("weights", tensors))
    if state.objective is not None:
        state.objective.load_state_dict(_below("objective", tensors))
    _averaged(state.ema).load_state_dict(averaged)
    state.ema.n_averaged.copy_(tensors["ema.n_averaged"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("optimiser", tensors).items():
        index, _, field = name.partition(".")
        moments.setdefault(int(index), {})[field] = value
    state.optimiser.load_state_dict({**state.optimiser.state_dict(), "state": moments})
    state.generator.set_state(tensors["random.generator"])
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    state.step, state.skipped, state.seconds = record["step"], record["skipped"], record["seconds"]
    state.peak_memory = record.get("peak_memory", 0)


def read_record(folder: Path) -> dict[str, Any]:
    """The JSON record of a checkpoint: step, what it cost, recipe, schedule; keys in docs/json.md."""
    return parse_json(read_checked(folder, STATE), folder / STATE)


def training_cost(folder: Path) -> dict[str, Any]:
    """What the training of a checkpoint cost: steps, images, seconds, parameters, bytes of memory; {} for a saved model."""
    if not (folder / STATE).exists():
        return {}
    record = read_record(folder)
    return {key: record.get(key) for key in ("step", "images", "seconds", "parameters", "peak_memory")}


def stored_recipe(run: Path, trust_code: bool = False) -> Recipe:
    """The recipe that a run was trained with; classes outside fewstep are imported only with `trust_code`."""
    path = run / "recipe.json"
    if not path.exists():
        raise UserError(f"{path} is missing: {run} is not the folder of a run; `fewstep train` makes one")
    return from_config(_moved(parse_json(path.read_bytes(), path), run), trust_code)


def _moved(value: Any, run: Path) -> Any:
    """A configuration with the paths inside the run as they are now, where the run was moved."""
    if isinstance(value, dict):
        return {key: _moved(item, run) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, run) for item in value]
    if isinstance(value, str) and f"/{PREPARED}/" in value and not Path(value).exists():
        here = run / PREPARED / value.rpartition(f"/{PREPARED}/")[2]
        return str(here.absolute()) if here.exists() else value
    return value


def check_recipe(stored: dict[str, Any], recipe: Recipe, source: Path) -> None:
    """`UserError` that lists the differences where the stored recipe is another one."""
    given = to_config(recipe) | {"description": stored.get("description")}  # words may change
    with suppress(UserError):  # a class of somebody's own is compared as it was written
        stored = to_config(from_config(stored))  # fields that are newer than the run have their defaults
    found = differences(stored, given)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(
            f"{source} belongs to another recipe ({'; '.join(found[:3])}{more}): resume with the recipe it was started "
            "with, or choose another --out"
        )


def copy_weights(recipe: Recipe, model: Model) -> None:
    """Those of the trained model that the recipe starts from. `UserError` where it is another one."""
    trained = load(recipe.start_from)
    found, expected = to_config(trained.config), to_config(model.config)
    if found != expected or trained.item_shape != model.item_shape:
        more = "; ".join(differences(found, expected)[:3]) or f"items {trained.item_shape} -> {model.item_shape}"
        raise UserError(
            f"{recipe.start_from} holds another model than the recipe's ({more}): start from one of its kind"
        )
    model.load_state_dict(trained.state_dict())


def _averaged(ema: AveragedModel) -> Model:
    return ema.module  # type: ignore[return-value]


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors = {f"weights.{name}": value for name, value in state.model.state_dict().items()}
    if state.objective is not None:
        tensors |= {f"objective.{name}": value for name, value in state.objective.state_dict().items()}
    for index, values in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in values.items()}
    tensors["ema.n_averaged"] = state.ema.n_averaged
    tensors["random.generator"] = state.generator.get_state()
    tensors["random.torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}
