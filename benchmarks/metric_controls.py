"""What every metric says of samples with a known fault, and of real samples: the table of docs/metrics.md.

The law is T2, three components in the plane. Accurate samples are fresh draws; narrow and wide ones are drawn in about
its mean by .8 and 1.25; biased ones are shifted by .3 standard deviations along each axis. n samples against n. The floor
is real against real: mean and 95 % range (quantiles) over repeats. The scores of forecasts get n cases with 16 draws each, case
and draws from one law, and the same faults of the draws; their floor is what the true law scores.

python benchmarks/metric_controls.py [--docs docs/metrics.md] takes less than two minutes on one free core.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from fewstep.datasets import T2
from fewstep.metrics import (
    C2ST,
    MMD,
    PRDC,
    EnergyDistance,
    EnergyScore,
    FrechetDistance,
    KernelDistance,
    Metric,
    SlicedWasserstein,
    SpreadSkill,
    VendiScore,
    Wasserstein,
)
from fewstep.shapes import flat

MARKS = "<!-- the table of benchmarks/metric_controls.py -->", "<!-- end of the table -->"
LAW = T2().mixture
MEAN, SD = torch.tensor([-0.4, -0.1]).double(), torch.tensor([3.365, 1.33]).double().sqrt()
CONTROLS = {"accurate": (1.0, 0.0), "narrow x 0.8": (0.8, 0.0), "wide x 1.25": (1.25, 0.0), "biased 0.3 sd": (1.0, 0.3)}
SIZES, DRAWS = (500, 2000), 16
REPEATS, AT_A_CONTROL = 30, 3
DISTANCES: list[Metric] = [
    EnergyDistance(),
    MMD(),
    SlicedWasserstein(),
    Wasserstein(),
    FrechetDistance(features=flat),
    KernelDistance(features=flat),
    C2ST(),
    PRDC(),
    VendiScore(),
]
SCORES: list[Metric] = [EnergyScore(), SpreadSkill()]
SLOW = {C2ST: 8, Wasserstein: 8}  # repeats at the larger size
SHOWN = [
    *("energy_distance", "mmd2", "sliced_w2", "w2", "frechet", "kid", "c2st"),
    *("precision", "recall", "density", "coverage", "vendi_ratio", "energy_score", "spread_skill"),
]
Numbers = dict[str, list[float]]


def measure(n: int, repeats: int, factor: float, bias: float, seed: int) -> Numbers:
    """Every number in independent repeats."""
    generator, found = torch.Generator().manual_seed(seed), defaultdict(list)
    for i in range(repeats):
        samples, reference = faulty(LAW.sample((n,), generator), factor, bias), LAW.sample((n,), generator)
        draws = faulty(LAW.sample((DRAWS, n), generator), factor, bias)
        for x, metrics in ((samples, DISTANCES), (draws, SCORES)):
            for metric in metrics:
                if n < SIZES[-1] or i < SLOW.get(type(metric), repeats):
                    for name, value in metric(x, reference).items():
                        found[name].append(value)
    return found


def faulty(x: Tensor, factor: float, bias: float) -> Tensor:
    """Draws of the law as a sampler with this fault would give them."""
    return MEAN + factor * (x - MEAN) + bias * SD


def mean(values: list[float]) -> float:
    """Over repeats."""
    return sum(values) / len(values)


def span(values: list[float]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles."""
    low, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high


def table(controls: dict[str, Numbers], floors: dict[int, Numbers]) -> str:
    """Markdown; a number of a fault stands out where it lies outside the floor's range at the larger size."""
    heads = ["number", *controls, *(f"floor, n = {n}" for n in floors)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in SHOWN:
        low, high = span(floors[SIZES[-1]][name])
        cells = [f"`{name}`"]
        for found in controls.values():
            value = mean(found[name])
            cells.append(f"{value:.3g}" if low <= value <= high else f"**{value:.3g}**")
        for found in floors.values():
            low_n, high_n = span(found[name])
            cells.append(f"{mean(found[name]):.3g} [{low_n:.3g}, {high_n:.3g}]")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and put it between the marks of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs" / "metrics.md")
    page, start = parser.parse_args().docs, time.monotonic()
    torch.set_num_threads(1)
    floors = {n: measure(n, REPEATS, 1.0, 0.0, seed=n) for n in SIZES}
    controls = {name: measure(SIZES[-1], AT_A_CONTROL, *fault, seed=1) for name, fault in CONTROLS.items()}
    rows = table(controls, floors)
    print(rows)
    text = page.read_text()
    before, after = text[: text.index(MARKS[0])], text[text.index(MARKS[1]) :]
    page.write_text(f"{before}{MARKS[0]}\n{rows}\n{after}")
    print(f"{time.monotonic() - start:.0f} s; written to {page}")


if __name__ == "__main__":
    main()
