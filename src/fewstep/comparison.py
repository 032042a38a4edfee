"""Several runs on one data set, by the same measure, at the same numbers of network evaluations (the paper's figure 3b).

Every cell is repeated over seeds of the samples. Its interval is Student's at 95 % over these seeds: it says how far
another seed would be, not another training or other held-out items. The floor is the same distance of as many training
items, over several draws of them.
"""

import html
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from fewstep import page
from fewstep.configuration import differences, to_config
from fewstep.datasets.base import Dataset
from fewstep.errors import UserError
from fewstep.evaluation import NAMES, EvaluationPlan, Yardstick, posterior_rows, uses_flow, yardstick
from fewstep.models.base import Model
from fewstep.recipe import Recipe
from fewstep.samplers.base import Sampler

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

    def __post_init__(self) -> None:
        if min(*self.nfe, *self.flow_steps, self.pairs, self.batch_size) < 1:
            raise UserError("NFE, flow steps, pairs and batch size count from 1 up")
        if self.seeds < 2:
            raise UserError("an interval over seeds needs at least 2 of them")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A trained model with the sampler to use, the recipe it was trained by, and what the training cost."""

    name: str
    model: Model
    sampler: Sampler
    recipe: Recipe
    training: dict[str, Any]


def compare(
    contestants: list[Contestant], plan: ComparisonPlan, data: Path | None = None, quiet: bool = True
) -> dict[str, Any]:
    """The comparison as JSON (keys in docs/json.md). Raises `UserError` where the runs are of different data sets."""
    dataset = common_dataset(contestants)
    rule = yardstick(dataset, plan.n, data, quiet)
    floors = [rule.floor(seed) for seed in range(FLOOR_DRAWS)]
    runs = [_measured(contestant, rule, plan, quiet) for contestant in contestants]
    return {
        "n": rule.n,
        "seeds": plan.seeds,
        **rule.provenance,
        "terms": unequal_terms(contestants),
        "floor": {
            name: {"mean": statistics.fmean(f[name] for f in floors), "values": [f[name] for f in floors]}
            for name in floors[0]
        },
        "runs": runs,
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
    """Where network, optimiser or budget of a run differ from those of the first: `run: field: a -> b`."""

    def terms(recipe: Recipe) -> dict[str, Any]:
        return {"network": to_config(recipe.model.network)} | {f: to_config(getattr(recipe, f)) for f in TERMS}

    first = contestants[0]
    return [
        f"{other.name} against {first.name}: {difference}"
        for other in contestants[1:]
        for difference in differences(terms(first.recipe), terms(other.recipe))
    ]


def samplers_for(contestant: Contestant, plan: ComparisonPlan) -> list[Sampler]:
    """One sampler for each M and each NFE that it can spend; none twice."""
    found: list[Sampler] = []
    for m in plan.flow_steps if uses_flow(contestant.model, contestant.sampler) else [None]:
        for nfe in sorted(plan.nfe):
            if m is not None and nfe % m:
                continue
            sampler = contestant.sampler.with_steps(1, m).with_nfe(nfe)
            if sampler.nfe <= nfe and sampler not in found:
                found.append(sampler)
    return found


def _measured(contestant: Contestant, rule: Yardstick, plan: ComparisonPlan, quiet: bool) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for sampler in samplers_for(contestant, plan):
        cells = [rule.sample(contestant.model, sampler, seed, plan.batch_size, quiet) for seed in range(plan.seeds)]
        counts = {key: cells[0][key] for key in ("steps", "flow_steps", "nfe")}
        cost = {"seconds": statistics.fmean(c["seconds"] for c in cells), "peak_memory": cells[-1]["peak_memory"]}
        distances = {name: interval([c[name] for c in cells]) for name in NAMES if name in cells[0]}
        rows.append(counts | cost | distances)
    posterior_plan = EvaluationPlan(
        taus=plan.taus, pairs=plan.pairs, flow_steps=plan.flow_steps, batch_size=plan.batch_size
    )
    return {
        "name": contestant.name,
        "recipe": contestant.recipe.name,
        "objective": type(contestant.recipe.objective).__name__,
        "sampler": to_config(contestant.sampler),
        "training": contestant.training,
        "rows": rows,
        "rises": rises(rows),
        "posterior": posterior_rows(contestant.model, rule.test, posterior_plan, quiet),
    }


def interval(values: list[float], level: float = 0.95) -> dict[str, Any]:
    """Mean, half-width of Student's interval for it, and the values themselves (at least 2)."""
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


def tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """`(title, header, rows)` of each table, as text: a table for each distance, the posterior, and the terms."""
    series = [(label, rows) for run in result["runs"] for label, rows in _series(run)]
    columns = sorted({math.ceil(row["nfe"]) for _, rows in series for row in rows})
    found = []
    for key in (key for key in NAMES if key in result["floor"]):
        floor = result["floor"][key]
        line = f"{floor['mean']:.3g} ({min(floor['values']):.3g} to {max(floor['values']):.3g})"
        body = [["real vs real", line, *[""] * (len(columns) - 1)]]
        for label, rows in series:
            cells = {math.ceil(row["nfe"]): f"{row[key]['mean']:.3g} ± {row[key]['half_width']:.1g}" for row in rows}
            body.append([label, *(cells.get(nfe, "") for nfe in columns)])
        title = f"{NAMES[key]}, {result['n']} samples against {result['reference']['n']} held-out items, by NFE"
        found.append((title, ["", *map(str, columns)], body))
    return [*found, *_posterior_tables(result), _terms(result)]


