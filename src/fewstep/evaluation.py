"""How far samples are from the data, and whether the draws of `q(x_0 | x_tau)` can be trusted.

Two tables. Of the samples: distances to held-out data for every (N, M), each beside its real-versus-real floor, which
is the same distance between training data and held-out data at the same sizes. Of the posterior: for held-out pairs
`(x_0, x_tau)`, spread over skill and the energy score of draws and the error of the mean, by tau and flow steps; this
needs no truth but the data.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import transition
from fewstep.configuration import to_config
from fewstep.datasets.base import Dataset, Examples
from fewstep.draws import item_generators
from fewstep.errors import UserError
from fewstep.features import classifier_of
from fewstep.metrics import (
    PRDC,
    Copying,
    EnergyDistance,
    EnergyScore,
    FrechetDistance,
    KernelDistance,
    Metric,
    SlicedWasserstein,
    SpreadSkill,
    VendiScore,
    inception_features,
)
from fewstep.metrics.base import Features
from fewstep.models.base import EvaluationCounter, Model, PosteriorModel
from fewstep.models.consistency import has_posterior
from fewstep.networks.classifier import FeatureClassifier
from fewstep.posterior import FlowPosterior
from fewstep.pretrained import sample, sampler_of
from fewstep.progress import Meter, forget_peak_memory, peak_memory
from fewstep.samplers.base import Sampler, step_counts
from fewstep.shapes import flat

NAMES = {
    "energy_distance": "energy distance",
    "sliced_w2": "sliced W2",
    "frechet": "Frechet distance",
    "fid": "Frechet inception distance",
}
MORE_NAMES = {"kid": "kernel distance", "precision": "precision", "recall": "recall", "density": "density",
              "coverage": "coverage", "vendi_ratio": "Vendi ratio", "copying": "copying (.5 is new)"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What to measure. Raises `UserError` where a number is out of range."""

    n: int | None = None
    """Number of samples; as many as there are held-out items (at most 10000; 6000 of a mixture) if left out."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    """N: steps on the diffusion clock (of a Mean Flow: steps of the flow map)."""
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
    inception: Path | None = None
    """Weights of the Inception network, for the Frechet inception distance (docs/metrics.md)."""

    def __post_init__(self) -> None:
        if min(*self.steps, *self.flow_steps, self.pairs, self.batch_size, self.n or 1) < 1 or self.n == 0:
            raise UserError("n, steps, flow steps, pairs and batch size count from 1 up")
        if self.seed < 0:
            raise UserError(f"the seed counts from 0 up, not {self.seed}")
        if self.draws < 2:
            raise UserError("the spread of draws needs at least 2 of them")
        if not all(0 < tau <= 1 for tau in self.taus):
            raise UserError(f"the times tau lie above 0 and not above 1, not {self.taus}")


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """What samples of a data set are measured with: the metrics, the held-out items, and where both come from.

    Each group of metrics has the features that it looks at.
    """

    metrics: tuple[tuple[Features, tuple[Metric, ...]], ...]
    train: Examples
    test: Examples
    n: int
    provenance: dict[str, Any]

    @property
    def floor_n(self) -> int:
        """How many training items there are to compare with the held-out ones: n, or all of them."""
        return self.n if self.train.size is None else min(self.n, self.train.size)

    @cached_property
    def reference(self) -> Tensor:
        """The held-out items."""
        return self.test.up_to(self.n)["x_0"]

    @cached_property
    def seen(self) -> list[Tensor]:
        """The features of the held-out items, by group of metrics."""
        return [features(self.reference) for features, _ in self.metrics]

    def measure(self, samples: Tensor, reference: Tensor | None = None) -> dict[str, float]:
        """Every number of the samples beside the held-out items, or others."""
        found: dict[str, float] = {}
        for (features, metrics), held_out in zip(self.metrics, self.seen, strict=True):
            x, y = features(samples), held_out if reference is None else features(reference)
            for metric in metrics:
                found |= metric(x, y)
        return found

    def floor(self, seed: int) -> dict[str, float]:
        """The same distances of as many training items: what a perfect sampler would get."""
        return self.measure(self.train.up_to(self.n, seed=seed + 1)["x_0"])

    @cached_property
    def copying(self) -> Copying | None:
        """Whether samples repeat the training items; None where these are an endless stream. Real ones do: no floor."""
        return None if self.train.size is None else Copying(train=self.train.take(self.train.size)["x_0"])

    def sample(self, model: Model, sampler: Sampler, seed: int, batch_size: int, quiet: bool = True) -> dict[str, Any]:
        """One row: n samples by this sampler, what they cost, and how far they are."""
        start, title = time.monotonic(), f"samples, {_counts(sampler)}"
        forget_peak_memory()
        with EvaluationCounter(model) as counter, Meter(title, self.n, unit="item", quiet=quiet) as meter:
            x_0 = sample(model, self.n, sampler=sampler, seed=seed, batch_size=batch_size, progress=meter.update).cpu()
        seconds = time.monotonic() - start
        cost = {"nfe": counter.items / self.n, "seconds": seconds, "peak_memory": peak_memory()}
        copying = self.copying(x_0, self.reference) if self.copying else {}
        return step_counts(sampler) | cost | self.measure(x_0) | copying


def yardstick(
    dataset: Dataset,
    n: int | None = None,
    data: Path | None = None,
    quiet: bool = True,
    inception: Path | None = None,
    device: str = "cpu",
) -> Yardstick:
    """The distances that suit a data set: energy distance and sliced W2; of labelled images also those in features.

    Inception's features are computed on `device`. Raises `UserError` where n is too small for the Frechet distance.
    """
    test = dataset.test(data)
    count = n or (6000 if test.size is None else min(test.size, 10_000))
    groups: list[tuple[Features, tuple[Metric, ...]]] = [(flat, (EnergyDistance(), SlicedWasserstein()))]
    provenance: dict[str, Any] = {}
    if dataset.num_classes > 0 and len(dataset.item_shape) == 3:
        least = FeatureClassifier.FEATURES
        if count <= least:
            raise UserError(f"a Frechet distance in {least} features needs more than that, not n = {count}")
        extractor = classifier_of(dataset, data, quiet)
        seen = extractor.classifier.all_features
        groups.append((seen, (FrechetDistance(features=flat), KernelDistance(features=flat), PRDC(), VendiScore())))
        provenance["features"] = {
            "extractor": f"classifier of {type(dataset).__name__.lower()}, 128 penultimate activations before ReLU",
            "accuracy": extractor.accuracy,
            "sha256": extractor.sha256,
            "quantisation": "none",
            "resize": "none",
        }
    if inception is not None:
        if count <= 2048:
            raise UserError(f"a Frechet distance in 2048 features needs more than that, not n = {count}")
        network = inception_features(inception, device=device)
        groups.append((network, (FrechetDistance(features=flat, name="fid"),)))
        provenance["inception"] = {
            "extractor": "Inception v3 of torch-fidelity, 2048 activations of the last pooling",
            "sha256": network.sha256,
            "quantisation": "uint8",
            "resize": "299 x 299, bilinear without antialiasing",
        }
    held_out = count if test.size is None else min(count, test.size)
    provenance["reference"] = {"dataset": to_config(dataset), "split": "test", "n": held_out}
    return Yardstick(metrics=tuple(groups), train=dataset.train(data), test=test, n=count, provenance=provenance)


def evaluate(
    model: Model,
    dataset: Dataset,
    plan: EvaluationPlan,
    data: Path | None = None,
    quiet: bool = True,
    sampler: Sampler | None = None,
) -> dict[str, Any]:
    """The two tables as JSON; keys in docs/json.md. `sampler` takes the place of the model's default one."""
    sampler = sampler or sampler_of(model)
    rule = yardstick(dataset, plan.n, data, quiet, plan.inception, str(model.like.device))
    with_flow = uses_flow(model, sampler)
    flow_counts = plan.flow_steps if with_flow else (1,)
    rows = [
        rule.sample(model, sampler.with_steps(steps, m if with_flow else None), plan.seed, plan.batch_size, quiet)
        for m in flow_counts
        for steps in (plan.steps if sampler.takes_steps else (1,))
    ]
    return {
        "n": rule.n,
        "seed": plan.seed,
        "sampler": to_config(sampler),
        **rule.provenance,
        "floor": {"n": rule.floor_n, **rule.floor(plan.seed)},
        "samples": rows,
        "posterior": posterior_rows(model, rule.test, plan, quiet),
    }


