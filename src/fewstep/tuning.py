"""The best sampler for a number of network evaluations: which (N, M), which grid of times, which kernel c.

The candidates are compared with *training* items, and the winner is then measured once more against held-out items with
other seeds, so that choosing the best of many does not flatter it.
"""

import statistics
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from fewstep.configuration import to_config
from fewstep.datasets.base import Dataset
from fewstep.errors import UserError
from fewstep.evaluation import NAMES, Yardstick, uses_flow, yardstick
from fewstep.models.base import EvaluationCounter, Model, PosteriorModel
from fewstep.models.mean_only import MeanOnly
from fewstep.pretrained import sample, sampler_of
from fewstep.progress import Meter, forget_peak_memory, peak_memory
from fewstep.samplers.ancestral import Ancestral
from fewstep.samplers.base import Sampler, step_counts
from fewstep.samplers.of_means import OfMeans
from fewstep.times import Grid, LogSNRGrid, UniformGrid


@dataclass(frozen=True, kw_only=True)
class TuningPlan:
    """What to try. Raises `UserError` where a number is out of range."""

    nfe: int = 4
    """Network evaluations for each sample."""
    n: int | None = None
    """Number of samples of each candidate; as for fewstep evaluate if left out."""
    kernels: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Numbers c of the kernel family to try beside the bridge."""
    tau_mins: tuple[float, ...] = (0.02, 0.1)
    """Last times of the log-SNR grids to try beside the even one."""
    seeds: int = 2
    """Seeds that a candidate's distance is averaged over."""
    batch_size: int = 500
    """Items at a time: bounds the memory, changes no sample."""

    def __post_init__(self) -> None:
        if min(self.nfe, self.seeds, self.batch_size) < 1:
            raise UserError("nfe, seeds and batch size count from 1 up")


def candidates(model: Model, sampler: Sampler, plan: TuningPlan) -> list[Sampler]:
    """Every sampler to try that spends `plan.nfe`, or as near below as it can; the kind of sampler is kept."""
    if isinstance(sampler, OfMeans):
        inner = replace(plan, nfe=max(1, plan.nfe // sampler.draws))
        found = candidates(MeanOnly(cast(PosteriorModel, model)), sampler.sampler, inner)
        return [replace(sampler, sampler=candidate) for candidate in found]
    names = {f.name for f in fields(sampler)}  # type: ignore[arg-type]
    flow_counts = [m for m in range(1, plan.nfe + 1) if plan.nfe % m == 0] if uses_flow(model, sampler) else [None]
    grids: list[Grid] = [UniformGrid(), *(LogSNRGrid(tau_min=tau_min) for tau_min in plan.tau_mins)]
    found = []
    for m in flow_counts:
        base = sampler.with_steps(1, m)
        base = base.with_nfe(plan.nfe)
        one_step = step_counts(base)["steps"] == 1
        for grid in grids[:1] if one_step or model.schedule is None or "grid" not in names else grids:
            gridded = replace(base, grid=grid) if "grid" in names else base
            if not isinstance(gridded, Ancestral):
                found.append(gridded)
                continue
            kernels: list[Any] = ["bridge"] if one_step else ["bridge", *plan.kernels]
            found += [replace(gridded, kernel=c) for c in kernels]
    return found


def tune(
    model: Model,
    dataset: Dataset,
    plan: TuningPlan,
    data: Path | None = None,
    quiet: bool = True,
    sampler: Sampler | None = None,
) -> tuple[Sampler, dict[str, Any]]:
    """The best sampler, and the search as JSON (keys in docs/json.md). `sampler`, the model's default one if left out, is
    the kind to choose among.
    """
    rule = yardstick(dataset, plan.n, data, quiet)
    forget_peak_memory()
    criterion = "frechet" if "features" in rule.provenance else "energy_distance"
    tried = candidates(model, sampler or sampler_of(model), plan)
    target = rule.train.up_to(rule.n, seed=0)["x_0"]
    raced: list[tuple[Sampler, dict[str, Any]]] = []
    diverged: list[Any] = []
    with Meter("samplers", len(tried), unit="sampler", quiet=quiet) as meter:
        for done, candidate in enumerate(tried, start=1):
            try:
                row = _row(rule, model, candidate, range(plan.seeds), plan.batch_size, criterion, target)
                raced.append((candidate, row))
            except UserError:  # NaN or infinity among the samples
                diverged.append(to_config(candidate))
            meter.update(done)
    if not raced:
        raise UserError(f"every sampler of {plan.nfe} evaluations diverged: give more --nfe")
    raced.sort(key=lambda pair: pair[1][criterion])
    best = raced[0][0]
    fresh = range(plan.seeds, 2 * plan.seeds)
    final = _row(rule, model, best, fresh, plan.batch_size, criterion, rule.reference)
    return best, {
        "nfe": plan.nfe,
        "n": rule.n,
        "seeds": plan.seeds,
        "criterion": criterion,
        "chosen_against": "train",
        "diverged": diverged,
        "peak_memory": peak_memory(),
        "candidates": [row for _, row in raced],
        **rule.provenance,
        "best": final | {"floor": rule.floor(0)[criterion]},
    }


def _row(
    rule: Yardstick, model: Model, sampler: Sampler, seeds: range, batch_size: int, criterion: str, target: Any
) -> dict[str, Any]:
    start = time.monotonic()
    with EvaluationCounter(model) as counter:
        drawn = [sample(model, rule.n, sampler=sampler, seed=seed, batch_size=batch_size).cpu() for seed in seeds]
    seconds = (time.monotonic() - start) / len(seeds)
    values = [rule.measure(x_0, target)[criterion] for x_0 in drawn]
    return {
        **step_counts(sampler),
        "nfe": counter.items / (rule.n * len(seeds)),
        "seconds": seconds,
        "sampler": to_config(sampler),
        criterion: statistics.fmean(values),
        "values": values,
    }


def table_of(result: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """`(title, header, rows)` of a search, as text; the best first, then the candidates."""
    key, best = result["criterion"], result["best"]

    def cells(row: dict[str, Any]) -> list[str]:
        fields = row["sampler"].get("sampler", row["sampler"])
        grid = fields.get("grid") or {}
        times = grid.get("class", "").rpartition(".")[2] + (f" {grid['tau_min']:g}" if "tau_min" in grid else "")
        return [str(row["steps"]), str(row["flow_steps"]), f"{row['nfe']:g}", times, str(fields.get("kernel", ""))]

    rows = [[*cells(row), f"{row[key]:.4g}", ""] for row in result["candidates"]]
    rows[0][-1] = f"{best[key]:.4g} (floor {best['floor']:.4g})"
    title = f"{result['recipe']}, NFE = {result['nfe']}: {NAMES[key]} by sampler, mean of {result['seeds']} seeds"
    return title, ["N", "M", "NFE", "grid", "kernel c", "against training items", "on held-out items"], rows
