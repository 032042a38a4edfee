"""Write a self-contained page about a run: fewstep report RUN [flags]

RUN/report.html holds sample grids for several numbers of steps, a trajectory with several draws of x_0 for the same x_tau
side by side, the loss curves, the tables of RUN/evaluation.json (if `fewstep evaluate RUN` has written it), and the
commands that make it all again. One file, pictures included, no network needed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from fewstep.cli._parsing import allow_code_here, parse


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to show."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    steps: tuple[int, ...] = (1, 2, 4)
    """Numbers of steps N of the sample grids."""
    n: int = 64
    """Samples in each grid."""
    seed: int = 0
    """Seed of the samples."""
    data: Path | None = None
    """Folder of the data sets; FEWSTEP_DATA if left out."""
    trust_code: bool = False
    """Load a run whose classes are not part of fewstep: runs their code."""


def run(arguments: list[str]) -> int:
    """Write the page."""
    flags = parse(Flags, arguments, "report", __doc__)

    from fewstep.report import write_report

    allow_code_here(flags.trust_code)
    path = write_report(
        flags.run, steps=flags.steps, n=flags.n, seed=flags.seed, data=flags.data, trust_code=flags.trust_code
    )
    sys.stdout.write(f"written to {path}\n")
    return 0
