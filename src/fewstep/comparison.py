"""Several runs on one data set, by the same measure, at the same numbers of network evaluations (the paper's figure 3b).

Every cell is repeated over seeds of the samples. Its interval is Student's at 95 % for the mean over seeds: it says nothing
of another training or of other held-out items. The floor is the same distance of as many training items, over several
draws of them; the draws overlap, so that their range is narrower than that of fresh data.
"""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.configuration import differences, to_config
from fewstep.datasets.base import Dataset
from fewstep.errors import UserError
from fewstep.evaluation import MORE_NAMES, NAMES, EvaluationPlan, Yardstick, posterior_rows, uses_flow, yardstick
from fewstep.models.base import Model
from fewstep.recipe import Recipe
from fewstep.samplers.base import Sampler, check_model

FLOOR_DRAWS = 8
TERMS = ("optimiser", "steps", "batch_size", "ema_decay", "ema_warmup", "seed")


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """What to compare. Raises `UserError` where a number is out of range."""

    nfe: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Network evaluations for each sample; a sampler that cannot spend a number exactly stays below it."""
    flow_steps: tuple[int, ...] = (1, 4)
    """M, for runs whose posterior is carried by a flow; N = NFE / M where that is whole."""
    n: int | None = None
    """Number of samples; as many as there are held-out items (at most 10000; 6000 of a mixture) if left out."""
    seeds: int = 3
    """Seeds of the samples for each cell: 0, 1, 2 ..."""
    taus: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.8)
    """Times at which the posterior is looked at."""
    pairs: int = 500
    """Held-out pairs (x_0, x_tau) for each time."""
    batch_size: int = 500
    """Items at a time: bounds the memory, changes no sample."""
    inception: Path | None = None
    """Weights of the Inception network, for the Frechet inception distance (docs/metrics.md)."""

    def __post_init__(self) -> None:
        if not self.nfe or not self.flow_steps or min(*self.nfe, *self.flow_steps) < 1:
            raise UserError("NFE and flow steps count from 1 up, and there is one of each at least")
        _ = self.posterior  # checks what it holds
        if self.seeds < 2:
            raise UserError("an interval over seeds needs at least 2 of them")

    @property
    def posterior(self) -> EvaluationPlan:
        """How the posterior is looked at."""
        return EvaluationPlan(
            n=self.n, taus=self.taus, pairs=self.pairs, flow_steps=self.flow_steps, batch_size=self.batch_size
        )


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A trained model with the sampler to use, the recipe it was trained by, and what the training cost.

    `run` tells models apart: what does not depend on the sampler is measured once for each.
    """

    name: str
    run: str
    model: Model
    sampler: Sampler
    recipe: Recipe
    training: dict[str, Any]


def compare(
    contestants: list[Contestant], plan: ComparisonPlan, data: Path | None = None, quiet: bool = True
) -> dict[str, Any]:
    """The comparison as JSON (keys in docs/json.md).

    Raises `UserError`, before anything is measured, where the runs are of different data sets or a sampler is not its model's.
    """
    dataset = common_dataset(contestants)
    for contestant in contestants:
        try:
            check_model(contestant.sampler, contestant.model)
        except UserError as error:
            raise UserError(f"{contestant.name}: {error}") from error
    device = str(contestants[0].model.like.device)
    rule = yardstick(dataset, plan.n, data, quiet, plan.inception, device)
    floors = [rule.floor(seed) for seed in range(FLOOR_DRAWS)]
    runs = [_measured(contestant, rule, plan, quiet) for contestant in contestants]
    models = {contestant.run: contestant.model for contestant in contestants}
    return {
        "n": rule.n,
        "seeds": plan.seeds,
        **rule.provenance,
        "terms": unequal_terms(contestants),
        "floor_n": rule.floor_n,
        "floor": {
            name: {"mean": statistics.fmean(f[name] for f in floors), "values": [f[name] for f in floors]}
            for name in NAMES | MORE_NAMES
            if name in floors[0]
        },
        "runs": runs,
        "posterior": {run: posterior_rows(model, rule.test, plan.posterior, quiet) for run, model in models.items()},
    }


