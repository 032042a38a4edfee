"""Flags that choose a sampler, or replace fields of a model's default one."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from fewstep.errors import UserError
from fewstep.samplers import Ancestral, FlowMap, OfMeans, OneStep, ProbabilityFlow, ReverseSDE, Sampler
from fewstep.times import CustomGrid, Grid, LogSNRGrid, UniformGrid

_GRIDS: dict[str, Grid] = {"uniform": UniformGrid(), "log-snr": LogSNRGrid()}
SAMPLERS: dict[str, Sampler] = {
    "ancestral": Ancestral(),
    "re-noising": Ancestral(kernel=0.0),
    "ddpm": OfMeans(sampler=Ancestral()),
    "ddim": OfMeans(sampler=Ancestral(kernel=1.0)),
    "euler": ProbabilityFlow(order=1),
    "heun": ProbabilityFlow(order=2),
    "euler-maruyama": ReverseSDE(exponential=False),
    "exponential": ReverseSDE(),
    "flow-map": FlowMap(),
    "one-step": OneStep(),
}


@dataclass(frozen=True, kw_only=True)
class SamplerFlags:
    """What is left out is as the model's default sampler has it."""

    sampler: str | None = None
    """ancestral, re-noising, ddpm, ddim, euler, heun, euler-maruyama, exponential, flow-map or one-step."""
    steps: int | None = None
    """N: steps on the diffusion clock (of a Mean Flow: steps of the flow map)."""
    flow_steps: int | None = None
    """M: steps on the flow clock for each draw; NFE = N M."""
    grid: str | None = None
    """Times of the steps: uniform, log-snr, or a list such as 1,0.6,0.2,0."""
    kernel: str | None = None
    """bridge (the reverse SDE), or c of the kernel family: 0 re-noising ... 1 DDIM."""
    label: int | None = None
    """Class of the samples, of a generator with classes; drawn at random if left out."""
    strength: float | None = None
    """Strength of guidance, of a generator that was trained with it: from 1 (none)."""


def named_sampler(name: str) -> Sampler:
    """The sampler of this name. Raises `UserError` with the names there are."""
    if name not in SAMPLERS:
        raise UserError(f"no sampler is called {name!r}: there are {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def override(sampler: Sampler, flags: SamplerFlags) -> Sampler:
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
    changes |= {k: v for k, v in (("label", flags.label), ("strength", flags.strength)) if v is not None}
    base = named_sampler(flags.sampler) if flags.sampler is not None else sampler
    return _replace(base.with_steps(steps, flags.flow_steps), changes)


def _replace(sampler: Sampler, changes: dict[str, Any]) -> Sampler:
    if not changes:
        return sampler
    if isinstance(sampler, OfMeans):
        return dataclasses.replace(sampler, sampler=_replace(sampler.sampler, changes))
    names = {f.name for f in dataclasses.fields(sampler)}  # type: ignore[arg-type]
    unknown = [f"--{name}" for name in changes if name not in names]
    if unknown:
        raise UserError(f"{type(sampler).__name__} has no {', '.join(unknown)}: leave it out, or choose a --sampler")
    return dataclasses.replace(sampler, **changes)  # type: ignore[type-var]


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
