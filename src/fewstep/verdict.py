"""From ranks and scores to numbers with errors, and from these to a word: calibrated, too narrow, too wide, biased ...

The rules, for a family of rows (one M, all tau) at a level such as 1 %. A row has two p-values: of its ranks, which is
Bonferroni's over components, and of TARP. Holm's method adjusts those of all the rows together, so that a calibrated family
keeps all its rows `calibrated` with probability 1 - level or more. Where the ranks are rejected, every word that holds:
- *too narrow*: the ranks vary around their mean more than uniform ones do (z-test at the level), and the 95 % interval of
  spread/skill lies below 1;
- *too wide*: they vary less, and the interval lies above 1;
- *biased*: the mean rank of some component is off the middle (z-test, the level shared among components);
- *wrong shape*: none of these.
Where only TARP is rejected, the components are right one by one, and the word is
- *ignoring x_tau*: x_tau explains of the draws' variance less than half of what a linear regression on x_tau explains;
- *wrong shape* otherwise: the dependence between components, or on x_tau, is wrong.
"""

import math
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from fewstep.metrics.ranks import column_p_values, coverage, histogram, randomised

CALIBRATED, NARROW, WIDE, BIASED = "calibrated", "too narrow", "too wide", "biased"
SHAPE, IGNORING = "wrong shape", "ignoring x_tau"
RESAMPLES = 1000
LEVELS = tuple(i / 20 for i in range(1, 20))


def numbers(groups: list[dict[str, float]], found: dict[str, Tensor], m: int, bins: int, seed: int) -> dict[str, Any]:
    """The numbers of one row: keys in docs/json.md.

    `groups` are the mean scores of groups of cases, each with its `size`; `found` holds of all cases, in their order, the
    `ranks` `(n, d)`, those of TARP `(n, 1)`, the `centres` `(n, d)` of the m draws, and perhaps TARP of `composed` draws.
    """
    sizes, ties = [int(group["size"]) for group in groups], torch.Generator().manual_seed(seed)
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    parts = found["ranks"].split(sizes)
    scores = Grouped([g | _curves(part, m, bins, levels) for g, part in zip(groups, parts, strict=True)], seed)
    bars, inside = [f"bar {i}" for i in range(bins)], [f"inside {level:g}" for level in LEVELS]
    ratio, interval = scores.root_ratio("spread_2", "skill_2", 1 + 1 / m)
    within, between = scores.mean("spread_2"), found["centres"].double().var(dim=0).mean().item()
    signal = max(0.0, between - within / m)  # the centre of m draws varies also because they are m
    row = _rank_numbers(found["ranks"], m, ties) | {
        "rank_histogram": [scores.mean(name) for name in bars],
        "rank_histogram_se": [scores.error(name) for name in bars],
        "tarp_p": _rank_numbers(found["tarp"], m, ties)["rank_p"],
        "tarp": (levels[:, None] * (m + 1) - found["tarp"].flatten()).clamp(0, 1).mean(1).tolist(),
        "coverage": [scores.mean(name) for name in inside],
        "coverage_se": [scores.error(name) for name in inside],
        "coverage_50": scores.mean("inside 0.5"),
        "coverage_90": scores.mean("inside 0.9"),
        "coverage_90_interval": scores.interval("inside 0.9"),
        "spread_skill": ratio,
        "spread_skill_interval": interval,
        "spread": math.sqrt(within),
        "skill": math.sqrt(scores.mean("skill_2")),
        "mean_rmse": math.sqrt(scores.mean("rmse_2")),
        "explained": signal / max(signal + within, 1e-12),
        "energy_score": scores.mean("energy_score"),
        "energy_score_interval": scores.interval("energy_score"),
        "crps": scores.mean("crps"),
    }
    if "variogram_score" in scores.names:
        row["variogram_score"] = scores.mean("variogram_score")
    if "distance" in scores.names:
        ratio, interval = scores.root_ratio("composed_spread_2", "composed_skill_2", 1 + 1 / m)
        distance, error = scores.mean("distance"), scores.error("distance")
        row["composition"] = {
            "spread_skill": ratio,
            "spread_skill_interval": interval,
            "tarp_p": _rank_numbers(found["composed"], m, ties)["rank_p"],
            "energy_score": scores.mean("composed_energy_score"),
            "energy_distance": distance,
            "energy_distance_se": error,
            "energy_distance_p": _upper_tail(distance / max(error, 1e-12), len(groups)),
        }
    return row


def _upper_tail(z: float, groups: int) -> float:
    """The one-sided p-value of a mean over groups in units of its bootstrap error, `sqrt((groups - 1) / groups)` too small."""
    from scipy.stats import t

    return float(t.sf(z * math.sqrt((groups - 1) / groups), groups - 1))


