"""Tasks by methods over held-out items: how good a restoration is, whether its draws can be trusted, and what it costs."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.datasets.base import Dataset
from fewstep.draws import item_generators
from fewstep.errors import UserError
from fewstep.features import classifier_of
from fewstep.inverse import DegeneracyWarning, InverseMethod
from fewstep.metrics.ranks import coverage, ranks
from fewstep.models.base import Model
from fewstep.operators import Gaussian, Inpainting, Noise, NoNoise
from fewstep.pictures import to_levels
from fewstep.progress import Meter
from fewstep.restoration import INTERVAL, numbers, restore
from fewstep.shapes import flat

RESAMPLES = 1000
NEARLY_CONSTANT = 0.1  # a component whose deviation is below this share of the mean one
MethodOf = Callable[[Noise], InverseMethod]


@dataclass(frozen=True, kw_only=True)
class BenchmarkPlan:
    """How much to restore. Raises `UserError` where a number is out of range."""

    sigmas: tuple[float, ...] = (0.05, 0.2)
    problems: int = 50
    n: int = 31
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sigmas or min(self.sigmas) < 0:
            raise UserError("there is one deviation of the noise at least, and none is negative")
        if self.problems < 2 or self.n < 2 or self.seed < 0:
            raise UserError("a benchmark takes 2 problems and 2 samples or more, and a seed from 0 up")


def benchmark(
    model: Model,
    dataset: Dataset,
    tasks: Mapping[str, Any],
    methods: Mapping[str, MethodOf],
    plan: BenchmarkPlan,
    data: Path | None = None,
    quiet: bool = True,
) -> list[dict[str, Any]]:
    """A row for every task, deviation of the noise and method: keys in docs/json.md.

    A method that cannot take a task (a non-linear operator, no noise) has a row with the reason. Every method restores the
    same measurements of the same held-out items.
    """
    test = dataset.test(data)
    found = test.take(min(plan.problems, test.size or plan.problems), seed=plan.seed)
    std = flat(dataset.train(data).up_to(5000)["x_0"]).std(0)
    varying = std > NEARLY_CONSTANT * std.mean()
    labelled = dataset.num_classes > 0 and len(dataset.item_shape) == 3
    classifier = classifier_of(dataset, data, quiet).classifier if labelled else None
    cases = [(task, sigma, method) for task in tasks for sigma in plan.sigmas for method in methods]
    rows = []
    with Meter("restorations", len(cases), unit="case", quiet=quiet) as meter:
        for done, (task, sigma, name) in enumerate(cases, start=1):
            operator, noise = tasks[task], Gaussian(sigma=sigma) if sigma else NoNoise()
            row: dict[str, Any] = {"task": task, "sigma": sigma, "method": name}
            y = noise.sample(operator.A(found["x_0"]), item_generators(len(found["x_0"]), plan.seed))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DegeneracyWarning)  # the notes are in the row
                    restored = restore(model, operator, methods[name](noise), y, plan.n, plan.seed)
            except UserError as error:
                rows.append(row | {"refused": str(error)})
                continue
            row |= numbers(restored, operator, found["x_0"])
            unseen = varying & ~_observed(operator)
            row |= covered(restored.draws.cpu(), found["x_0"], unseen, test.step, plan.seed)
            if classifier is not None:
                row["class_log_score"] = class_log_score(classifier, restored.draws.cpu().float(), found["labels"])
            rows.append(row)
            meter.update(done)
    return rows


def covered(draws: Tensor, truth: Tensor, components: Tensor, step: float | None, seed: int = 0) -> dict[str, Any]:
    """`coverage_90` and its bootstrap `coverage_90_interval` over problems, of some components `(d,)`, on the grey levels.

    By ranks with random ties, as in `fewstep calibrate`: exact for every number of draws `(k, b, ...)`.
    """
    if not components.any():
        return {"coverage_90": None, "coverage_90_interval": None}
    generator, level = torch.Generator().manual_seed(seed), torch.tensor([INTERVAL], dtype=torch.float64)
    rank = ranks(to_levels(draws, step), to_levels(truth.to(draws), step), generator)[:, components]
    inside = torch.stack([coverage(row[None], len(draws), level).mean() for row in rank])
    picks = torch.randint(len(inside), (RESAMPLES, len(inside)), generator=generator)
    ends = inside[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=inside.dtype))
    return {"coverage_90": inside.mean().item(), "coverage_90_interval": ends.tolist()}


@torch.no_grad()
def class_log_score(classifier: Callable[[Tensor], Tensor], draws: Tensor, labels: Tensor) -> float:
    """`mean_b log mean_k p(label_b | draw)` of a classifier: are the draws of the right class, as often as they should be?"""
    k, b = draws.shape[:2]
    log_p = classifier(draws.flatten(0, 1)).log_softmax(1).reshape(k, b, -1)
    mean = log_p.logsumexp(0) - torch.tensor(float(k)).log()
    return mean.gather(1, labels[:, None]).mean().item()


def _observed(operator: Any) -> Tensor:
    """The components that the measurement holds one by one."""
    if isinstance(operator, Inpainting):
        return operator.observed.expand(operator.item_shape).flatten()
    return torch.zeros(torch.Size(operator.item_shape).numel(), dtype=torch.bool)


def table(rows: list[dict[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    """The rows as `(title, header, rows)` of text."""
    header = [
        "task",
        "sigma",
        "method",
        "PSNR",
        "energy score",
        "CRPS",
        "90 % holds, %",
        "class log-score",
        "NFE",
        "seconds",
    ]
    lines = []
    for row in rows:
        cells = [row["task"], f"{row['sigma']:g}", row["method"]]
        if "refused" in row:
            lines.append([*cells, "refused", *[""] * 6])
            continue
        holds = ""
        if row["coverage_90"] is not None:
            low, high = row["coverage_90_interval"]
            holds = f"{100 * row['coverage_90']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        score = f"{row['class_log_score']:.3f}" if "class_log_score" in row else ""
        numbers_of = [f"{row['psnr']:.2f}", f"{row['energy_score']:.3f}", f"{row['crps']:.4f}"]
        lines.append([*cells, *numbers_of, holds, score, f"{row['nfe']:.0f}", f"{row['seconds']:.0f}"])
    many = next(
        (f"{row['problems']} problems, {row['n']} samples each" for row in rows if "n" in row), "nothing restored"
    )
    return f"restorations of held-out items: {many}", header, lines
