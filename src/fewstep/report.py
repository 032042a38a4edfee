"""A run as one self-contained HTML page: pictures, curves, tables and commands."""

import html
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import page, pictures
from fewstep.draws import item_generators, normal
from fewstep.evaluation import tables, uses_flow
from fewstep.files import write_file
from fewstep.metrics.copying import nearest
from fewstep.models.base import PosteriorModel
from fewstep.pretrained import load, newest_checkpoint, sample, sampler_of
from fewstep.samplers.ancestral import Ancestral
from fewstep.samplers.base import step_counts
from fewstep.training.checkpoint import stored_recipe
from fewstep.training.log import read_log

_TRAJECTORY_STEPS, _TRAJECTORY_DRAWS = 8, 6


def write_report(
    run: Path,
    *,
    steps: tuple[int, ...] = (1, 2, 4),
    n: int = 64,
    seed: int = 0,
    data: Path | None = None,
    trust_code: bool = False,
) -> Path:
    """Write `run/report.html` and return its path. Works from the newest checkpoint, the log and the evaluation."""
    model, recipe = load(run, trust_code=trust_code), stored_recipe(run, trust_code)
    sampler = sampler_of(model)
    flow_steps = step_counts(sampler)["flow_steps"]
    one = 1 if flow_steps > 1 else None
    parts = [f"<h1>{html.escape(recipe.name)}</h1><p>{html.escape(recipe.description)}.</p>", "<h2>Samples</h2>"]
    counts = steps if sampler.takes_steps else (1,)
    for count in counts:
        drawn = sampler.with_steps(count, one)
        x_0 = sample(model, n, sampler=drawn, seed=seed)
        parts.append(page.figure(_show(x_0), f"N = {count}, M = 1: {drawn.nfe} network evaluations each"))
    if flow_steps > 1:
        x_0, count = sample(model, n, seed=seed), step_counts(sampler)["steps"]
        caption = f"the default, N = {count}, M = {flow_steps}: {sampler.nfe} network evaluations each"
        parts.append(page.figure(_show(x_0), caption))
    real = recipe.dataset.test(data).up_to(n)["x_0"]
    parts.append(page.figure(_show(real), "held-out data"))
    if real.ndim == 4 and (train := recipe.dataset.train(data)).size is not None:
        caption = "Samples, and below each the nearest of all training items: a copy would be the same picture"
        parts.append(page.figure(_neighbours(x_0, train.take(train.size)["x_0"]), caption))
    if uses_flow(model):  # a point mass has no draws to show
        parts.append(_randomness(model, real, flow_steps, seed))
    parts += [
        "<h2>Training</h2>",
        page.figure(
            _curves(read_log(run)),
            "Loss as trained, and beside it what it is made of: the raw error, or of drifting the raw field",
        ),
    ]
    evaluation = run / "evaluation.json"
    result = json.loads(evaluation.read_text()) if evaluation.exists() else {}
    if result:
        newest, measured = newest_checkpoint(run), result.get("checkpoint")
        if newest and measured and newest.name != measured:
            stale = f"These numbers are of {measured}; the pictures are of {newest.name}. Run fewstep evaluate again."
            parts.append(f"<p><b>{html.escape(stale)}</b></p>")
        parts += ["<h2>Measurements</h2>", *(page.table(*table) for table in tables(result)), _features(result)]
    flow = " --flow-steps 1" if one else ""
    grids = [f"fewstep sample {run} --n {n} --steps {count}{flow} --seed {seed}" for count in counts]
    commands = _commands(run, recipe.name, grids, result.get("command"))
    parts += ["<h2>Commands</h2>", f"<pre>{html.escape(chr(10).join(commands))}</pre>"]
    write_file(run / "report.html", page.document(recipe.name, parts))
    return run / "report.html"


def _randomness(model: PosteriorModel, real: Tensor, flow_steps: int, seed: int) -> str:
    """The section on draws: what is still possible, seen from x_tau."""
    if real.ndim == 4:
        caption = (
            f"One trajectory of {_TRAJECTORY_STEPS} steps from noise (left, tau = 1) to data (right, tau = "
            f"{1 / _TRAJECTORY_STEPS:g}). Top row: the state x_tau. Below each state: {_TRAJECTORY_DRAWS} independent draws "
            f"from q(x_0 | x_tau), M = {flow_steps}. Early states leave everything open, late ones little."
        )
        picture = _trajectory(model, flow_steps, seed)
    else:
        caption = f"Draws from q(x_0 | x_tau) for one x_tau (cross) at each tau, M = {flow_steps}, over the data (grey)"
        picture = _scatter(model, real, flow_steps, seed)
    return "<h2>The randomness is kept</h2>" + page.figure(picture, caption)


def _commands(run: Path, name: str, grids: list[str], evaluated: str | None) -> list[str]:
    """The commands that made what the page shows, as they were given where that was kept."""
    kept = run / "command.txt"
    train = (
        kept.read_text().strip() if kept.exists() else f"fewstep train {name} --out {run}  # with what recipe.json says"
    )
    return [train, *grids, *([evaluated] if evaluated else []), f"fewstep report {run}"]