def _rank_numbers(rank: Tensor, m: int, generator: torch.Generator) -> dict[str, Any]:
    """What the ranks `(n, d)` on `0 .. m` say: p-values, and by how much they are off the middle and spread out.

    `rank_p_components` are of two tests each, of the ranks and of their distance from the middle; `rank_p` is for all
    components together. `rank_means` are the components' mean ranks, 0.5 in the middle, `rank_mean_z` the largest distance
    from there in standard errors. `rank_variance` is the mean over components of the variance, 1 for uniform ranks, above
    1 for too narrow draws, `rank_variance_z` its distance from 1 in standard errors; these are over cases, so that
    components may depend on each other.
    """
    n, d = rank.shape
    p = column_p_values(randomised(rank, m, generator))
    level = (rank.double() + 0.5) / (m + 1)
    apart = (level - level.mean(0)).square()
    z = (level.mean(0) - 0.5).abs() / (apart.mean(0).sqrt() / math.sqrt(n)).clamp_min(1e-12)
    variance = apart.mean(1) * 12 / (1 - (m + 1) ** -2) * n / (n - 1)  # of ranks on 0 .. m, not of numbers on [0, 1]
    error = variance.std().item() / math.sqrt(n)
    return {
        "rank_p": min(1.0, d * p.min().item()),
        "rank_p_components": p.tolist(),
        "rank_means": level.mean(0).tolist(),
        "rank_mean_z": z.max().item(),
        "rank_variance": variance.mean().item(),
        "rank_variance_z": (variance.mean().item() - 1) / max(error, 1e-12),
    }


def _curves(rank: Tensor, m: int, bins: int, levels: Tensor) -> dict[str, float]:
    """Histogram of the ranks of all components, uniform at 1, and coverage of intervals: `{"bar 0": .., "inside 0.05": ..}`."""
    bars = (histogram(rank, m, bins).sum(1) * bins / rank.numel()).tolist()
    inside = coverage(rank, m, levels).mean(1).tolist()
    named = {f"bar {i}": bar for i, bar in enumerate(bars)}
    return named | {f"inside {level:g}": share for level, share in zip(LEVELS, inside, strict=True)}


class Grouped:
    """Scores of groups of cases: their means over all cases, standard errors, and bootstrap intervals over the groups."""

    def __init__(self, groups: list[dict[str, float]], seed: int):
        self.names = list(groups[0])
        self.values = torch.tensor([[group[name] for name in self.names] for group in groups], dtype=torch.float64)
        weights = self.values[:, self.names.index("size")]
        self.weights = weights / weights.sum()
        pick = torch.randint(len(groups), (RESAMPLES, len(groups)), generator=torch.Generator().manual_seed(seed))
        drawn = torch.zeros(RESAMPLES, len(groups), dtype=torch.float64).scatter_add_(1, pick, self.weights[pick])
        self.resampled = drawn @ self.values / drawn.sum(1, keepdim=True)

    def mean(self, name: str) -> float:
        """The mean of a score over all cases."""
        return (self.weights @ self.values[:, self.names.index(name)]).item()

    def error(self, name: str) -> float:
        """Its standard error."""
        return self.resampled[:, self.names.index(name)].std().item()

    def interval(self, name: str) -> list[float]:
        """Its 95 % interval."""
        return _central(self.resampled[:, self.names.index(name)])

    def root_ratio(self, a: str, b: str, factor: float = 1.0) -> tuple[float, list[float]]:
        """`sqrt(factor E a / E b)` and its 95 % interval."""
        resampled = self.resampled[:, self.names.index(a)] / self.resampled[:, self.names.index(b)]
        return math.sqrt(factor * self.mean(a) / self.mean(b)), _central((factor * resampled).sqrt())


def _central(values: Tensor) -> list[float]:
    return values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()


def holm(p_values: list[float]) -> list[float]:
    """Adjusted p-values: those below a level are rejected with family-wise error at most the level (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for done, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def judge(family: list[dict[str, Any]], level: float) -> bool:
    """Write adjusted p-values, `components_rejected` and `words` into each row; whether all of them are calibrated.

    Rows with a `composition` are told whether it `agrees`: Holm's method again, for its energy distance from the draws.
    """
    tests = [(row, name) for row in family for name in ("rank_p", "tarp_p")]
    for (row, name), p in zip(tests, holm([row[name] for row, name in tests]), strict=True):
        row[f"{name}_adjusted"] = p
    for row in family:
        row["words"] = words(row, level)
        row["components_rejected"] = sum(p < level / len(row["rank_p_components"]) for p in row["rank_p_components"])
    composed = [row["composition"] for row in family if "composition" in row]
    for composition, p in zip(composed, holm([c["energy_distance_p"] for c in composed]), strict=True):
        composition["agrees"] = p >= level
    return all(row["words"] == [CALIBRATED] for row in family)


def words(row: dict[str, Any], level: float) -> list[str]:
    """The words for a row whose p-values are adjusted, the one with the strongest evidence first."""
    if row["rank_p_adjusted"] >= level:
        if row["tarp_p_adjusted"] >= level:
            return [CALIBRATED]
        return [IGNORING if row["explained"] < row["explained_linearly"] / 2 else SHAPE]
    low, high = row["spread_skill_interval"]
    z, least = row["rank_variance_z"], _critical(level)
    found = {NARROW: z} if z > least and high < 1 else {WIDE: -z} if z < -least and low > 1 else {}
    if row["rank_mean_z"] > _critical(level / len(row["rank_p_components"])):
        found[BIASED] = row["rank_mean_z"]
    return sorted(found, key=found.__getitem__, reverse=True) or [SHAPE]


def _critical(level: float) -> float:
    """What `|z|` of a standard normal exceeds with this probability."""
    return NormalDist().inv_cdf(1 - level / 2)
