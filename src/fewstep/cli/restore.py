"""Restore held-out items or a picture from a measurement: fewstep restore RUN [flags]

y = A(x_0) + noise: without --image, held-out items are measured and restored; with it, a picture is (--observed: it *is* the
measurement). Draws samples of p(x_0 | y) and writes restoration.png (a row for each problem: truth, measurement, mean,
standard deviation, draws), restoration.npz (samples, mean, std, low and high of the 90 % interval) and restoration.json
(docs/json.md) to --out, and prints how good the mean is and whether the draws can be trusted.

With --benchmark: several operators by several methods by both noises over --items held-out items, and one table of quality,
calibration and cost (restoration-benchmark.json), and a picture of each task with its first item restored by every method.

Operators and methods are names, or Python calls: --operator 'Inpainting(mask=RandomMask(missing=0.8))'
--method 'DecoupledSIR(levels=8, draws=128)'. What there is: docs/operators.md, docs/inverse-problems.md.
"""

import json
import re
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro

from fewstep import inverse, operators
from fewstep.cli._expression import build, concrete
from fewstep.cli._parsing import parse
from fewstep.cli._run import Run, open_run
from fewstep.cli._tables import print_tables, terminal
from fewstep.datasets.base import Dataset
from fewstep.errors import UserError
from fewstep.files import write_file
from fewstep.operators.noise import gaussian_or_none

OPERATORS = {
    "inpaint-half": "Inpainting(mask=HalfMask(side='bottom'))",
    "inpaint-box": "Inpainting(mask=BoxMask())",
    "inpaint-random": "Inpainting(mask=RandomMask(missing=0.7))",
    "super-resolution": "AveragePool(factor=2)",
    "bicubic": "Bicubic(factor=2)",
    "blur": "GaussianBlur(std=1.0)",
    "motion-blur": "MotionBlur(length=5.0, angle=30.0)",
    "grey": "Grey()",
    "hdr": "HDRClip(gain=2.0)",
    "phase": "PhaseRetrieval()",
    "quantise": "Quantisation(levels=4)",
}
TASKS = ("inpaint-half", "super-resolution", "blur", "inpaint-random")
BENCHMARKED = ("split-gibbs", "sir", "null-space", "dps")
METHODS = {
    "sir": "DecoupledSIR()",
    "sir-pcn": "DecoupledSIR(draws=16, chain=PCN(length=32))",
    "split-gibbs": "SplitGibbs()",
    "smc": "NestedSMC()",
    "look-ahead": "LookAhead()",
    "null-space": "NullSpace()",
    "dps": "DPS()",
}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to restore, from what, and how."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    operator: tuple[str, ...] = ()
    """inpaint-half, -box or -random, super-resolution, bicubic, blur, motion-blur, grey, hdr, phase, quantise; or a call."""
    method: tuple[str, ...] = ()
    """sir, sir-pcn, split-gibbs, smc, look-ahead, null-space, dps; or a call."""
    sigma: tuple[float, ...] = ()
    """Standard deviation of the measurement's noise (0.1), for items in [-1, 1]; 0 is none."""
    n: int = 31
    """Samples for each problem; 19 or more reach a 90 % interval."""
    items: int | None = None
    """Held-out items to restore: 4, with --benchmark 50."""
    benchmark: bool = False
    """A table: by default four tasks, four methods, sigma .05 and .2."""
    image: Path | None = None
    """A picture in place of held-out items."""
    observed: bool = False
    """The picture is the measurement itself."""
    seed: int = 0
    """Seed of the noise and the samples."""
    max_batch: int = 4096
    """Draws at a time: bounds the memory."""
    data: Path | None = None
    """Folder of the data sets; FEWSTEP_DATA if left out."""
    out: Path | None = None
    """Folder for the results; RUN/restoration if left out."""
    device: str = "cpu"
    """cpu, or cuda where there is a GPU."""
    trust_code: bool = False
    """Load a run whose classes are not part of fewstep: runs their code."""


