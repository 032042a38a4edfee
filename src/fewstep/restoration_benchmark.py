"""Tasks by methods over held-out items: how good a restoration is, whether its draws can be trusted, and what it costs."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.datasets.base import Dataset
from fewstep.errors import UserError
from fewstep.features import classifier_of
from fewstep.inverse import DegeneracyWarning, InverseMethod
from fewstep.models.base import Model
from fewstep.operators import Noise
from fewstep.operators.noise import gaussian_or_none
from fewstep.page import png
from fewstep.progress import Meter
from fewstep.restoration import columns, covered, measure, numbers, restore, uncertain

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Benchmark:
    """`rows`: keys in docs/json.md. `seen`: for every task and noise, by method, images of the first problem by name."""

    rows: list[dict[str, Any]]
    seen: dict[tuple[str, float], dict[str, dict[str, Tensor]]]


def benchmark(
    model: Model,
    dataset: Dataset,
    tasks: Mapping[str, Any],
    methods: Mapping[str, MethodOf],
    plan: BenchmarkPlan,
    data: Path | None = None,
    quiet: bool = True,
) -> Benchmark:
    """A row for every task, deviation of the noise and method.

    A method that cannot take a task (a non-linear operator, no noise) has a row with the reason. Every method restores the
    same measurements of the same held-out items.
    """
    test = dataset.test(data)
    found = test.take(min(plan.problems, test.size or plan.problems), seed=plan.seed)
    train = dataset.train(data).up_to(5000)["x_0"]
    labelled = dataset.num_classes > 0 and len(dataset.item_shape) == 3
    classifier = classifier_of(dataset, data, quiet).classifier if labelled else None
    cases = [(task, sigma, method) for task in tasks for sigma in plan.sigmas for method in methods]
    unseen = {task: uncertain(operator, train) for task, operator in tasks.items()}
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[str, float], dict[str, dict[str, Tensor]]] = {(task, sigma): {} for task, sigma, _ in cases}
    with Meter("restorations", len(cases), unit="case", quiet=quiet) as meter:
        for done, (task, sigma, name) in enumerate(cases, start=1):
            operator, noise = tasks[task], gaussian_or_none(sigma)
            row: dict[str, Any] = {"task": task, "sigma": sigma, "method": name}
            y = measure(operator, noise, found["x_0"], plan.seed)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DegeneracyWarning)  # the notes are in the row
                    restored = restore(model, operator, methods[name](noise), y, plan.n, plan.seed)
            except UserError as error:
                rows.append(row | {"refused": str(error)})
                continue
            row |= numbers(restored, operator, found["x_0"])
            row |= covered(restored.draws.cpu(), found["x_0"], unseen[task], test.step, plan.seed)
            if classifier is not None:
                row["class_log_score"] = class_log_score(classifier, restored.draws.cpu().float(), found["labels"])
            rows.append(row)
            if len(dataset.item_shape) == 3 and dataset.item_shape[0] in (1, 3):
                images = columns(restored, operator, found["x_0"])
                seen[task, sigma][name] = {title: batch[0].cpu() for title, batch in images.items()}
            meter.update(done)
    return Benchmark(rows=rows, seen=seen)


def figure(seen: dict[str, dict[str, Tensor]]) -> bytes | None:
    """A PNG of one problem: a row for each method: truth, measurement, mean, deviation (one scale for all), draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not seen:
        return None
    titles = list(next(iter(seen.values())))
    picture = Figure(figsize=(1.05 * len(titles) + 1.8, 1.05 * len(seen) + 0.3), layout="constrained")
    FigureCanvasAgg(picture)
    widest = max(images["deviation"].max().item() for images in seen.values()) or 1.0
    for axes, (method, images) in zip(
        picture.subplots(len(seen), len(titles), squeeze=False), seen.items(), strict=True
    ):
        for axis, (title, image) in zip(axes, images.items(), strict=True):
            pixels, low, high = image, -1.0, 1.0
            if title == "deviation":
                pixels, low, high = image.mean(0, keepdim=True), 0.0, widest
            shown = ((pixels - low) / (high - low)).clamp(0, 1).permute(1, 2, 0)
            axis.imshow(shown.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if method == next(iter(seen)):
                axis.set_title(title, fontsize=8)
        axes[0].set_ylabel(method, fontsize=7, rotation=0, ha="right", va="center")
    return png(picture)


@torch.no_grad()
def class_log_score(classifier: Callable[[Tensor], Tensor], draws: Tensor, labels: Tensor) -> float:
    """`mean_b log mean_k p(label_b | draw)` of a classifier: are the draws of the right class, as often as they should be?"""
    k, b = draws.shape[:2]
    log_p = classifier(draws.flatten(0, 1)).log_softmax(1).reshape(k, b, -1)
    mean = log_p.logsumexp(0) - torch.tensor(float(k)).log()
    return mean.gather(1, labels[:, None]).mean().item()


def table(rows: list[dict[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    """The rows as `(title, header, rows)` of text."""
    header = [
        "task",
        "sigma",
        "method",
        "PSNR",
        "SSIM",
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
            lines.append([*cells, "refused", *[""] * 7])
            continue
        holds = ""
        if row["coverage_90"] is not None:
            low, high = row["coverage_90_interval"]
            holds = f"{100 * row['coverage_90']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        score = f"{row['class_log_score']:.3f}" if "class_log_score" in row else ""
        similar = f"{row['ssim']:.3f}" if "ssim" in row else ""
        numbers_of = [f"{row['psnr']:.2f}", similar, f"{row['energy_score']:.3f}", f"{row['crps']:.4f}"]
        lines.append([*cells, *numbers_of, holds, score, f"{row['nfe']:.0f}", f"{row['seconds']:.0f}"])
    many = next(
        (f"{row['problems']} problems, {row['n']} samples each" for row in rows if "n" in row), "nothing restored"
    )
    return f"restorations of held-out items: {many}", header, lines
