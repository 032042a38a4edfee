"""Which objective makes one-step draws that can be trusted? The study behind the default recipes (docs/calibration.md).

For a data set of the recipes: train methods over seeds, the same processor time for each ("compute matched"), then ask
of every run what `fewstep calibrate` asks, and how far its samples are from held-out data at N = 1 .. 64.

python benchmarks/calibration_study.py ring --methods stmd stmd-paper stmd-plain distributional+peers --seeds 0 1 2

A run that is there already is not made again, so the command can be stopped and given again; `--tables` only prints. The
number of steps of the first method is its recipe's (or --steps); the others take as many as cost the same, measured in
turns before the first training. One process uses one thread: start one for each core, with other --seeds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import fewstep
from fewstep.calibration import EXACT, CalibrationPlan, calibrate
from fewstep.comparison import interval, rises
from fewstep.configuration import to_config
from fewstep.errors import UserError
from fewstep.evaluation import yardstick
from fewstep.files import write_file
from fewstep.metrics import EnergyDistance, FrechetDistance
from fewstep.objectives import STMD, EnergyScoreObjective
from fewstep.recipe import Recipe
from fewstep.recipes import find_recipe
from fewstep.samplers import Ancestral
from fewstep.training import TrainingOptions, train
from fewstep.training.loop import LossModule, make_optimiser

METHODS = (
    "stmd",
    "stmd-paper",
    "stmd-plain",
    "stmd-plain+peers",
    "stmd-scored",
    "distributional",
    "distributional+peers",
    "stmd-drifting",
)
STEPS = (1, 2, 4, 8, 16, 32, 64)
DISTANCES = (EnergyDistance, FrechetDistance)
SHOWN = {
    "variance ratio": lambda row: f"{row['exact']['variance_ratio']:.3f}",
    "largest direction": lambda row: f"{row['exact']['variance_ratio_largest']:.3f}",
    "smallest direction": lambda row: f"{row['exact']['variance_ratio_smallest']:.3f}",
    "conditional energy distance": lambda row: f"{row['exact']['conditional_energy_distance']:.4f}",
    "spread/skill": lambda row: f"{row['spread_skill']:.3f}",
    "energy score": lambda row: f"{row['energy_score']:.4f}",
    "ranks, adjusted p": lambda row: f"{row['rank_p_adjusted']:.1g}",
    "TARP, adjusted p": lambda row: f"{row['tarp_p_adjusted']:.1g}",
    "words": lambda row: "/".join(row["words"]),
}
OF_THE_EXACT = list(SHOWN)[:4]  # where the exact posterior is known


def method(problem: str, name: str) -> Recipe:
    """The recipe of a method; `NAME+peers` is NAME with the peers of the batch in its loss (evidence.py)."""
    base, _, peers = name.partition("+")
    recipe = find_recipe(f"{problem}-{base}")
    if peers:
        assert isinstance(recipe.objective, STMD | EnergyScoreObjective)
        recipe = replace(recipe, name=f"{problem}-{name}", objective=replace(recipe.objective, peers=True))
    return recipe


def step_costs(recipes: list[Recipe], rounds: int = 12) -> dict[str, float]:
    """Processor seconds of a training step of each: medians of rounds in which they take turns."""
    steps = [_stepper(recipe) for recipe in recipes]
    seconds: list[list[float]] = [[] for _ in recipes]
    for _ in range(rounds + 3):
        for step, found in zip(steps, seconds, strict=True):
            start = time.process_time()
            step()
            found.append(time.process_time() - start)
    return {recipe.name: statistics.median(found[3:]) for recipe, found in zip(recipes, seconds, strict=True)}


def _stepper(recipe: Recipe) -> Callable[[], None]:
    examples = recipe.dataset.train()
    model = recipe.model.build(recipe.dataset.item_shape)
    model.fit(examples.up_to(1000)["x_0"])
    losses, generator = LossModule(model, recipe.objective), torch.Generator().manual_seed(0)
    optimiser = make_optimiser(losses, recipe.optimiser)

    def step() -> None:
        batch = examples.batch(recipe.batch_size, generator)
        losses(batch | {"progress": torch.zeros(recipe.batch_size)}, generator)[0].mean().backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def matched(problem: str, recipes: list[Recipe], out: Path) -> list[Recipe]:
    """The recipes with numbers of steps that cost what the first one costs, measured once for a folder: all of them at once."""
    path = out / f"{problem}-costs.json"
    if not path.exists():
        costs = step_costs([method(problem, name) for name in METHODS])
        if not path.exists():  # or another process was first
            write_file(path, json.dumps(costs, indent=1))
    costs = json.loads(path.read_text())
    missing = {recipe.name for recipe in recipes} - costs.keys()
    if missing:
        raise UserError(f"{path} has no cost of {', '.join(sorted(missing))}: remove it, and all are measured again")
    first = costs[recipes[0].name]
    return [replace(r, steps=max(1, round(recipes[0].steps * first / costs[r.name]))) for r in recipes]


def measure(run: Path, recipe: Recipe, flags: argparse.Namespace) -> dict:
    """What is asked of a trained run."""
    model = fewstep.load(run)
    rule = yardstick(recipe.dataset, flags.n)
    kept = [(seen, tuple(m for m in found if isinstance(m, DISTANCES))) for seen, found in rule.metrics]
    rule = replace(rule, metrics=tuple(kept))
    cells: dict[str, list] = {}
    for m in (1, 4):
        for n in [n for n in STEPS if n <= (flags.most_steps if m == 1 else 8)]:
            seeds = range(flags.sampling_seeds)
            found = [rule.sample(model, Ancestral(steps=n, flow_steps=m), seed, 6000) for seed in seeds]
            for name in ("energy_distance", "frechet", "copying"):
                if name in found[0]:
                    cells.setdefault(f"{name} M = {m}", []).append(
                        {"steps": n, "flow_steps": m, name: interval([f[name] for f in found])}
                    )
    rows = [row for m in (1, 4) for row in cells[f"energy_distance M = {m}"]]
    floor = [rule.floor(seed) for seed in range(4)]
    floors = {
        name: statistics.fmean(f[name] for f in floor) for name in ("energy_distance", "frechet") if name in floor[0]
    }
    plan = CalibrationPlan(pairs=flags.pairs, draws=flags.draws, flow_steps=(1,))
    calibration = calibrate(model, recipe.dataset, plan)
    if 4 in flags.flow_steps:
        few = replace(
            plan, pairs=min(flags.pairs or 2000, 2000), draws=flags.draws // 2, flow_steps=(4,), controls=False
        )
        found = calibrate(model, recipe.dataset, few)["families"]
        calibration["families"].append(next(family for family in found if family["name"] == "M = 4"))
    return {"cells": cells, "rises": rises(rows), "floor": floors, "calibration": calibration}


def run_one(recipe: Recipe, seed: int, flags: argparse.Namespace) -> None:
    """Train and measure, unless it is done."""
    folder = flags.out / f"{recipe.name}-{seed}"
    result = folder / "study.json"
    recipe = replace(recipe, seed=seed)
    if result.exists():
        if json.loads((folder / "recipe.json").read_text()) != to_config(recipe):
            raise UserError(f"{folder} is of another recipe or number of steps: move it away, or take another --out")
        return
    outcome = train(recipe, TrainingOptions(out=folder, resume=True))
    started = time.monotonic()
    found = measure(folder, recipe, flags)
    cost = {"steps": recipe.steps, "seconds": outcome.seconds}
    result.write_text(json.dumps(found | {"recipe": recipe.name, "seed": seed, "training": cost}, indent=1))
    print(
        f"{recipe.name} seed {seed}: trained in {outcome.seconds:.0f} s, measured in {time.monotonic() - started:.0f} s",
        flush=True,
    )


def tables(names: list[str], out: Path) -> str:
    """Markdown of what is there: worst of the seeds where there are several, `first .. last` over tau or N."""
    lines = []
    for name in names:
        found = [json.loads(p.read_text()) for p in sorted(out.glob(f"{name}-[0-9]*/study.json"))]
        if not found:
            continue
        lines.append(f"\n### {name}, {len(found)} seeds, {found[0]['training']['steps']} steps\n")
        seconds = ", ".join(f"{f['training']['seconds']:.0f}" for f in found)
        lines.append(f"trained in {seconds} s, one core each; floor {found[0]['floor']}\n")
        for m in [m for m in (1, 4) if any(x["name"] == f"M = {m}" for x in found[0]["calibration"]["families"])]:
            families = [next(x for x in f["calibration"]["families"] if x["name"] == f"M = {m}") for f in found]
            taus = [row["tau"] for row in families[0]["rows"]]
            lines += [f"| M = {m}, tau | " + " | ".join(f"{t:g}" for t in taus) + " |", "|---" * (len(taus) + 1) + "|"]

            for title, show in SHOWN.items():
                if "exact" in families[0]["rows"][0] or title not in OF_THE_EXACT:
                    cells = [" ".join(show(family["rows"][i]) for family in families) for i in range(len(taus))]
                    lines.append(f"| {title} | " + " | ".join(cells) + " |")
            lines.append("")
        for key in found[0]["cells"]:
            name_of = key.partition(" ")[0]
            steps = [row["steps"] for row in found[0]["cells"][key]]
            lines += [f"| {key}, N | " + " | ".join(map(str, steps)) + " |", "|---" * (len(steps) + 1) + "|"]
            for f in found:
                cells = [f"{row[name_of]['mean']:.4g} ± {row[name_of]['half_width']:.1g}" for row in f["cells"][key]]
                lines.append(f"| seed {f['seed']} | " + " | ".join(cells) + " |")
            lines.append("")
        worse = [f"seed {f['seed']}: N = {r['steps']}, M = {r['flow_steps']}" for f in found for r in f["rises"]]
        lines.append("more steps are worse than one: " + ("; ".join(worse) or "nowhere"))
    return "\n".join(lines)


def draw(names: list[str], out: Path, path: Path) -> None:
    """Rank histograms of one-step draws, a row for each method, and one for the exact posterior where it is known."""
    from matplotlib.figure import Figure

    shown: dict[str, dict] = {}
    for name in names:
        for result in sorted(out.glob(f"{name}-[0-9]*/study.json"))[:1]:
            families = {f["name"]: f for f in json.loads(result.read_text())["calibration"]["families"]}
            shown |= {EXACT: families[EXACT]} if EXACT in families else {}
            shown[f"{name}, M = 1"] = families["M = 1"]
    columns = len(next(iter(shown.values()))["rows"])
    figure = Figure(figsize=(2.2 * columns, 1.75 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False, sharex=True)
    for axes, (name, family) in zip(grid, shown.items(), strict=True):
        top = max(2.0, 1.1 * min(4.0, max(bar for row in family["rows"] for bar in row["rank_histogram"])))
        for axis, row in zip(axes, family["rows"], strict=True):
            bars = row["rank_histogram"]
            colour = "C0" if row["words"] == ["calibrated"] else "C3"
            axis.bar([(i + 0.5) / len(bars) for i in range(len(bars))], bars, 0.9 / len(bars), color=colour)
            axis.axhline(1, color="0.3", lw=0.8)
            axis.set(ylim=(0, top), xlim=(0, 1), xticks=[], xlabel=f"tau = {row['tau']:g}: {', '.join(row['words'])}")
            axis.xaxis.label.set_fontsize(8)
            axis.tick_params(labelsize=7)
        axes[0].set_title(name, loc="left", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="steps of the first method")
    parser.add_argument("--pairs", type=int, help="held-out pairs for each tau")
    parser.add_argument("--draws", type=int, default=63, help="draws for each pair")
    parser.add_argument(
        "--flow-steps", nargs="+", type=int, default=[1, 4], help="M whose draws are tested: 1, or 1 and 4"
    )
    parser.add_argument("--n", type=int, help="samples for each distance")
    parser.add_argument("--most-steps", type=int, default=64, help="largest N")
    parser.add_argument("--sampling-seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--figure", type=Path, help="where to draw the rank histograms")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    recipes = [method(flags.problem, name) for name in flags.methods]
    if not flags.tables:
        recipes[0] = replace(recipes[0], steps=flags.steps or recipes[0].steps)
        for recipe in matched(flags.problem, recipes, flags.out):
            for seed in flags.seeds:
                run_one(recipe, seed, flags)
    names = [recipe.name for recipe in recipes]
    print(tables(names, flags.out))
    if flags.figure:
        draw(names, flags.out, flags.figure)


if __name__ == "__main__":
    main()