def _series(run: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of a run by M, each with its label."""
    counts = sorted({row["flow_steps"] for row in run["rows"]})
    return [
        (
            f"{run['name']}, M = {m}" if len(counts) > 1 else run["name"],
            [r for r in run["rows"] if r["flow_steps"] == m],
        )
        for m in counts
    ]


def _posterior_tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    with_posterior = [run for run in result["runs"] if run["posterior"]]
    if not with_posterior:
        return []
    taus = sorted({row["tau"] for run in with_posterior for row in run["posterior"]})
    found = []
    for key, title in (
        ("spread_skill", "spread/skill of draws from q(x_0 | x_tau) on held-out pairs (1 is calibrated), by tau"),
        ("energy_score", "energy score of these draws (less is better), by tau"),
        ("mean_rmse", "RMSE of the posterior's mean, the denoiser in the model, by tau"),
    ):
        body = []
        for run in with_posterior:
            for m in sorted({row["flow_steps"] for row in run["posterior"]}):
                cells = {row["tau"]: f"{row[key]:.3g}" for row in run["posterior"] if row["flow_steps"] == m}
                if key != "mean_rmse" or m == 1:
                    body.append([run["name"], str(m), *(cells.get(tau, "") for tau in taus)])
        found.append((title, ["", "M", *(f"{tau:g}" for tau in taus)], body))
    return found


def _terms(result: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    header = ["", "objective", "parameters", "images seen", "training, s", "memory, MiB", "sampling, s by NFE"]
    body = []
    for run in result["runs"]:
        cost = run["training"]
        seconds = ", ".join(f"{row['nfe']:g}: {row['seconds']:.1f}" for row in run["rows"] if row["flow_steps"] == 1)
        memory = f"{cost['peak_memory'] / 2**20:.0f}"
        numbers = [f"{cost['parameters']}", f"{cost['images']}", f"{cost['seconds']:.0f}", memory]
        body.append([run["name"], run["objective"], *numbers, seconds])
    title = (
        f"on equal terms? {'; '.join(result['terms']) or 'network, optimiser, steps, batch size and averaging agree'}"
    )
    return title, header, body


def notes(result: dict[str, Any]) -> list[str]:
    """What a reader has to know: where more steps hurt, and what the intervals are."""
    found = [
        f"{run['name']}: N = {row['steps']}, M = {row['flow_steps']} is worse than the fewest steps in energy distance by "
        f"{row['mean']:.2g} ± {row['half_width']:.1g} (joint 95 %)"
        for run in result["runs"]
        for row in run["rises"]
    ] or ["in no run does the energy distance at more steps exceed that at the fewest, beyond joint 95 % intervals"]
    found.append(
        f"± is Student's 95 % interval over {result['seeds']} seeds of the samples; the held-out items are fixed"
    )
    if "features" in result:
        f = result["features"]
        found.append(f"Frechet features: {f['extractor']}; accuracy {f['accuracy']:.2%}; sha256 {f['sha256'][:12]}")
    return found


def figure(result: dict[str, Any]) -> bytes:
    """A PNG: for each distance a panel against NFE, a line for each run and M with its intervals, and the floor."""
    keys = [key for key in ("frechet", "energy_distance") if key in result["floor"]]
    drawn, axes = page.figure_of(len(keys), 4.2, wide=True)
    for axis, key in zip(axes, keys, strict=True):
        number = 0
        for colour, run in enumerate(result["runs"]):
            for style, (label, rows) in zip(("-o", "--s", ":^", "-.v"), _series(run), strict=False):
                x = [row["nfe"] for row in rows]
                y, half = [row[key]["mean"] for row in rows], [row[key]["half_width"] for row in rows]
                axis.errorbar(x, y, yerr=half, fmt=style, color=f"C{colour}", capsize=3, markersize=4, label=label)
                number += 1
        floor = result["floor"][key]
        low, high = min(floor["values"]), max(floor["values"])
        axis.axhspan(low, high, color="0.85", zorder=0)
        axis.axhline(floor["mean"], color="0.4", linestyle="--", linewidth=1, label="floor: real vs real", zorder=1)
        ticks = sorted({row["nfe"] for run in result["runs"] for row in run["rows"]})
        axis.set(xscale="log", xlabel="network evaluations per sample (NFE)", ylabel=NAMES[key])
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        if low > 0:
            axis.set_yscale("log")
        else:  # an unbiased distance may fall below 0
            axis.set_yscale("symlog", linthresh=max(abs(low), abs(high)))
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")
    return page.png(drawn)


def document(result: dict[str, Any], image: bytes) -> str:
    """The comparison as one self-contained HTML page."""
    caption = (
        "Distance to held-out data against network evaluations; grey: the same distance between real and real data"
    )
    parts = [
        "<h1>Comparison</h1>",
        page.figure(image, caption),
        *(page.table(*table) for table in tables(result)),
        *(f"<p>{html.escape(note)}</p>" for note in notes(result)),
        f"<h2>Command</h2><pre>{html.escape(result['command'])}</pre>",
    ]
    return page.document("Comparison", parts)