def posterior_rows(model: Model, test: Examples, plan: EvaluationPlan, quiet: bool = True) -> list[dict[str, Any]]:
    """What is known of `q(x_0 | x_tau)` from held-out pairs, by flow steps and tau.

    Nothing where there is no posterior: a Mean Flow and a consistency map know neither its draws nor its mean.
    """
    if not has_posterior(model):
        return []
    pairs = test.up_to(plan.pairs, seed=plan.seed)["x_0"]
    cases = [(m, tau) for m in (plan.flow_steps if uses_flow(model) else (1,)) for tau in plan.taus]
    rows = []
    with Meter("draws from the posterior", len(cases), unit="case", quiet=quiet) as meter:
        for done, (m, tau) in enumerate(cases, start=1):
            scores = posterior_scores(model, pairs, tau, m, plan.draws, plan.seed, plan.batch_size)
            rows.append({"tau": tau, "flow_steps": m, "pairs": len(pairs)} | scores)
            meter.update(done)
    return rows


@torch.no_grad()
def posterior_scores(
    model: PosteriorModel, x_0: Tensor, tau: float, flow_steps: int, draws: int, seed: int, batch_size: int = 500
) -> dict[str, float]:
    """Spread over skill and energy score of `draws` draws from `q(x_0 | x_tau)` for held-out `x_0` `(n, ...)`.

    `mean_rmse` is the root mean square error, by component, of the posterior's mean: of the denoiser in the model.
    """
    at, parts, means = torch.tensor(tau, dtype=torch.float64), [], []
    for first in range(0, len(x_0), batch_size):
        part = x_0[first : first + batch_size].to(model.like)
        generators = item_generators(len(part), seed, first)
        q = model(transition.sample(part, torch.zeros_like(at), at, model.schedule, generators), at)
        drawn = [q.sample((1,), flow_steps=flow_steps, generator=generators).cpu() for _ in range(draws)]
        parts.append(torch.cat(drawn))
        means.append(q.mean(generator=generators).cpu())
    forecast, error = torch.cat(parts, dim=1), torch.cat(means) - x_0
    scores = SpreadSkill()(forecast, x_0) | EnergyScore()(forecast, x_0)
    return scores | {"mean_rmse": error.double().square().mean().sqrt().item()}


def tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """`(title, header, rows)` of each table, as text; also what the report shows."""
    present = {key: name for key, name in NAMES.items() if key in result["floor"]}
    rows = [[f"real vs real ({result['floor']['n']})", "", "", *(f"{result['floor'][key]:.4g}" for key in present), ""]]
    for row in result["samples"]:
        distances = [f"{row[key]:.4g}" for key in present]
        counts = [str(row["steps"]), str(row["flow_steps"]), f"{row['nfe']:g}"]
        rows.append([*counts, *distances, f"{row['seconds']:.1f}"])
    title = f"{result['recipe']}: {result['n']} samples against {result['reference']['n']} held-out items"
    found = [(title, ["N", "M", "NFE", *present.values(), "seconds"], rows)]
    more = {key: name for key, name in MORE_NAMES.items() if all(key in row for row in result["samples"])}
    if more:
        floor = [f"{result['floor'][key]:.3g}" if key in result["floor"] else "" for key in more]
        rows = [["real vs real", "", *floor]]
        for row in result["samples"]:
            rows.append([str(row["steps"]), str(row["flow_steps"]), *(f"{row[key]:.3g}" for key in more)])
        found.append(("fidelity, variety and novelty", ["N", "M", *more.values()], rows))
    posterior = [
        [str(row["flow_steps"]), *(f"{row[key]:.4g}" for key in ("tau", "spread_skill", "energy_score", "mean_rmse"))]
        for row in result["posterior"]
    ]
    header = ["M", "tau", "spread/skill (1 is calibrated)", "energy score (less is better)", "RMSE of the mean"]
    return [*found, ("draws from q(x_0 | x_tau) on held-out pairs", header, posterior)] if posterior else found


def uses_flow(model: Model, sampler: Sampler | None = None) -> bool:
    """Whether flow steps mean anything: the model's posterior is carried by a flow, and the sampler draws from it."""
    if not isinstance(model, PosteriorModel) or not (sampler is None or "flow_steps" in vars(sampler)):
        return False
    return isinstance(model(model.like.new_zeros(1, *model.item_shape), 1.0), FlowPosterior)


def _counts(sampler: Sampler) -> str:
    counts = step_counts(sampler)
    return f"N = {counts['steps']}, M = {counts['flow_steps']}"
