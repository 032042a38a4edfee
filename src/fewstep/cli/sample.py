"""Draw samples from a trained model: fewstep sample RUN [flags]

RUN is the folder of a run (its newest checkpoint is used), a checkpoint or a saved model. Writes samples.npz (array
x_0), for images samples.png, and samples.json (how they were made; docs/json.md) to --out. Sample i of a seed is the
same, to rounding, in every batch size and however many are drawn.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from fewstep.cli._parsing import allow_code_here, parse
from fewstep.cli._sampler import SamplerFlags, override
from fewstep.configuration import to_config
from fewstep.errors import UserError
from fewstep.files import write_file
from fewstep.models.base import EvaluationCounter
from fewstep.pretrained import load, newest_checkpoint, sample, sampler_of
from fewstep.progress import Meter, peak_memory
from fewstep.samplers.base import step_counts


@dataclass(frozen=True, kw_only=True)
class Flags(SamplerFlags):
    """What to draw and where to put it."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    n: int = 64
    """Number of samples."""
    seed: int = 0
    """Seed of the run; item i has a generator of its own."""
    out: Path | None = None
    """Folder for the results; RUN/samples if left out."""
    batch_size: int = 256
    """Items at a time: bounds the memory, changes no sample."""
    device: str = "cpu"
    """cpu, or cuda where there is a GPU."""
    trust_code: bool = False
    """Load a model whose classes are not part of fewstep: runs their code."""


def run(arguments: list[str]) -> int:
    """Sample and write the files."""
    from fewstep import pictures

    flags = parse(Flags, arguments, "sample", __doc__)
    out = flags.out or flags.run / "samples"
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: give a folder")
    if flags.n < 1:
        raise UserError(f"--n counts samples from 1 up, not {flags.n}")
    allow_code_here(flags.trust_code)
    model = load(flags.run, device=flags.device, trust_code=flags.trust_code)
    sampler = override(sampler_of(model), flags)
    start = time.monotonic()
    with EvaluationCounter(model) as counter, Meter("sampling", flags.n, unit="item") as meter:
        x_0 = sample(
            model, flags.n, sampler=sampler, seed=flags.seed, batch_size=flags.batch_size, progress=meter.update
        ).cpu()
    nfe = counter.items / flags.n
    info = {
        "n": flags.n,
        **step_counts(sampler),
        "sampler": to_config(sampler),
        "nfe": nfe,
        "seed": flags.seed,
        "checkpoint": (newest_checkpoint(flags.run) or flags.run).name,
        "seconds": time.monotonic() - start,
        "peak_memory": peak_memory(),
    }
    write_file(out / "samples.npz", pictures.npz_bytes({"x_0": x_0.numpy()}))
    write_file(out / "samples.json", json.dumps(info, indent=1))
    shown = "samples.npz"
    if x_0.ndim == 4 and x_0.shape[1] in (1, 3):
        write_file(out / "samples.png", pictures.png_bytes(pictures.grid(x_0)))
        shown += " and samples.png"
    sys.stdout.write(
        f"{flags.n} samples, {nfe:g} network evaluations each, in {info['seconds']:.1f} s: {shown} in {out}\n"
    )
    return 0
