"""Is the gap between Gaussian and Laplace drifting a matter of bandwidth? Both kernels, matched and not (docs/drifting.md).

python benchmarks/drifting_kernels.py swissroll checkerboard moons ring
python benchmarks/drifting_kernels.py digits --seeds 0 1 2
python benchmarks/drifting_kernels.py mnist-small --features --steps 450 --batch-size 64 --last --n 2000 --seeds 0

The shipped recipes. In the plane: tau = .1 in units of the data (the ring: algorithm A1 at three shares of the mean distance),
`matched` is h^2 = 3 tau^2 (an even density in two dimensions), and A1 has one temperature (laplace-a1)
or three (laplace-a1-three).
Elsewhere, in pixels (NAME-drifting) and in the features of a masked autoencoder (NAME-drifting-features, with --features):
temperatures are shares of the mean distance rho, `matched` is h^2 = tau rho. A run that is there is not made again; --tables
only prints.
One process uses one thread. Distances: sliced W2 and squared MMD (Gaussian kernel of the held-out items' median distance; by
U-statistics, so that it can be negative), against `--n` held-out items, beside as many others (the floor); of images the
Frechet distance too.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

import fewstep
from fewstep.comparison import interval
from fewstep.evaluation import Yardstick, yardstick
from fewstep.kernels import Gaussian, Laplace
from fewstep.metrics import MMD, FrechetDistance, SlicedWasserstein
from fewstep.metrics.base import Features
from fewstep.objectives import Drifting
from fewstep.pretrained import newest_checkpoint
from fewstep.recipe import Recipe
from fewstep.recipes import find_recipe
from fewstep.recipes._drifting import SHARES
from fewstep.recipes.planar import MATCHED
from fewstep.samplers import OneStep
from fewstep.shapes import flat
from fewstep.training import TrainingOptions, train

PLANE = ("swissroll", "checkerboard", "moons", "ring")
NAMES = {"sliced_w2": "sliced W2", "mmd2": "squared MMD", "frechet": "Frechet distance"}
DRAWS = 4  # of the samples, and of the floor


def method(problem: str, name: str, features: bool) -> Recipe:
    """The recipe of a problem with another kernel or normalisation."""
    recipe = find_recipe(f"{problem}-drifting" + "-features" * features)
    assert isinstance(recipe.objective, Drifting)
    regression = recipe.objective.regression
    field = regression.field
    width = regression.field.kernel.bandwidth
    if name == "gaussian":
        plane = problem in PLANE
        temperatures = regression.temperatures if plane else tuple(t**0.5 for t in regression.temperatures)
        kernel = Gaussian(bandwidth=MATCHED * width if plane else width)
        regression = replace(regression, field=replace(field, kernel=kernel), temperatures=temperatures)
    elif name == "gaussian-unmatched":
        regression = replace(regression, field=replace(field, kernel=Gaussian(bandwidth=width)))
    elif name == "laplace-a1":
        regression = replace(regression, field=replace(field, normalisation="both"))
    elif name == "laplace-a1-three":
        scaled = replace(field, kernel=Laplace(bandwidth=1.0), normalisation="both")
        regression = replace(regression, field=scaled, temperatures=SHARES, relative=True, equalise=True)
    elif name != "laplace":
        raise SystemExit(
            f"no method is called {name}: laplace, gaussian, gaussian-unmatched, laplace-a1, laplace-a1-three"
        )
    return replace(recipe, name=f"{recipe.name}-{name}", objective=replace(recipe.objective, regression=regression))


def ruler(recipe: Recipe, n: int | None) -> Yardstick:
    """Sliced W2 and MMD of items, and the Frechet distance where there are features."""
    rule = yardstick(recipe.dataset, n)
    groups: list[tuple[Features, tuple]] = [(flat, (SlicedWasserstein(), MMD()))]
    for seen, found in rule.metrics:
        kept = tuple(metric for metric in found if isinstance(metric, FrechetDistance))
        groups += [(seen, kept)] if kept else []
    return replace(rule, metrics=tuple(groups))


def result_of(flags: argparse.Namespace) -> str:
    """The file of a run's numbers."""
    return "kernels-last.json" if flags.last else "kernels.json"


