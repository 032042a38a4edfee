"""Where drifting is score matching, and where it is not: the figures of arXiv 2603.07514, for populations beside finite samples.

Mixtures of six normal laws of deviation .5, "ring" with centres evenly on a circle of radius 3 in a random plane for each law, so
that both have one mean, and "random centres", six of norm 3. A Laplace kernel of `tau = share rho`, rho the root mean square
distance. Drift `D = V_p - V_q` against the score difference `S` of the smoothed laws, at points of q. The population's fields are
exact (`score_view.decompose_population`); the finite-sample ones are of one cloud for each law, used for D and for S, as in
the paper. Where its claim does not hold is a case of its own: rings (one mean), unequal radii, and that shared noise.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.kernels import Gaussian, Laplace
from fewstep.progress import Meter
from fewstep.score_view import (
    IsotropicMixture,
    alignment,
    decompose,
    decompose_population,
    mean_square_distance,
)

RADIUS, STD, MODES = 3.0, 0.5, 6


@dataclass(frozen=True, kw_only=True)
class DriftingPlan:
    """What to look at. Raises `UserError` where a number is out of range."""

    dims: tuple[int, ...] = (2, 16, 64, 256)
    """Dimensions D."""
    draws: int = 3
    """Draws of planes and centres for each D."""
    points: int = 256
    """Points of q where the fields are compared."""
    samples: int = 1024
    """Points of each law in the finite samples."""
    share: float = 0.2
    """Temperature of the kernel, as a share of the root mean square distance."""
    grid: int = 15
    """Arrows along each side of the fields in the plane."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        if min(self.dims, default=0) < 2:
            raise UserError(f"dimensions count from 2 up, one at least: not {self.dims}")
        if len(set(self.dims)) < len(self.dims):
            raise UserError(f"a dimension is given twice: {self.dims}")
        if min(self.draws, self.points, self.grid) < 1 or self.samples < 2 or self.seed < 0:
            raise UserError("draws, points and grid count from 1 up, samples from 2 up, the seed from 0")
        if not 0 < self.share < math.inf:
            raise UserError(f"the share is above 0 and finite, not {self.share}")


Laws = tuple[IsotropicMixture, IsotropicMixture]


def ring(dim: int, generator: torch.Generator, std: float = STD) -> IsotropicMixture:
    """Six centres evenly on a circle in a random plane."""
    plane = torch.linalg.qr(torch.randn(dim, 2, generator=generator, dtype=torch.float64)).Q
    angles = 2 * math.pi * torch.arange(MODES, dtype=torch.float64) / MODES
    centres = RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1) @ plane.T
    return _mixture(centres, std)


def random_centres(dim: int, generator: torch.Generator, std: float = STD) -> IsotropicMixture:
    """Six centres in random directions."""
    centres = torch.randn(MODES, dim, generator=generator, dtype=torch.float64)
    return _mixture(RADIUS * torch.nn.functional.normalize(centres, dim=1), std)


def _mixture(centres: Tensor, std: float) -> IsotropicMixture:
    return IsotropicMixture(weights=torch.full((MODES,), 1 / MODES, dtype=torch.float64), means=centres, std=std)


CASES: dict[str, tuple[Callable[[int, torch.Generator], Laws], str]] = {
    "random centres": (
        lambda d, g: (random_centres(d, g), random_centres(d, g)),
        "the paper's claim, that the residual vanishes as D grows, holds by its theorem",
    ),
    "rings": (
        lambda d, g: (ring(d, g), ring(d, g)),
        "the claim does not hold: both laws have one mean, so that the drift vanishes as fast as the residual does",
    ),
    "unequal radii": (
        lambda d, g: (random_centres(d, g), random_centres(d, g, 0.8)),
        "the claim does not hold: deviations .5 and .8, as early in a training; the theorem wants one radius",
    ),
}
SHARED = "the claim is overstated: drift and scores are of the same clouds, and in many dimensions it is their noise that agrees"


def diagnose(plan: DriftingPlan, quiet: bool = True) -> dict[str, Any]:
    """Everything as JSON (keys in docs/json.md)."""
    cases = []
    with Meter("alignment", len(CASES) * len(plan.dims) * plan.draws, unit="case", quiet=quiet) as meter:
        done = 0
        for name, (laws, verdict) in CASES.items():
            rows = []
            for dim in plan.dims:
                found: dict[str, list[dict[str, float]]] = {"population": [], "finite": []}
                for draw in range(plan.draws):
                    for kind, numbers in _aligned(laws, dim, plan, draw).items():
                        found[kind].append(numbers)
                    done += 1
                    meter.update(done)
                rows.append({"dim": dim} | {kind: _summary(numbers) for kind, numbers in found.items()})
            cases.append({"name": name, "verdict": verdict, "holds": name == "random centres", "rows": rows})
    return {
        "kernel": {"name": "Laplace", "share": plan.share},
        "cases": cases,
        "shared_noise": SHARED,
        "fields": [_plane(kernel, plan) for kernel in (Gaussian(bandwidth=1.0), Laplace(bandwidth=1.0))],
        "residuals": residual_cases(),
    }