def common_dataset(contestants: list[Contestant]) -> Dataset:
    """The data set of all runs."""
    first = contestants[0]
    for other in contestants[1:]:
        if other.recipe.dataset != first.recipe.dataset:
            raise UserError(
                f"{first.name} is trained on {first.recipe.dataset}, {other.name} on {other.recipe.dataset}: "
                "compare runs on one data set"
            )
    return first.recipe.dataset


def unequal_terms(contestants: list[Contestant]) -> list[str]:
    """Where network, optimiser, budget or steps done of a run differ from the first one's: `run against run: field: a -> b`."""

    def terms(contestant: Contestant) -> dict[str, Any]:
        recipe, done = contestant.recipe, contestant.training
        fields = {"network": to_config(recipe.model.network)} | {f: to_config(getattr(recipe, f)) for f in TERMS}
        return fields | {f"trained {name}": done.get(name) for name in ("step", "images")}

    by_run = {contestant.run: contestant for contestant in reversed(contestants)}
    first, *others = reversed(by_run.values())
    return [
        f"{other.run} against {first.run}: {difference}"
        for other in others
        for difference in differences(terms(first), terms(other))
    ]


def samplers_for(contestant: Contestant, plan: ComparisonPlan) -> dict[Sampler, int]:
    """One sampler for each M and each NFE that it can spend, with that number; none twice."""
    found: dict[Sampler, int] = {}
    for m in plan.flow_steps if uses_flow(contestant.model, contestant.sampler) else [None]:
        for nfe in sorted(plan.nfe):
            if m is not None and nfe % m:
                continue
            sampler = contestant.sampler.with_steps(None, m).with_nfe(nfe)
            if sampler.nfe <= nfe and sampler not in found:
                found[sampler] = nfe
    if not found:
        raise UserError(
            f"{contestant.name} can spend none of the NFE {plan.nfe} with M in {plan.flow_steps}: add an NFE that M divides"
        )
    return found


def _measured(contestant: Contestant, rule: Yardstick, plan: ComparisonPlan, quiet: bool) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for sampler, budget in samplers_for(contestant, plan).items():
        cells = [rule.sample(contestant.model, sampler, seed, plan.batch_size, quiet) for seed in range(plan.seeds)]
        counts = {"budget": budget} | {key: cells[0][key] for key in ("steps", "flow_steps", "nfe")}
        cost = {"seconds": statistics.fmean(c["seconds"] for c in cells), "peak_memory": cells[-1]["peak_memory"]}
        distances = {name: interval([c[name] for c in cells]) for name in NAMES | MORE_NAMES if name in cells[0]}
        rows.append(counts | cost | distances)
    return {
        "name": contestant.name,
        "run": contestant.run,
        "recipe": contestant.recipe.name,
        "objective": type(contestant.recipe.objective).__name__,
        "sampler": to_config(contestant.sampler),
        "training": contestant.training,
        "rows": rows,
        "rises": rises(rows),
    }


def interval(values: list[float], level: float = 0.95) -> dict[str, Any]:
    """Mean, half-width of Student's interval for it, and the values themselves (at least 2)."""
    from scipy.stats import t as student

    quantile = float(student.ppf(0.5 + level / 2, len(values) - 1))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.fmean(values), "half_width": half, "values": values}


def rises(rows: list[dict[str, Any]], level: float = 0.95) -> list[dict[str, Any]]:
    """Rows whose energy distance is above that of the fewest steps with the same M, beyond joint intervals.

    The differences are taken seed by seed; the level is shared among all the rows of one M (Bonferroni).
    """
    found = []
    for m in sorted({row["flow_steps"] for row in rows}):
        first, *others = sorted((row for row in rows if row["flow_steps"] == m), key=lambda row: row["steps"])
        for row in others:
            pairs = zip(row["energy_distance"]["values"], first["energy_distance"]["values"], strict=True)
            difference = interval([b - a for b, a in pairs], 1 - (1 - level) / len(others))
            if difference["mean"] > difference["half_width"]:
                found.append({"steps": row["steps"], "flow_steps": m} | difference)
    return found
