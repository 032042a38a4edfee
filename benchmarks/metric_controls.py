"""What every metric says of samples with a known fault, and of real samples: the table of docs/metrics.md.

The law is T2, three components in the plane. Accurate samples are fresh draws; narrow and wide ones are drawn in about
its mean by .8 and 1.25; biased ones are shifted by .3 standard deviations along each axis. n samples against n. The floor
is real against real: mean and 95 % range (quantiles) over repeats. The scores of forecasts get n cases of T2, each seen
through noise, `x = (x_0 + eps) / sqrt 2`, and 16 draws for each: of the exact posterior, with the same
faults about its mean and in its standard deviations, or of the prior, which ignores x. Their floor is what the posterior
itself scores. The comparisons of conditional laws get 16 more draws of the posterior. TARP has points at x, and at random.
Copying has 2000 training items of its own.

python benchmarks/metric_controls.py [--docs docs/metrics.md] takes about two minutes on one free core.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fewstep.datasets import T2
from fewstep.metrics import (
    C2ST,
    CRPS,
    MMD,
    PRDC,
    SBC,
    TARP,
    ConditionalEnergyDistance,
    Copying,
    EnergyDistance,
    EnergyScore,
    FrechetDistance,
    IntervalCoverage,
    KernelDistance,
    Metric,
    SlicedWasserstein,
    SpreadSkill,
    VarianceRatio,
    VariogramScore,
    VendiScore,
    Wasserstein,
)
from fewstep.shapes import flat

MARKS = "<!-- the table of benchmarks/metric_controls.py -->", "<!-- end of the table -->"
LAW = T2().mixture
MEAN, SD = torch.tensor([-0.4, -0.1]).double(), torch.tensor([3.365, 1.33]).double().sqrt()
HALF = 0.5 * torch.eye(2).double()  # x = (x_0 + eps) / sqrt 2
CONTROLS: dict[str, tuple[float, float] | None] = {
    "accurate": (1.0, 0.0),
    "narrow x 0.8": (0.8, 0.0),
    "wide x 1.25": (1.25, 0.0),
    "biased 0.3 sd": (1.0, 0.3),
    "the prior": None,
}
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
    Copying(train=LAW.sample((2000,), torch.Generator().manual_seed(0))),
]
SCORES: list[Metric] = [EnergyScore(), CRPS(), VariogramScore(), SpreadSkill(), IntervalCoverage(), SBC()]
CONDITIONAL: list[Metric] = [VarianceRatio(), ConditionalEnergyDistance()]
SLOW = {C2ST: 8, Wasserstein: 8}  # repeats at the larger size
SHOWN = [
    *("energy_distance", "mmd2", "sliced_w2", "w2", "frechet", "kid", "c2st"),
    *("precision", "recall", "density", "coverage", "vendi_ratio", "copying"),
    *("energy_score", "crps", "variogram_score", "spread_skill", "coverage_50", "coverage_90", "sbc_ks"),
    *("tarp_ks", "tarp_ks, random points", "variance_ratio"),
    *("variance_ratio_largest", "variance_ratio_smallest", "conditional_energy_distance"),
]
Numbers = dict[str, list[float]]


def measure(n: int, repeats: int, fault: tuple[float, float] | None, seed: int) -> Numbers:
    """Every number in independent repeats; of the prior (`None`) those of forecasts only, for its samples are accurate."""
    generator = torch.Generator().manual_seed(seed)
    found: Numbers = defaultdict(list)
    for i in range(repeats):
        if fault is not None:
            samples, reference = about(LAW.sample((n,), generator), fault, MEAN, SD), LAW.sample((n,), generator)
            for metric in DISTANCES:
                if n < SIZES[-1] or i < SLOW.get(type(metric), repeats):
                    add(found, metric(samples, reference))
        for numbers in of_forecasts(n, fault, generator):
            add(found, numbers)
    return found


def of_forecasts(n: int, fault: tuple[float, float] | None, generator: torch.Generator) -> Iterator[dict[str, float]]:
    """The numbers of 16 draws for each of n cases that are seen through noise."""
    x_0 = LAW.sample((n,), generator)
    x = (x_0 + torch.randn(n, 2, generator=generator, dtype=torch.float64)) * 0.5**0.5
    posterior = LAW.condition(x, 2**0.5 * HALF, HALF)
    draws, truth = (posterior.sample((DRAWS,), generator) for _ in range(2))
    if fault is None:
        draws = LAW.sample((DRAWS, n), generator)
    else:
        draws = about(draws, fault, posterior.mean, posterior.covariance.diagonal(dim1=-2, dim2=-1).sqrt())
    yield from (metric(draws, x_0) for metric in (*SCORES, TARP(references=2**0.5 * x)))
    at_random = TARP(references=LAW.sample((n,), generator))(draws, x_0)
    yield {f"{name}, random points": value for name, value in at_random.items()}
    yield from (metric(draws, truth) for metric in CONDITIONAL)


def about(x: Tensor, fault: tuple[float, float], mean: Tensor, sd: Tensor) -> Tensor:
    """Draws of a law with this mean and these standard deviations, as a sampler with this fault would give them."""
    factor, bias = fault
    return mean + factor * (x - mean) + bias * sd


def add(found: Numbers, numbers: dict[str, float]) -> None:
    """One more repeat."""
    for name, value in numbers.items():
        found[name].append(value)


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
            if name not in found:
                cells.append("")
                continue
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
    floors = {n: measure(n, REPEATS, CONTROLS["accurate"], seed=n) for n in SIZES}
    controls = {name: measure(SIZES[-1], AT_A_CONTROL, fault, seed=1) for name, fault in CONTROLS.items()}
    rows = table(controls, floors)
    print(rows)
    text = page.read_text()
    before, after = text[: text.index(MARKS[0])], text[text.index(MARKS[1]) :]
    page.write_text(f"{before}{MARKS[0]}\n{rows}\n{after}")
    print(f"{time.monotonic() - start:.0f} s; written to {page}")


if __name__ == "__main__":
    main()
