"""Flags that replace fields of a model's default sampler."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fewstep.errors import UserError
from fewstep.samplers.ancestral import Ancestral
from fewstep.samplers.base import Sampler
from fewstep.times import CustomGrid, Grid, LogSNRGrid, UniformGrid

_GRIDS: dict[str, Grid] = {"uniform": UniformGrid(), "log-snr": LogSNRGrid()}


@dataclass(frozen=True, kw_only=True)
class SamplerFlags:
    """What is left out is as the model's default sampler has it."""

    steps: int | None = None
    """N: steps on the diffusion clock."""
    flow_steps: int | None = None
    """M: steps on the flow clock for each draw; NFE = N M."""
    grid: str | None = None
    """Times of the steps: uniform, log-snr, or a list such as 1,0.6,0.2,0."""
    kernel: str | None = None
    """bridge (the reverse SDE), or c of the kernel family: 0 re-noising ... 1 DDIM."""


def override(sampler: Sampler | None, flags: SamplerFlags) -> Sampler:
    """The sampler with the flags' values in place of its own. Raises `UserError` where they do not fit."""
    steps = flags.steps
    changes: dict[str, Any] = {}
    if flags.grid is not None:
        changes["grid"] = _grid(flags.grid)
        if steps is None and flags.grid not in _GRIDS:
            steps = flags.grid.count(",")
    if flags.kernel is not None:
        changes["kernel"] = (
            "bridge" if flags.kernel == "bridge" else _number(flags.kernel, "--kernel", "bridge or c from 0 to 1")
        )
    chosen = (sampler or Ancestral()).with_steps(steps, flags.flow_steps)
    if not changes:
        return chosen
    if not isinstance(chosen, Ancestral):
        raise UserError(f"the model's sampler is {type(chosen).__name__}: --grid and --kernel are for Ancestral")
    return dataclasses.replace(chosen, **changes)


def _grid(text: str) -> Grid:
    if text in _GRIDS:
        return _GRIDS[text]
    expected = "uniform, log-snr or times such as 1,0.6,0.2,0"
    return CustomGrid(times=tuple(_number(part, "--grid", expected) for part in text.split(",")))


def _number(text: str, flag: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"{flag} is {expected}, not {text!r}") from error
