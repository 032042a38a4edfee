"""The training loop: one for every recipe, on one process or several.

A step is a function of the recipe and of one random generator whose state is in the checkpoint, so that a resumed run
continues bit for bit on a CPU. Every process draws what the joint batch needs and takes its part, so that the number of
processes changes nothing but the rounding.
"""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fewstep.configuration import to_config
from fewstep.draws import Shard, Source
from fewstep.errors import UserError
from fewstep.files import PARTIAL, parse_json, remove_partial, write_file
from fewstep.models.base import Model
from fewstep.objectives.base import Batch, Objective
from fewstep.pretrained import newest_checkpoint
from fewstep.progress import Meter, peak_memory
from fewstep.recipe import Optimiser, Recipe
from fewstep.training.checkpoint import (
    PREPARED,
    TrainingState,
    check_recipe,
    copy_weights,
    restore_checkpoint,
    save_checkpoint,
)
from fewstep.training.log import Averages, Log

PATIENCE = 10  # non-finite steps in a row before training stops


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Where and how to run, which changes nothing in the result but its rounding.

    `stop_after` is in seconds; `data` is the folder of the data sets; `quiet` hides the progress; `command`, if given, is
    kept in `command.txt` for the report.
    """

    out: Path
    data: Path | None = None
    resume: bool = False
    stop_after: float | None = None
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["no", "bf16"] = "no"
    checkpoint_every: int = 1000
    log_every: int = 50
    tensorboard: bool = False
    quiet: bool = False
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended: `reason` is finished, time or interrupted."""

    step: int
    reason: Literal["finished", "time", "interrupted"]
    checkpoint: Path
    seconds: float
    skipped: int


