"""A trained model on the disk and back: `config.json` + `model.safetensors`, with checksums; no pickle anywhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fewstep import __version__
from fewstep.configuration import from_config, to_config
from fewstep.draws import item_generators, normal
from fewstep.errors import UserError
from fewstep.files import CHECKSUMS, parse_json, read_checked, write_folder
from fewstep.models.base import Model
from fewstep.samplers.base import Sampler, check_model
from fewstep.samplers.usual import sampler_of
from fewstep.schedule import Schedule

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_pretrained(model: Model, folder: str | Path, sampler: Sampler | None = None) -> None:
    """Write a model with its schedule and default sampler (`model.sampler` unless given) to a folder, atomically."""
    write_folder(Path(folder), pretrained_files(model, sampler or model.sampler))


def save_default_sampler(folder: Path, sampler: Sampler) -> None:
    """Replace the default sampler of a saved model or checkpoint, atomically; every other file stays as it is."""
    names = [path.name for path in folder.iterdir() if path.name != CHECKSUMS]
    files = {name: read_checked(folder, name) for name in names}
    config = parse_json(files[CONFIG], folder / CONFIG) | {"sampler": to_config(sampler)}
    write_folder(folder, files | {CONFIG: json.dumps(config, indent=1).encode()})


def load(folder: str | Path, *, device: str = "cpu", trust_code: bool = False) -> Any:
    """The model of a run folder (its newest checkpoint, EMA weights), a checkpoint or a saved model, in eval mode.

    The result carries its schedule and its default sampler (`model.sampler`). Raises `UserError` where a file is
    missing or damaged, where the schedule no longer gives the alpha(1) and sigma(1) that the model was trained with, or
    where the configuration names code outside fewstep and `trust_code` is not set.
    """
    check_device(device)
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}: give the folder of a trained model, as `fewstep train` writes it"
        )
    folder = newest_checkpoint(folder) or folder
    config = parse_json(read_checked(folder, CONFIG), folder / CONFIG)
    missing = [key for key in ("model", "item_shape", "schedule", "sampler") if key not in config]
    if missing:
        raise UserError(f"{folder / CONFIG} lacks {', '.join(missing)}: it is not a model that fewstep saved")
    with torch.random.fork_rng(
        devices=[]
    ):  # the fresh weights are replaced: the caller's stream is not theirs to draw from
        model = from_config(config["model"], trust_code).build(tuple(config["item_shape"]))
    check_fingerprint(model.schedule, config["schedule"], folder)
    try:
        model.load_state_dict(safetensors.torch.load(read_checked(folder, WEIGHTS)))
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} does not fit {CONFIG}: {str(error).splitlines()[-1].strip()}") from error
    model.sampler = from_config(config["sampler"], trust_code)
    return model.eval().requires_grad_(False).to(device)


def sample(
    model: Model,
    n: int,
    *,
    steps: int | None = None,
    flow_steps: int | None = None,
    seed: int = 0,
    sampler: Sampler | None = None,
    batch_size: int = 256,
    first: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """`n` samples `(n, ...)`: the items `first .. first + n - 1` of the run with this seed.

    Every item has a generator of its own, so that `batch_size`, which bounds the memory, changes no item. `steps` and
    `flow_steps` replace those of the sampler: the given one, or that of `sampler_of`.
    Raises `UserError` where a number is out of range or the sampler does not draw from such a model.
    """
    if n < 1 or batch_size < 1 or seed < 0:
        raise UserError(f"n and batch_size count from 1 up, seed from 0: not {n}, {batch_size} and {seed}")
    chosen: Sampler = (sampler or sampler_of(model)).with_steps(steps, flow_steps)
    check_model(chosen, model)
    chunks = []
    for start in range(0, n, batch_size):
        size = min(batch_size, n - start)
        generators = item_generators(size, seed, first + start)
        noise = normal((size, *model.item_shape), generators, like=model.like)
        chunks.append(chosen(model, noise, generators))
        progress(start + size)
    return torch.cat(chunks)


def pretrained_files(model: Model, sampler: Sampler | None) -> dict[str, bytes]:
    """The two files of a saved model."""
    config = {
        "fewstep": __version__,
        "model": to_config(model.config),
        "item_shape": list(model.item_shape),
        "schedule": fingerprint(model.schedule),
        "sampler": to_config(sampler),
    }
    return {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: tensor_bytes(model.state_dict())}


def tensor_bytes(tensors: dict[str, Tensor]) -> bytes:
    """Tensors in the safetensors format."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"format": "pt"})


def fingerprint(schedule: Schedule | None) -> dict[str, float]:
    """alpha(1) and sigma(1): the same name with another schedule is the field's most common bug. Nothing where there is none."""
    if schedule is None:
        return {}
    one = torch.ones((), dtype=torch.float64)
    return {"alpha_1": schedule.alpha(one).item(), "sigma_1": schedule.sigma(one).item()}


def check_fingerprint(schedule: Schedule | None, expected: dict[str, float], source: Path) -> None:
    """`UserError` where the schedule's ends are not those that were stored (to 1e-6, relative)."""
    found = fingerprint(schedule)
    if found.keys() != expected.keys():
        raise UserError(f"{source} was trained with the ends {expected} of the diffusion, but this model has {found}")
    if any(abs(found[k] - expected[k]) > 1e-6 * abs(expected[k]) for k in found):
        raise UserError(
            f"{source} was trained with alpha(1) = {expected['alpha_1']:.6g}, sigma(1) = {expected['sigma_1']:.6g}, but "
            f"this schedule has {found['alpha_1']:.6g} and {found['sigma_1']:.6g}: load it with the version that wrote it"
        )


def check_device(device: str) -> None:
    """`UserError` where torch has no such device here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"there is no device {device!r} here ({str(error).splitlines()[0][:80]}); use cpu") from error
    if torch.device(device).type == "meta":
        raise UserError("the device meta holds no numbers; use cpu")


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run folder, or None where it has none."""
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    return checkpoints[-1] if checkpoints else None
