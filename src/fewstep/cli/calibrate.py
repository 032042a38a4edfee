"""Test whether the draws of a model's posterior can be trusted: fewstep calibrate RUN [flags]

For held-out pairs (x_0, x_tau), by tau and flow steps M: the rank of x_0 among the draws from q(x_0 | x_tau), component by
component, and of its distance to a reference that depends on x_tau (TARP), which are uniform for calibrated draws; how
often central intervals hold the truth; spread/skill, which is 1; proper scores; and whether two steps, x_tau -> x_s -> x_0,
agree with one. Where the data is a Gaussian mixture the exact posterior is tested beside the model. A narrowed copy and a
sampler of the prior, which ignores x_tau, show what the tests reject. Writes RUN/calibration.json (keys in docs/json.md)
and RUN/calibration.html, and prints tables and verdicts.

For every tau it takes 2 x pairs x draws x (sum of the M) network evaluations, 1.3 million by default: minutes on a CPU for
small networks; for large ones take a GPU, or fewer pairs, and --draws 31 or 15.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fewstep.calibration import CalibrationPlan, calibrate
from fewstep.calibration_report import document, tables, verdicts
from fewstep.cli._parsing import parse
from fewstep.cli._run import open_run
from fewstep.cli._tables import print_tables, terminal
from fewstep.files import write_file


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to test."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    plan: Annotated[CalibrationPlan, tyro.conf.arg(name="")] = CalibrationPlan()
    data: Path | None = None
    """Folder of the data sets; FEWSTEP_DATA if left out."""
    out: Path | None = None
    """Folder for calibration.json and calibration.html; RUN if left out."""
    device: str = "cpu"
    """cpu, or cuda where there is a GPU."""
    trust_code: bool = False
    """Load a run whose classes are not part of fewstep: runs their code."""


def run(arguments: list[str]) -> int:
    """Test, write JSON and page, print tables and verdicts."""
    flags = parse(Flags, arguments, "calibrate", __doc__)

    run = open_run(flags.run, flags.device, flags.trust_code, "calibrate", arguments)
    result = run.about | calibrate(run.model, run.recipe.dataset, flags.plan, flags.data, quiet=False)
    result["verdicts"] = verdicts(result)
    out = flags.out or flags.run
    write_file(out / "calibration.json", json.dumps(result, indent=1))
    write_file(out / "calibration.html", document(result))
    console = terminal()
    print_tables(tables(result), console)
    for sentence in result["verdicts"]:
        console.print(sentence, highlight=False)
    sys.stdout.write(f"written to {out}: calibration.json, calibration.html\n")
    return 0