class LossModule(nn.Module):
    """Model and objective as one module, because this is what data-parallel training has to wrap.

    An objective with weights of its own is a module in it, and is trained with the model.
    """

    def __init__(
        self, model: Model, objective: Objective, precision: Literal["no", "bf16"] = "no", data: Path | None = None
    ):
        super().__init__()
        self.model = model
        self.objective = objective.build(model.item_shape, data)
        self.precision = precision

    def forward(self, batch: Batch, source: Source) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The fields of the objective's `Loss`."""
        # not accelerate's own mixed precision, which is fixed once for a whole process
        with torch.autocast(batch["x_0"].device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.objective(self.model, batch, source)
        return loss.per_sample, loss.raw, loss.logs


def train(recipe: Recipe, options: TrainingOptions) -> Outcome:
    """Train a recipe in the folder `options.out`, from the start or from its newest checkpoint.

    Raises `UserError` where the folder holds a run and `resume` is not set, where it holds another recipe, where ten
    steps in a row have a loss or gradient that is not finite, or where a checkpoint cannot be written.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=options.device == "cpu", mixed_precision="no", gradient_accumulation_steps=1)
    rank, count = accelerator.process_index, accelerator.num_processes
    _check_folder(recipe, options)
    if recipe.batch_size % count:
        raise UserError(
            f"batch_size = {recipe.batch_size} is not divisible by the {count} processes: change one of them"
        )

    examples = recipe.dataset.train(options.data)
    if accelerator.is_main_process:
        _prepare_folder(recipe, options)
    accelerator.wait_for_everyone()
    torch.manual_seed(recipe.seed)
    model = recipe.model.build(recipe.dataset.item_shape)
    if recipe.start_from:
        copy_weights(recipe, model)
    else:
        model.fit(examples.up_to(10_000)["x_0"])
    losses = LossModule(model, recipe.objective, options.precision, options.data)
    optimiser = make_optimiser(losses, recipe.optimiser)
    module, wrapped = accelerator.prepare(losses, optimiser)
    ema = AveragedModel(model, multi_avg_fn=ema_update(recipe.ema_decay, recipe.ema_warmup))
    generator = torch.Generator().manual_seed(recipe.seed)
    own = losses.objective if isinstance(losses.objective, nn.Module) else None
    state = TrainingState(model=model, ema=ema, optimiser=optimiser, generator=generator, objective=own)
    newest = newest_checkpoint(options.out)
    if newest is not None:
        restore_checkpoint(newest, state, recipe)
    source: Source = generator if count == 1 else Shard(generator=generator, rank=rank, count=count)

    def agree(flag: bool) -> bool:
        """True on all processes if on any."""
        if count == 1:
            return flag
        return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)

    def step() -> tuple[bool, dict[str, float], Tensor, dict[str, Tensor]]:
        lr = learning_rate(recipe.optimiser, state.step, recipe.steps)
        for group in optimiser.param_groups:
            group["lr"] = lr
        batch = examples.batch(recipe.batch_size // count, source)
        batch["progress"] = torch.full((recipe.batch_size // count,), state.step / recipe.steps)
        batch = {name: value.to(accelerator.device) for name, value in batch.items()}
        per_sample, raw, logs = module(batch, source)
        loss = per_sample.mean()
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(module.parameters(), recipe.optimiser.clip_norm or math.inf)
        values = {"loss": loss.item(), "grad_norm": float(norm), "lr": lr}
        finite = not agree(not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])))
        if finite:
            wrapped.step()
            ema.update_parameters(model)
        wrapped.zero_grad(set_to_none=True)
        return finite, values, raw, logs

    def save() -> None:
        if accelerator.is_main_process:
            state.peak_memory = max(state.peak_memory, peak_memory())
            # amid steps that are not finite the weights may be ruined already: then nothing older is removed
            save_checkpoint(options.out, state, recipe, keep=3 if in_a_row else 2)
        accelerator.wait_for_everyone()

    module.train()
    main = accelerator.is_main_process
    log = Log(options.out, state.step, options.tensorboard) if main else None
    averages, in_a_row, saved_at = Averages(), 0, state.step if newest else -1
    before, start = state.seconds, time.monotonic()
    reason: Literal["finished", "time", "interrupted"] = "finished"
    quiet = options.quiet or not main
    with _interruptible() as interrupted, Meter(recipe.name, recipe.steps, state.step, quiet=quiet) as meter:
        while state.step < recipe.steps:
            start_of_step = generator.get_state(), torch.get_rng_state()
            try:
                finite, values, raw, logs = step()
            except UserError:  # of somebody's reward or teacher: what was learnt is kept
                if state.step and saved_at != state.step and not in_a_row and count == 1:
                    generator.set_state(start_of_step[0])
                    torch.set_rng_state(start_of_step[1])
                    save()
                raise
            state.step += 1
            state.seconds = before + time.monotonic() - start
            in_a_row = 0 if finite else in_a_row + 1
            state.skipped += not finite
            if in_a_row == PATIENCE:
                raise UserError(_diverged(options.out, state.step))
            if finite:
                averages.add(values, raw, logs)
            if state.step % options.log_every == 0 or state.step == recipe.steps:
                line = {"step": state.step, **averages.line()} if averages.steps else {"step": state.step}
                line |= {"skipped": state.skipped, "images": state.step * recipe.batch_size, "seconds": state.seconds}
                if log is not None:
                    log.write(line)
                meter.update(state.step, f"loss {line.get('loss', math.nan):.4g}")
                averages = Averages()
            if state.step % options.checkpoint_every == 0 and state.step < recipe.steps and not in_a_row:
                save()
                saved_at = state.step
            out_of_time = options.stop_after is not None and time.monotonic() - start >= options.stop_after
            if agree(out_of_time or bool(interrupted)) and state.step < recipe.steps:
                reason = "interrupted" if interrupted else "time"
                break
    if saved_at != state.step:
        save()
    if log is not None:
        log.close()
    checkpoint = newest_checkpoint(options.out)
    if checkpoint is None:
        raise RuntimeError(f"no checkpoint in {options.out} after training")
    return Outcome(step=state.step, reason=reason, checkpoint=checkpoint, seconds=state.seconds, skipped=state.skipped)


def make_optimiser(model: nn.Module, config: Optimiser) -> torch.optim.Optimizer:
    """Adam, with decoupled weight decay (AdamW) where it is above 0."""
    betas = (config.beta_1, config.beta_2)
    return torch.optim.AdamW(model.parameters(), lr=config.lr, betas=betas, weight_decay=config.weight_decay)


def learning_rate(config: Optimiser, step: int, steps: int) -> float:
    """The learning rate of the step with this number, from 0: linear warm-up, then constant or cosine."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay = 0.5 * (1 + math.cos(math.pi * step / steps)) if config.decay == "cosine" else 1.0
    return config.lr * warm * decay


def ema_update(decay: float, warmup: bool):
    """`average <- d average + (1 - d) weights`, d = `decay`, or less in the first updates where the warm-up is asked for."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        k = float(count)
        d = min(decay, (1 + k) / (10 + k)) if warmup else decay
        torch._foreach_lerp_(averaged, current, 1 - d)

    return update


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying, so that the run can end with a checkpoint; the same again kills."""
    caught: list[int] = []

    def catch(number: int, frame: object) -> None:
        if number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        old = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        old = {}
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _check_folder(recipe: Recipe, options: TrainingOptions) -> None:
    """The run folder holds nothing, or a run of this recipe that is to be resumed."""
    stored = options.out / "recipe.json"
    newest = newest_checkpoint(options.out)
    others = (
        [path for path in options.out.iterdir() if path.name not in (PARTIAL + stored.name, PREPARED)]
        if options.out.exists()
        else []
    )
    record = parse_json(stored.read_bytes(), stored) if stored.exists() else {}
    if others and record.get("class") != f"{Recipe.__module__}.{Recipe.__qualname__}":
        raise UserError(f"{options.out} is not empty and not a run of fewstep: choose another --out")
    if newest is not None and not options.resume:
        raise UserError(
            f"{options.out} already holds a run ({newest.name}): add --resume to go on, or choose another --out"
        )
    if options.resume and record:
        check_recipe(record, recipe, stored)


def _prepare_folder(recipe: Recipe, options: TrainingOptions) -> None:
    """Clear away what an interrupted write left, and store the recipe and the command."""
    remove_partial(options.out)
    remove_partial(options.out / "checkpoints")
    write_file(options.out / "recipe.json", json.dumps(to_config(recipe), indent=1))
    if options.command:
        write_file(options.out / "command.txt", options.command + "\n")


def _diverged(run: Path, step: int) -> str:
    last = newest_checkpoint(run)
    where = f"the last good checkpoint is {last}, from before them" if last else "there is no checkpoint yet"
    return (
        f"{PATIENCE} steps in a row up to step {step} had a loss or gradient that is not finite, and were skipped; {where}; "
        "lower --optimiser.lr, set --optimiser.clip-norm, or use --precision no, and look at log.jsonl"
    )