def run_one(recipe: Recipe, seed: int, flags: argparse.Namespace) -> None:
    """Train and measure, unless it is done."""
    folder = flags.out / f"{recipe.name}-{seed}"
    result, rule = folder / result_of(flags), ruler(recipe, flags.n)
    if result.exists():
        found = json.loads(result.read_text())
        if (found["n"], found["steps"]) != (rule.n, recipe.steps):
            raise SystemExit(f"{folder} is of {found['steps']} steps and {found['n']} samples: give another --out")
        return
    outcome = train(replace(recipe, seed=seed), TrainingOptions(out=folder, resume=True, quiet=True))
    model = fewstep.load(folder)
    if flags.last:
        stored = safetensors.torch.load_file(str(newest_checkpoint(folder) / "training.safetensors"))
        model.load_state_dict({k.removeprefix("weights."): v for k, v in stored.items() if k.startswith("weights.")})
    cells = [rule.sample(model, OneStep(), seed=i, batch_size=2000) for i in range(DRAWS)]
    floors = [rule.floor(i) for i in range(DRAWS)]
    found = {name: [c[name] for c in cells] for name in NAMES if name in cells[0]}
    floor = {name: [c[name] for c in floors] for name in found}
    cost = {"seconds": outcome.seconds, "steps": recipe.steps}
    result.write_text(json.dumps({"distances": found, "floor": floor, "n": rule.n} | cost, indent=1))
    means = ", ".join(f"{NAMES[k]} {statistics.fmean(v):.4g}" for k, v in found.items())
    print(f"{recipe.name} seed {seed}: {outcome.seconds:.0f} s, {means}", flush=True)


def table(problem: str, flags: argparse.Namespace) -> str:
    """Markdown: a row for each method, means over seeds with Student's 95 % intervals."""
    rows, floors = [], {}
    for name in flags.methods:
        recipe = method(problem, name, flags.features)
        results = [flags.out / f"{recipe.name}-{seed}" / result_of(flags) for seed in flags.seeds]
        found = [json.loads(path.read_text()) for path in results if path.exists()]
        if not found:
            continue
        floors = {key: statistics.fmean(found[0]["floor"][key]) for key in found[0]["floor"]}
        cells = []
        for key in floors:
            values = [statistics.fmean(f["distances"][key]) for f in found]
            half = f" ± {interval(values)['half_width']:.1g}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.4g}{half}")
        rows.append(f"| {name} | " + " | ".join(cells) + f" | {statistics.fmean(f['seconds'] for f in found):.0f} |")
    head = (
        f"| {problem}{' in features' * flags.features} | " + " | ".join(NAMES[key] for key in floors) + " | seconds |"
    )
    floor = "| real vs real | " + " | ".join(f"{value:.4g}" for value in floors.values()) + " | |"
    return "\n".join(["", head, "|---" * (len(floors) + 2) + "|", *rows, floor])


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", nargs="+")
    parser.add_argument("--methods", nargs="+", default=["laplace", "gaussian", "gaussian-unmatched"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--features", action="store_true", help="in features of a masked autoencoder, not in pixels")
    parser.add_argument("--n", type=int, help="samples for each distance")
    parser.add_argument("--steps", type=int, help="of training, in place of the recipe's")
    parser.add_argument("--batch-size", type=int, help="in place of the recipe's")
    parser.add_argument(
        "--last", action="store_true", help="measure the last weights: a short run's average knows its start"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/kernels"))
    parser.add_argument("--tables", action="store_true")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    for problem in flags.problems:
        for seed in [] if flags.tables else flags.seeds:
            for name in flags.methods:
                recipe = method(problem, name, flags.features)
                budget = {"steps": flags.steps or recipe.steps, "batch_size": flags.batch_size or recipe.batch_size}
                run_one(replace(recipe, **budget), seed, flags)
    for problem in flags.problems:
        print(table(problem, flags))


if __name__ == "__main__":
    main()