def _show(x_0: Tensor) -> bytes:
    """A PNG of samples: a grid of images, or points in the plane."""
    if x_0.ndim == 4:
        return pictures.png_bytes(pictures.grid(x_0))
    figure, axes = page.figure_of(1, 3.2)
    points = x_0.flatten(1)
    if points.shape[1] == 1:
        axes[0].hist(points[:, 0].numpy(), bins=40)
    else:
        axes[0].scatter(points[:, 0], points[:, 1], s=4)
        axes[0].set(aspect="equal")
    return page.png(figure)


def _neighbours(x_0: Tensor, train: Tensor, columns: int = 16, rows: int = 2) -> bytes:
    """Rows of samples, each with a row of their nearest training items below."""
    columns = min(columns, len(x_0))
    shown = x_0[: columns * min(rows, len(x_0) // columns)]  # whole rows
    pairs = zip(shown.split(columns), train[nearest(shown, train)[1]].split(columns), strict=True)
    return pictures.png_bytes(pictures.grid(torch.cat([torch.cat(pair) for pair in pairs]), columns=columns, least=560))


@torch.no_grad()
def _trajectory(model: PosteriorModel, flow_steps: int, seed: int) -> bytes:
    generators = item_generators(1, seed)
    noise = normal((1, *model.item_shape), generators, like=torch.empty(0))
    states = Ancestral(_TRAJECTORY_STEPS, flow_steps).trajectory(model, noise, generators)
    rows = [torch.cat([state.x_tau for state in states]).clamp(-2, 2) / 2]
    draws = [
        model(state.x_tau, state.tau).sample((_TRAJECTORY_DRAWS,), flow_steps=flow_steps, generator=generators)
        for state in states
    ]
    rows += [torch.cat([column[i] for column in draws]) for i in range(_TRAJECTORY_DRAWS)]
    return pictures.png_bytes(pictures.grid(torch.cat(rows), columns=len(states), least=560))


@torch.no_grad()
def _scatter(model: PosteriorModel, real: Tensor, flow_steps: int, seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    taus = (0.8, 0.5, 0.3, 0.1)
    figure, axes = page.figure_of(len(taus), 2.6)
    real = real.flatten(1)
    bound = 1.3 * real.abs().max().item()
    for axis, tau in zip(axes, taus, strict=True):
        at = torch.tensor(tau)
        alpha, sigma = model.schedule.alpha(at), model.schedule.sigma(at)
        x_tau = alpha * real[:1] + sigma * torch.randn(real[:1].shape, generator=generator)
        draws = model(x_tau, tau).sample((300,), flow_steps=flow_steps, generator=generator)[:, 0]
        if real.shape[1] == 1:
            axis.hist([real[:, 0].numpy(), draws[:, 0].numpy()], bins=30, density=True, color=["0.75", "C0"])
            axis.axvline(x_tau.item(), color="k")
            axis.set(title=f"tau = {tau}", xlim=(-bound, bound))
            continue
        axis.scatter(real[:, 0], real[:, 1], s=3, color="0.75")
        axis.scatter(draws[:, 0], draws[:, 1], s=3)
        axis.plot(x_tau[:, 0], x_tau[:, 1], "kx")
        axis.set(title=f"tau = {tau}", xlim=(-bound, bound), ylim=(-bound, bound), aspect="equal")
    return page.png(figure)


def _curves(log: list[dict[str, Any]]) -> bytes:
    figure, axes = page.figure_of(2, 3.2, wide=True)
    log = [line for line in log if "loss" in line]
    steps = [line["step"] for line in log]
    axes[0].plot(steps, [line["loss"] for line in log], marker=".")
    axes[0].set(xlabel="step", ylabel="loss", yscale="log")
    for bucket in sorted({name for line in log for name in line["raw_by_bucket"]}):
        pairs = [(line["step"], line["raw_by_bucket"][bucket]) for line in log if bucket in line["raw_by_bucket"]]
        axes[1].plot(*zip(*pairs, strict=True), marker=".", label=bucket)
    drifts = [name for name in log[-1] if name.startswith("drift_rms_")] if log else []
    for name in drifts:  # what tells of progress where the loss is normalised
        pairs = [(line["step"], line[name]) for line in log if name in line]
        axes[1].plot(*zip(*pairs, strict=True), marker=".", label=f"temperature {name.removeprefix('drift_rms_')}")
    axes[1].set(xlabel="step", ylabel="root mean square drift" if drifts else "raw squared error", yscale="log")
    title = None if drifts else "t - r (or tau)"
    axes[1].legend(title=title, fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
    return page.png(figure)


def _features(result: dict[str, Any]) -> str:
    if "features" not in result:
        return ""
    f = result["features"]
    return html.escape(f"Frechet features: {f['extractor']}; accuracy {f['accuracy']:.1%}; sha256 {f['sha256']}")