def run(arguments: list[str]) -> int:
    """Measure, restore, write the files, print the numbers."""
    flags = parse(Flags, arguments, "restore", __doc__)
    if min((*flags.sigma, flags.seed)) < 0 or (flags.items is not None and flags.items < 1):
        raise UserError("--sigma and --seed are not negative, and --items counts from 1 up")
    if flags.observed and flags.image is None:
        raise UserError("--observed says what --image is: give a picture")
    run = open_run(flags.run, flags.device, flags.trust_code, "restore", arguments)
    if flags.benchmark:
        return _benchmark(flags, run)
    if max(len(flags.operator), len(flags.method), len(flags.sigma)) > 1:
        raise UserError("several operators, methods or sigmas make a table: add --benchmark, or give one of each")
    return _restore(flags, run)


def _operator(text: str, shape: tuple[int, ...]) -> Any:
    return build(text, concrete(operators), OPERATORS, "--operator", {"item_shape": shape}, operators.ShapedOperator)


def _method(text: str, noise: operators.Noise, max_batch: int) -> inverse.InverseMethod:
    return build(
        text, concrete(inverse), METHODS, "--method", {"noise": noise, "max_batch": max_batch}, inverse.InverseMethod
    )


def _restore(flags: Flags, run: Run) -> int:
    """One operator, one method."""
    from fewstep import pictures
    from fewstep.restoration import covered, measure, numbers, picture, restore, uncertain

    shape, sigma = tuple(run.model.item_shape), (*flags.sigma, 0.1)[0]
    noise = gaussian_or_none(sigma)
    named = (*flags.operator, "inpaint-half")[0], (*flags.method, "split-gibbs")[0]
    method = _method(named[1], noise, flags.max_batch)
    operator = _operator(named[0], shape)
    truth = _truth(flags, run.recipe.dataset, shape)
    if truth is None:
        assert flags.image is not None
        y = _read(flags.image, operator.y_shape)
    else:
        y = measure(operator, noise, truth, flags.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", inverse.DegeneracyWarning)  # the notes are printed below
        found = restore(run.model, operator, method, y, flags.n, flags.seed, quiet=False)
    result = run.about | {"operator": repr(operator), "method": repr(method), "sigma": sigma, "seed": flags.seed}
    result |= numbers(found, operator, truth)
    if truth is not None:
        train = run.recipe.dataset.train(flags.data)
        left = uncertain(operator, train.up_to(5000)["x_0"])
        result |= covered(found.draws.cpu(), truth, left, train.step, flags.seed)
    out = flags.out or flags.run / "restoration"
    arrays = {name: value.cpu().numpy() for name, value in found.arrays.items()}
    write_file(
        out / "restoration.npz", pictures.npz_bytes(arrays if truth is None else arrays | {"x_0": truth.numpy()})
    )
    write_file(out / "restoration.json", json.dumps(result, indent=1))
    shown = "restoration.npz, restoration.json"
    if len(shape) == 3 and shape[0] in (1, 3):
        write_file(out / "restoration.png", picture(found, operator, truth))
        shown += " and restoration.png"
    console = terminal()
    print_tables([table(result, *named)], console)
    for note in result["notes"]:
        console.print(note, highlight=False)
    sys.stdout.write(f"written to {out}: {shown}\n")
    return 0


def _benchmark(flags: Flags, run: Run) -> int:
    """Several operators by several methods."""
    from fewstep.restoration_benchmark import BenchmarkPlan, benchmark, figure
    from fewstep.restoration_benchmark import table as table_of

    if flags.image is not None:
        raise UserError("--benchmark restores held-out items: leave --image out")
    sigmas = flags.sigma or BenchmarkPlan.sigmas
    tasks = {text: _operator(text, tuple(run.model.item_shape)) for text in flags.operator or TASKS}
    methods = {text: partial(_method, text, max_batch=flags.max_batch) for text in flags.method or BENCHMARKED}
    for method in methods.values():
        method(operators.Gaussian(sigma=1.0))  # a mistake is told before the first restoration
    plan = BenchmarkPlan(sigmas=sigmas, problems=flags.items or BenchmarkPlan.problems, n=flags.n, seed=flags.seed)
    found = benchmark(run.model, run.recipe.dataset, tasks, methods, plan, flags.data, quiet=False)
    rows, out, written = found.rows, flags.out or flags.run / "restoration", ["restoration-benchmark.json"]
    result = run.about | {"seed": flags.seed, "operators": {k: repr(v) for k, v in tasks.items()}, "rows": rows}
    write_file(out / written[0], json.dumps(result, indent=1))
    for (task, sigma), seen in found.seen.items():
        if image := figure(seen):
            written.append(_picture_name(task, sigma, written))
            write_file(out / written[-1], image)
    console = terminal()
    print_tables([table_of(rows)], console)
    for row in rows:
        for note in [row["refused"]] if "refused" in row else row["notes"]:
            console.print(f"{row['task']}, sigma {row['sigma']:g}: {note}", highlight=False)
    sys.stdout.write(f"written to {out}: {', '.join(written)}\n")
    return 0


def _picture_name(task: str, sigma: float, taken: list[str]) -> str:
    """A file name of a task, which may be a Python call of any length; one that is not taken."""
    stem = f"{re.sub('[^a-z0-9.]+', '-', task.lower()).strip('-')[:80]}-sigma-{sigma:g}"
    numbered = (f"{stem}-{i}.png" for i in range(2, len(taken) + 3))
    return next(name for name in (f"{stem}.png", *numbered) if name not in taken)


def table(result: dict, operator: str, method: str) -> tuple[str, list[str], list[list[str]]]:
    """The numbers as `(title, header, rows)`."""
    names = {
        "psnr": "PSNR of the mean, dB",
        "ssim": "SSIM of the mean (1 is the truth)",
        "coverage_90": "90 % interval holds (of what varies and was not observed)",
        "spread_skill": "spread/skill (1 is calibrated)",
        "energy_score": "energy score (less is better)",
        "crps": "CRPS",
        "misfit": f"RMS of y - A(x) (the noise's is {result['sigma']:g})",
        "spread": "standard deviation of the draws",
        "ess": "effective samples (of weighted ones)",
        "nfe": "network evaluations a sample",
        "seconds": "seconds",
    }
    rows = [[text, f"{result[name]:.4g}"] for name, text in names.items() if result.get(name) is not None]
    rows = [row for row in rows if row[0] != names["ess"] or result["ess"] < 0.999 * result["n"]]
    if result.get("coverage_90_interval"):
        low, high = result["coverage_90_interval"]
        row = next(row for row in rows if row[0] == names["coverage_90"])
        row[1] += f" [{low:.3f}, {high:.3f}]"
    if result["interval"] < 0.9:
        rows.append(["level of the interval in restoration.npz (19 samples reach .9)", f"{result['interval']:.3g}"])
    title = f"{result['recipe']}, {operator}, {method}: {result['problems']} problems, {result['n']} samples each"
    return title, ["number", "value"], rows


def _truth(flags: Flags, dataset: Dataset, shape: tuple[int, ...]) -> torch.Tensor | None:
    """What is measured: held-out items, or the picture; None where the picture is the measurement."""
    if flags.image is None:
        return dataset.test(flags.data).up_to(flags.items or 4, seed=flags.seed)["x_0"]
    if flags.observed:
        return None
    return _read(flags.image, shape)


def _read(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """A picture `(1, *shape)` in [-1, 1]. `UserError` where it is none or of another size."""
    from fewstep.datasets.images import read_whole_picture

    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(f"--image: items of shape {shape} are no pictures: leave it out")
    if not path.exists():
        raise UserError(f"--image {path} does not exist")
    pixels = read_whole_picture(path, grey=shape[0] == 1)
    if pixels.shape[1:] != shape[1:]:
        found = f"{pixels.shape[1]} x {pixels.shape[2]}"
        raise UserError(f"--image {path} has {found} pixels, {shape[1]} x {shape[2]} expected: resize it")
    return pixels[None].float() / 127.5 - 1