def _aligned(laws: Callable, dim: int, plan: DriftingPlan, draw: int) -> dict[str, dict[str, float]]:
    """The numbers of one draw of laws: of the populations, and of samples of them, at the same points."""
    generator = torch.Generator().manual_seed(plan.seed + 1009 * draw + dim)
    p, q = laws(dim, generator)
    rho = math.sqrt(mean_square_distance(p, q))
    kernel = Laplace(bandwidth=plan.share * rho)
    x = q.sample(plan.points, generator)
    exact = [decompose_population(kernel, x, law) for law in (p, q)]
    clouds = [law.sample(plan.samples, generator) for law in (p, q)]
    finite = [decompose(kernel, x, cloud) for cloud in clouds]
    found = {"population": exact, "finite": finite}
    numbers = {kind: alignment(parts[0], parts[1], plan.share * rho**2) for kind, parts in found.items()}
    drift = exact[0].shift - exact[1].shift
    matched = [decompose_population(Gaussian(bandwidth=math.sqrt(plan.share) * rho), x, law).shift for law in (p, q)]
    off = (matched[0] - matched[1] - drift).square().sum() / drift.square().sum()
    numbers["population"]["relative_to_gaussian"] = off.item()
    return numbers


def _summary(draws: list[dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean and deviation (None of one draw) over the draws of every number, and of the ratios to the theory's factors."""
    for numbers in draws:
        numbers |= {f"c_star_over_{c}": numbers["c_star"] / numbers[c] for c in ("c_alpha", "c_rho")}
    return {
        key: {
            "mean": statistics.fmean(n[key] for n in draws),
            "sd": statistics.stdev([n[key] for n in draws]) if len(draws) > 1 else None,
        }
        for key in draws[0]
    }


def slopes(rows: list[dict[str, Any]], key: str, least: int = 64) -> float:
    """The slope of log(mean) of a population's number against log D, by least squares over D from `least` up."""
    found = [(math.log(r["dim"]), math.log(r["population"][key]["mean"])) for r in rows if r["dim"] >= least]
    return statistics.linear_regression(*zip(*found, strict=True)).slope if len(found) > 1 else math.nan


def _plane(kernel: Gaussian | Laplace, plan: DriftingPlan) -> dict[str, Any]:
    """Drift and score difference in the plane, of a ring p and a wide normal law q, on a grid; their cosine at points of q."""
    generator = torch.Generator().manual_seed(plan.seed)
    p, q = ring(2, generator), _mixture(torch.zeros(MODES, 2, dtype=torch.float64), 1.5)
    axis = torch.linspace(-4.5, 4.5, plan.grid, dtype=torch.float64)
    clouds = [law.sample(plan.samples, generator) for law in (p, q)]
    grid, at_q = torch.cartesian_prod(axis, axis), q.sample(plan.points, generator)
    x = torch.cat([grid, at_q])
    found: dict[str, Any] = {"kernel": type(kernel).__name__, "bandwidth": kernel.bandwidth, "points": grid.tolist()}
    for kind, parts in (
        ("population", [decompose_population(kernel, x, law) for law in (p, q)]),
        ("finite", [decompose(kernel, x, cloud) for cloud in clouds]),
    ):
        drift, score = (getattr(parts[0], name) - getattr(parts[1], name) for name in ("shift", "score"))
        cosine = torch.cosine_similarity(drift, score, dim=1)[len(grid) :]
        found[kind] = {
            "drift": drift[: len(grid)].tolist(),
            "score": score[: len(grid)].tolist(),
            "cosine": {"mean": cosine.mean().item(), "least": cosine.min().item()},
        }
    return found | {"p": clouds[0][:200].tolist(), "q": clouds[1][:200].tolist()}


def residual_cases() -> list[dict[str, Any]]:
    """The residual across the score at the origin, for a Laplace kernel of bandwidth 1 and three clouds (figure 2)."""
    near, far = 0.5, 1.5
    share = math.e ** (far - near)  # as many times more points far away weigh the same
    cases = {
        "far mass across the score": [(far, 70.0, share), (near, -70.0, 1.0)],
        "near mass along the score": [(near, 10.0, 1.0), (near, -10.0, 1.0)],
        "far mass on both sides": [(far, 70.0, share), (far, -70.0, share), (near, 0.0, 2.0)],
    }
    found = []
    for name, clusters in cases.items():
        generator, parts = torch.Generator().manual_seed(0), []
        for r, degrees, weight in clusters:
            centre = r * torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
            spread = torch.randn(round(100 * weight), 2, generator=generator, dtype=torch.float64)
            parts.append(centre.double() + 0.08 * (spread - spread.mean(0)))
        cloud = torch.cat(parts)
        at = decompose(Laplace(bandwidth=1.0), torch.zeros(1, 2, dtype=torch.float64), cloud)
        across = (at.delta_across.norm() / at.shift.norm()).item()
        vectors = {k: getattr(at, k)[0].tolist() for k in ("shift", "score", "delta", "delta_across")}
        found.append({"name": name, "across": across, "points": cloud.tolist()} | vectors)
    return found
