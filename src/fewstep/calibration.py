"""Can the draws of `q(x_0 | x_tau)` be trusted? Tests on held-out pairs `(x_0, x_tau)`, which need no truth but the data.

`x_0` and draws from the true `q(x_0 | x_tau)` are exchangeable. By tau and number M of flow steps:
- *ranks* of `x_0` among the draws, component by component, and of its distance to a reference that depends on `x_tau`
  (TARP): uniform for calibrated draws. Draws that ignore `x_tau` pass the first and fail the second. Of images on grey
  levels the draws are rounded to these first, as any image is that is stored: else a background that is drawn as
  -1 +- .01 where the data are -1 would be told from them;
- *scores*: coverage of central intervals, spread over skill, CRPS, energy and variogram score;
- *composition*: the draws of `x_tau -> x_s -> x_0`, `s = tau / 2`, beside those of `x_tau -> x_0`;
- *controls* that go the same way. Positive: the exact posterior where the data is a mixture, else the model's own draws
  with one of them as the truth, from which they cannot be told whatever the model is. Negative, so that a reader sees what is
  rejected: the same pulled towards their mean, and a sampler of the prior.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep import transition
from fewstep.bridge import sample_bridge
from fewstep.configuration import to_config
from fewstep.datasets.base import Dataset
from fewstep.datasets.mixtures import MixtureDataset
from fewstep.draws import item_generators, normal_like, seed_of_stream
from fewstep.errors import UserError
from fewstep.evaluation import uses_flow
from fewstep.metrics import CRPS, ConditionalEnergyDistance, EnergyScore, SpreadSkill, VarianceRatio, VariogramScore
from fewstep.metrics.ranks import histogram, ranks
from fewstep.metrics.tarp import tarp_ranks
from fewstep.models.base import Model, PosteriorModel
from fewstep.models.consistency import has_posterior
from fewstep.models.exact import MixturePosterior
from fewstep.pictures import to_levels
from fewstep.posterior import ParticlePosterior
from fewstep.progress import Meter
from fewstep.scaling import GaussianScaling
from fewstep.schedule import Schedule
from fewstep.shapes import flat
from fewstep.verdict import LEVELS, judge, numbers

LEAST_PAIRS, GROUPS, POOL, FACTOR = 50, 50, 5000, 0.8
EXACT, OWN, NARROWED, PRIOR = "exact posterior", "own draw as truth", f"narrowed by {FACTOR}", "prior sampler"
_STATES, _TIES, _MODEL, _TRUTH, _PRIOR, _COMPOSED = range(6)  # independent streams of one seed


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """What to test. Raises `UserError` where a number is out of range or the bins do not divide draws + 1."""

    taus: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.8)
    """Times at which the posterior is looked at."""
    flow_steps: tuple[int, ...] = (1, 4)
    """M: steps on the flow clock, for a posterior that is carried by a flow."""
    pairs: int | None = None
    """Held-out pairs (x_0, x_tau) for each time; 2000 (5000 of a mixture), or all there are, if left out."""
    draws: int = 63
    """Draws from the posterior for each pair."""
    bins: int = 16
    """Bars of the rank histograms; they divide draws + 1."""
    level: float = 0.01
    """Chance that a calibrated posterior is rejected, over all times and components of one M together."""
    controls: bool = True
    """Whether the controls are run beside the model; without them an acceptance may mean that there were too few pairs."""
    seed: int = 0
    """Seed of the pairs and the draws."""
    batch_size: int = 50
    """Pairs at a time, each with all its draws: bounds the memory, changes no number."""

    def __post_init__(self) -> None:
        if not self.taus or not all(0 < tau <= 1 for tau in self.taus):
            raise UserError(f"the times tau lie above 0 and not above 1, and there is one at least, not {self.taus}")
        if not self.flow_steps or min(*self.flow_steps, self.batch_size) < 1:
            raise UserError("flow steps and batch size count from 1 up, and there is one M at least")
        if self.draws < 4:
            raise UserError(f"ranks among {self.draws} draws say little, at least 4 expected: take 63")
        histogram(torch.zeros(1, 1, dtype=torch.int64), self.draws, self.bins)  # its message says which numbers fit
        if self.pairs is not None and self.pairs < LEAST_PAIRS:
            raise UserError(f"{self.pairs} pairs show nothing, at least {LEAST_PAIRS} expected: take 2000")
        if not 0 < self.level < 1 or self.seed < 0:
            raise UserError(f"the level lies in (0, 1) and the seed counts from 0, not {self.level} and {self.seed}")


def calibrate(
    model: Model, dataset: Dataset, plan: CalibrationPlan, data: Path | None = None, quiet: bool = True
) -> dict[str, Any]:
    """The tests as JSON (keys in docs/json.md).

    Raises `UserError` where the model has no posterior, or the data set has too few held-out items.
    """
    if not has_posterior(model):
        raise UserError(
            f"a {type(model).__name__} has no posterior q(x_0 | x_tau) to calibrate: give a run that has one, such as "
            "one of an stmd recipe"
        )
    test = dataset.test(data)
    x_0 = test.up_to(plan.pairs or (5000 if test.size is None else 2000), seed=plan.seed)["x_0"]
    if len(x_0) < LEAST_PAIRS:
        raise UserError(f"{len(x_0)} held-out items show nothing, at least {LEAST_PAIRS} expected: hold out more data")
    pool = dataset.train(data).up_to(POOL, seed=plan.seed)["x_0"]
    std = flat(x_0).double().std(dim=0)
    varying = std > 1e-3 * std.square().mean().sqrt()
    exact = MixturePosterior(dataset.mixture, model.schedule) if isinstance(dataset, MixtureDataset) else None
    prior = Prior(pool, model.schedule)
    counts = plan.flow_steps if uses_flow(model) else (1,)
    known, own, positive = (exact, False, EXACT) if exact is not None else (model, True, OWN)
    families: dict[str, list[dict[str, Any]]] = {}
    with Meter("calibration", len(plan.taus) * len(counts), unit="case", quiet=quiet) as meter:
        for done, tau in enumerate(plan.taus):
            trial, truth = _Trial.at(tau, x_0, pool, varying, test.step, model.schedule, plan), None
            if plan.controls or not own:
                row, truth = _measure(known, trial, counts[0], _TRUTH, keep=not own, own=own)
                families.setdefault(positive, []).append(row)
            for m in counts:
                row, draws = _measure(model, trial, m, _MODEL, compose=True, keep=truth is not None)
                if truth is not None and draws is not None:
                    row["exact"] = VarianceRatio()(draws, truth) | ConditionalEnergyDistance()(draws, truth)
                families.setdefault(f"M = {m}", []).append(row)
            if plan.controls:
                row, _ = _measure(known, trial, counts[0], _TRUTH, factor=FACTOR, own=own)
                families.setdefault(NARROWED, []).append(row)
                families.setdefault(PRIOR, []).append(_measure(prior, trial, 1, _PRIOR)[0])
            meter.update((done + 1) * len(counts))
    components = int(varying.sum())
    return {
        "reference": {"dataset": to_config(dataset), "split": "test", "n": len(x_0)},
        **{name: getattr(plan, name) for name in ("draws", "bins", "level", "seed")},
        "components": components,
        "components_left_out": len(varying) - components,
        "grey_step": test.step,
        "levels": list(LEVELS),
        "families": [
            {"name": name, "control": not name.startswith("M = "), "positive": name in (EXACT, OWN)}
            | {"calibrated": judge(rows, plan.level), "rows": rows}
            for name, rows in sorted(families.items(), key=lambda item: not item[0].startswith("M = "))
        ],
    }


class Prior(PosteriorModel):
    """Items of the training data whatever `x_tau` is: the ranks of the truth among them are uniform all the same."""

    pool: Tensor

    def __init__(self, pool: Tensor, schedule: Schedule):
        super().__init__(schedule, tuple(pool.shape[1:]))
        self.register_buffer("pool", pool)

    def forward(self, x_tau: Tensor, tau: Tensor | float) -> ParticlePosterior:
        return ParticlePosterior(self.pool, self.pool.new_zeros(len(x_tau), len(self.pool)))


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """The pairs at one tau with a reference for each.

    `varying`: components that have ranks; `step`: that of the grey levels; `linear`: R^2 of x_tau.
    """

    x_0: Tensor
    x_tau: Tensor
    references: Tensor
    tau: float
    linear: float
    varying: Tensor
    step: float | None
    plan: CalibrationPlan

    @classmethod
    def at(
        cls,
        tau: float,
        x_0: Tensor,
        pool: Tensor,
        varying: Tensor,
        step: float | None,
        schedule: Schedule,
        plan: CalibrationPlan,
    ) -> "_Trial":
        """References are draws from the posterior that Gaussian data of these moments would have: functions of x_tau."""
        at, generators = torch.tensor(tau, dtype=torch.float64), _generators(plan, _STATES, 0, len(x_0))
        x_tau = transition.sample(x_0, torch.zeros_like(at), at, schedule, generators)
        mean = pool.mean(0)
        std = (pool - mean).square().mean().sqrt()
        offset, scale = GaussianScaling().coefficients(x_tau, at, schedule, mean, std)
        references, linear = offset + scale * normal_like(x_0, generators), float(1 - (scale / std) ** 2)
        return cls(
            x_0=x_0,
            x_tau=x_tau,
            references=references,
            tau=tau,
            linear=linear,
            varying=varying,
            step=step,
            plan=plan,
        )

    def stored(self, x: Tensor) -> Tensor:
        """Images on the grey levels of the data, anything else as it is."""
        return to_levels(x, self.step)


def _generators(plan: CalibrationPlan, stream: int, first: int, last: int) -> list[torch.Generator]:
    """One for each of the pairs first .. last - 1."""
    return item_generators(last - first, seed_of_stream(plan.seed, stream), first)


@torch.no_grad()
def _measure(
    model: PosteriorModel,
    trial: _Trial,
    flow_steps: int,
    stream: int,
    *,
    factor: float = 1.0,
    compose: bool = False,
    keep: bool = False,
    own: bool = False,
) -> tuple[dict[str, Any], Tensor | None]:
    """A row: every test of a model at one tau; and the draws `(m, n, ...)` themselves, where they are to be kept.

    The draws are pulled towards their mean by `factor`. With `own`, one more draw takes the place of the truth. Works through
    groups of pairs, whose scores are what the intervals resample: how the pairs are grouped depends on their number alone.
    """
    n, half = len(trial.x_0), trial.plan.draws // 2
    groups: list[dict[str, float]] = []
    found: dict[str, list[Tensor]] = {"ranks": [], "tarp": [], "composed": [], "centres": [], "draws": []}
    for first, last in pairwise(np.linspace(0, n, min(GROUPS, n // 2) + 1).round().astype(int).tolist()):
        starts = range(first, last, trial.plan.batch_size)
        parts = [
            _draw(model, trial, flow_steps, stream, i, min(i + trial.plan.batch_size, last), compose, own)
            for i in starts
        ]
        draws, means, composed = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        x_0, draws = (draws[0], draws[1:]) if own else (trial.x_0[first:last], draws)
        centre = draws.mean(0)
        draws = centre + factor * (draws - centre) if factor != 1 else draws
        references, ties = trial.references[first:last], _generators(trial.plan, _TIES, first, last)[0]
        stored, stored_truth = trial.stored(draws), trial.stored(x_0)
        group = _scores(draws, x_0) | {"size": last - first, "rmse_2": (means[0] - x_0).double().square().mean().item()}
        if compose:
            group |= {f"composed_{name}": value for name, value in _scores(composed, x_0).items()}
            # the first draws against what came of the last ones, which are independent of them
            group["distance"] = ConditionalEnergyDistance()(draws[:half], composed[half:])[
                "conditional_energy_distance"
            ]
            found["composed"].append(tarp_ranks(trial.stored(composed), stored_truth, references, ties))
        groups.append(group)
        found["ranks"].append(ranks(stored, stored_truth, ties)[:, trial.varying])
        found["tarp"].append(tarp_ranks(stored, stored_truth, references, ties))
        found["centres"].append(flat(centre))
        found["draws"] += [draws] if keep else []
    ranked = {name: torch.cat(parts) for name, parts in found.items() if parts and name != "draws"}
    row = {"tau": trial.tau, "s": trial.tau / 2, "flow_steps": flow_steps, "explained_linearly": trial.linear}
    row |= numbers(groups, ranked, trial.plan.draws, trial.plan.bins, trial.plan.seed)
    return row, torch.cat(found["draws"], dim=1) if keep else None


def _draw(
    model: PosteriorModel, trial: _Trial, flow_steps: int, stream: int, first: int, last: int, compose: bool, more: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the pairs first .. last - 1: draws `(m, n, ...)`, the posterior's mean `(1, n, ...)`, and composed draws.

    `more`: m + 1 draws.

    A composed draw goes on from a given one: `x_s ~ p(x_s | x_0, x_tau)`, then `x_0 ~ q(x_0 | x_s)`.
    """
    m, s, x_tau = trial.plan.draws + more, trial.tau / 2, trial.x_tau[first:last]
    generators = _generators(trial.plan, stream, first, last)
    q = model(x_tau.to(model.like), trial.tau)
    draws = q.sample((m,), flow_steps=flow_steps, generator=generators).to(x_tau)
    means = q.mean(generator=generators).to(x_tau)[None]
    if not compose:
        return draws, means, draws[:0]
    each = _generators(trial.plan, _COMPOSED, first, last) * m  # of a pair: one stream for all its draws
    ends = draws.flatten(0, 1), x_tau.expand_as(draws).flatten(0, 1)
    x_s = sample_bridge(*ends, s, trial.tau, model.schedule, each)
    composed = model(x_s.to(model.like), s).sample(flow_steps=flow_steps, generator=each)
    return draws, means, composed.to(x_tau).reshape(draws.shape)


def _scores(draws: Tensor, x_0: Tensor) -> dict[str, float]:
    """What adds up over pairs: squares in place of root mean squares."""
    spread_skill = SpreadSkill()(draws, x_0)
    scores = {"spread_2": spread_skill["spread"] ** 2, "skill_2": spread_skill["skill"] ** 2}
    scores |= EnergyScore()(draws, x_0) | CRPS()(draws, x_0)
    return scores | (VariogramScore()(draws, x_0) if x_0[0].numel() > 1 else {})
