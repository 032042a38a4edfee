"""How far samples are from the data, and whether the draws of `q(x_0 | x_tau)` can be trusted.

Two tables. Of the samples: distances to held-out data for every (N, M), each beside its real-versus-real floor, which
is the same distance between training data and held-out data at the same sizes. Of the posterior: for held-out pairs
`(x_0, x_tau)`, spread over skill and the energy score of draws, by tau and flow steps; this needs no truth but the
data.
"""

import time
from collections.abc import Callable
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
from fewstep.models.base import EvaluationCounter, PosteriorModel
from fewstep.posterior import FlowPosterior
from fewstep.pretrained import sample

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What to measure; `n` samples (None: as many as there are held-out items, at most 10000; 6000 of a mixture)."""

    n: int | None = None
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    flow_steps: tuple[int, ...] = (1, 4)
    taus: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.8)
    pairs: int = 500
    draws: int = 16
    seed: int = 0
    batch_size: int = 500

    def __post_init__(self) -> None:
        if min(*self.steps, *self.flow_steps, self.pairs, self.batch_size, self.n or 1) < 1 or self.n == 0:
            raise UserError("n, steps, flow steps, pairs and batch size count from 1 up")
        if self.draws < 2:
            raise UserError("the spread of draws needs at least 2 of them")
        if not all(0 < tau <= 1 for tau in self.taus):
            raise UserError(f"the times tau lie above 0 and not above 1, not {self.taus}")


def evaluate(
    model: PosteriorModel,
    dataset: Dataset,
    plan: EvaluationPlan,
    data: Path | None = None,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """The two tables as JSON; keys in docs/json.md."""
    test = dataset.test(data)
    n = plan.n or (6000 if test.size is None else min(test.size, 10_000))
    reference = test.take(min(n, test.size or n))["x_0"]
    metrics: list[Metric] = [EnergyDistance(), SlicedWasserstein()]
    extractor = None
    if dataset.num_classes and len(dataset.item_shape) == 3:
        progress("classifier for the Frechet distance")
        extractor = classifier_of(dataset, data)
        metrics.append(FrechetDistance(features=extractor.classifier.all_features))
    train = dataset.train(data)
    real = train.take(min(n, train.size or n), seed=plan.seed + 1)["x_0"]
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
    flow_counts = plan.flow_steps if uses_flow(model) else (1,)
    for flow_steps in flow_counts:
        for steps in plan.steps:
            progress(f"samples with N = {steps}, M = {flow_steps}")
            start = time.monotonic()
            with EvaluationCounter(model) as counter:
                x_0 = sample(model, n, steps=steps, flow_steps=flow_steps, seed=plan.seed, batch_size=plan.batch_size)
            seconds = time.monotonic() - start
            row = {"steps": steps, "flow_steps": flow_steps, "nfe": counter.items / n, "seconds": seconds}
            result["samples"].append(row | _measure(metrics, x_0.cpu(), reference))
    pairs = test.take(min(plan.pairs, test.size or plan.pairs), seed=plan.seed)["x_0"]
    for flow_steps in flow_counts:
        for tau in plan.taus:
            progress(f"posterior at tau = {tau}, M = {flow_steps}")
            scores = posterior_scores(model, pairs, tau, flow_steps, plan.draws, plan.seed)
            result["posterior"].append({"tau": tau, "flow_steps": flow_steps, "pairs": len(pairs)} | scores)
    return result


@torch.no_grad()
def posterior_scores(
    model: PosteriorModel, x_0: Tensor, tau: float, flow_steps: int, draws: int, seed: int
) -> dict[str, float]:
    """Spread over skill and energy score of `draws` draws from `q(x_0 | x_tau)` for held-out `x_0` `(n, ...)`."""
    device = next((p.device for p in model.parameters()), x_0.device)
    generators = item_generators(len(x_0), seed)
    x_0 = x_0.to(device)
    at = torch.tensor(tau, dtype=torch.float64)
    x_tau = transition.sample(x_0, torch.zeros_like(at), at, model.schedule, generators)
    q = model(x_tau, tau)
    drawn = torch.cat([q.sample((1,), flow_steps=flow_steps, generator=generators) for _ in range(draws)])
    return SpreadSkill()(drawn, x_0) | EnergyScore()(drawn, x_0)


def tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """`(title, header, rows)` of each table, as text; also what the report shows."""
    names = {"energy_distance": "energy distance", "sliced_w2": "sliced W2", "frechet": "Frechet distance"}
    present = {key: name for key, name in names.items() if key in result["floor"]}
    rows = [["real vs real", "", "", *(f"{result['floor'][key]:.4g}" for key in present), ""]]
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


def uses_flow(model: PosteriorModel) -> bool:
    """Whether flow steps mean anything to the model: whether its posterior is carried by a flow."""
    like = next(model.parameters(), torch.empty(0))
    return isinstance(model(torch.zeros(1, *model.item_shape, device=like.device), 1.0), FlowPosterior)


def _measure(metrics: list[Metric], samples: Tensor, reference: Tensor) -> dict[str, float]:
    return {name: value for metric in metrics for name, value in metric(samples, reference).items()}
