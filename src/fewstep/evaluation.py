"""How far samples are from the data, and whether the draws of `q(x_0 | x_tau)` can be trusted.

Two tables. Of the samples: distances to held-out data for every (N, M), each beside its real-versus-real floor, which
is the same distance between training data and held-out data at the same sizes. Of the posterior: for held-out pairs
`(x_0, x_tau)`, spread over skill and the energy score of draws, by tau and flow steps; this needs no truth but the
data.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import transition
from fewstep.datasets.base import Dataset
from fewstep.draws import item_generators
from fewstep.errors import UserError
from fewstep.features import classifier_of
from fewstep.metrics import EnergyDistance, EnergyScore, FrechetDistance, Metric, SlicedWasserstein, SpreadSkill
from fewstep.models.base import EvaluationCounter, Model, PosteriorModel
from fewstep.networks.classifier import Classifier
from fewstep.posterior import FlowPosterior
from fewstep.pretrained import sample
from fewstep.progress import Meter
from fewstep.samplers.ancestral import Ancestral


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What to measure. Raises `UserError` where a number is out of range."""

    n: int | None = None
    """Number of samples; as many as there are held-out items (at most 10000; 6000 of a mixture) if left out."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    """N: steps on the diffusion clock."""
    flow_steps: tuple[int, ...] = (1, 4)
    """M: steps on the flow clock."""
    taus: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.8)
    """Times at which the posterior is looked at."""
    pairs: int = 500
    """Held-out pairs (x_0, x_tau) for each time."""
    draws: int = 16
    """Draws from the posterior for each pair."""
    seed: int = 0
    """Seed of the samples."""
    batch_size: int = 500
    """Items at a time: bounds the memory, changes no sample."""

    def __post_init__(self) -> None:
        if min(*self.steps, *self.flow_steps, self.pairs, self.batch_size, self.n or 1) < 1 or self.n == 0:
            raise UserError("n, steps, flow steps, pairs and batch size count from 1 up")
        if self.seed < 0:
            raise UserError(f"the seed counts from 0 up, not {self.seed}")
        if self.draws < 2:
            raise UserError("the spread of draws needs at least 2 of them")
        if not all(0 < tau <= 1 for tau in self.taus):
            raise UserError(f"the times tau lie above 0 and not above 1, not {self.taus}")


def evaluate(
    model: Model,
    dataset: Dataset,
    plan: EvaluationPlan,
    data: Path | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """The two tables as JSON; keys in docs/json.md."""
    test = dataset.test(data)
    with_features = dataset.num_classes > 0 and len(dataset.item_shape) == 3
    if with_features and plan.n is not None and plan.n <= Classifier.FEATURES:
        raise UserError(f"a Frechet distance in {Classifier.FEATURES} features needs more than that, not n = {plan.n}")
    n = plan.n or (6000 if test.size is None else min(test.size, 10_000))
    reference = test.up_to(n)["x_0"]
    metrics: list[Metric] = [EnergyDistance(), SlicedWasserstein()]
    extractor = None
    if with_features:
        extractor = classifier_of(dataset, data, quiet)
        metrics.append(FrechetDistance(features=extractor.classifier.all_features))
    train = dataset.train(data)
    real = train.up_to(n, seed=plan.seed + 1)["x_0"]
    result: dict[str, Any] = {
        "n": n,
        "reference": {"split": "test", "n": len(reference)},
        "seed": plan.seed,
        "floor": {"n": len(real), **_measure(metrics, real, reference)},
        "samples": [],
        "posterior": [],
    }
    if extractor is not None:
        result["features"] = {
            "extractor": f"classifier of {type(dataset).__name__.lower()}, 128 penultimate activations before ReLU",
            "accuracy": extractor.accuracy,
            "sha256": extractor.sha256,
        }
    with_flow = uses_flow(model)
    flow_counts = plan.flow_steps if with_flow else (1,)
    for flow_steps in flow_counts:
        for steps in plan.steps:
            start = time.monotonic()
            sampler = (model.sampler or Ancestral()).with_steps(steps, flow_steps if with_flow else None)
            title = f"samples, N = {steps}, M = {flow_steps}"
            with EvaluationCounter(model) as counter, Meter(title, n, unit="item", quiet=quiet) as meter:
                x_0 = sample(
                    model, n, sampler=sampler, seed=plan.seed, batch_size=plan.batch_size, progress=meter.update
                )
            seconds = time.monotonic() - start
            row = {"steps": steps, "flow_steps": flow_steps, "nfe": counter.items / n, "seconds": seconds}
            result["samples"].append(row | _measure(metrics, x_0.cpu(), reference))
    pairs = test.up_to(plan.pairs, seed=plan.seed)["x_0"]
    if isinstance(model, PosteriorModel):
        cases = [(flow_steps, tau) for flow_steps in flow_counts for tau in plan.taus]
        with Meter("draws from the posterior", len(cases), unit="case", quiet=quiet) as meter:
            for done, (flow_steps, tau) in enumerate(cases, start=1):
                scores = posterior_scores(model, pairs, tau, flow_steps, plan.draws, plan.seed, plan.batch_size)
                result["posterior"].append({"tau": tau, "flow_steps": flow_steps, "pairs": len(pairs)} | scores)
                meter.update(done)
    return result


@torch.no_grad()
def posterior_scores(
    model: PosteriorModel, x_0: Tensor, tau: float, flow_steps: int, draws: int, seed: int, batch_size: int = 500
) -> dict[str, float]:
    """Spread over skill and energy score of `draws` draws from `q(x_0 | x_tau)` for held-out `x_0` `(n, ...)`."""
    at, parts = torch.tensor(tau, dtype=torch.float64), []
    for first in range(0, len(x_0), batch_size):
        part = x_0[first : first + batch_size].to(model.like)
        generators = item_generators(len(part), seed, first)
        q = model(transition.sample(part, torch.zeros_like(at), at, model.schedule, generators), at)
        drawn = [q.sample((1,), flow_steps=flow_steps, generator=generators).cpu() for _ in range(draws)]
        parts.append(torch.cat(drawn))
    forecast = torch.cat(parts, dim=1)
    return SpreadSkill()(forecast, x_0) | EnergyScore()(forecast, x_0)


def tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """`(title, header, rows)` of each table, as text; also what the report shows."""
    names = {"energy_distance": "energy distance", "sliced_w2": "sliced W2", "frechet": "Frechet distance"}
    present = {key: name for key, name in names.items() if key in result["floor"]}
    rows = [[f"real vs real ({result['floor']['n']})", "", "", *(f"{result['floor'][key]:.4g}" for key in present), ""]]
    for row in result["samples"]:
        distances = [f"{row[key]:.4g}" for key in present]
        counts = [str(row["steps"]), str(row["flow_steps"]), f"{row['nfe']:g}"]
        rows.append([*counts, *distances, f"{row['seconds']:.1f}"])
    title = f"{result['recipe']}: {result['n']} samples against {result['reference']['n']} held-out items"
    first = (title, ["N", "M", "NFE", *present.values(), "seconds"], rows)
    posterior = [
        [f"{row['tau']:g}", str(row["flow_steps"]), f"{row['spread_skill']:.3f}", f"{row['energy_score']:.4g}"]
        for row in result["posterior"]
    ]
    header = ["tau", "M", "spread/skill (1 is calibrated)", "energy score (less is better)"]
    return [first, ("draws from q(x_0 | x_tau) on held-out pairs", header, posterior)]


def uses_flow(model: Model) -> bool:
    """Whether flow steps mean anything to the model: whether its posterior is carried by a flow."""
    if not isinstance(model, PosteriorModel):
        return False
    return isinstance(model(model.like.new_zeros(1, *model.item_shape), 1.0), FlowPosterior)


def _measure(metrics: list[Metric], samples: Tensor, reference: Tensor) -> dict[str, float]:
    return {name: value for metric in metrics for name, value in metric(samples, reference).items()}
