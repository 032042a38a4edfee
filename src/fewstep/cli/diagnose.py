"""Where a method's theory holds and where it does not: fewstep diagnose drifting [flags]

drifting: kernel drift beside the difference of the scores of the smoothed laws (arXiv 2603.07514). Fields in the plane, the
residual's three cases, alignment and its mechanism as the dimension grows, of whole populations beside finite samples, with
the cases marked (!) in which the claim that they agree does not hold. Needs no data and no model; a minute on a CPU, and with
--dims 2 16 64 256 1024 2048 --draws 10 a few. Writes drifting.json (keys in docs/json.md), drifting.html and the figures to
--out.
"""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewstep.cli._parsing import parse
from fewstep.cli._tables import print_tables, terminal
from fewstep.drifting_diagnosis import DriftingPlan, diagnose
from fewstep.drifting_figures import document, figures, notes, tables
from fewstep.files import write_file


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to look at and where to put it."""

    method: tyro.conf.Positional[Literal["drifting"]]
    """The method."""
    plan: Annotated[DriftingPlan, tyro.conf.arg(name="")] = DriftingPlan()
    out: Path = Path("runs/diagnosis")
    """Folder for the results."""


def run(arguments: list[str]) -> int:
    """Diagnose, write the results, print the tables."""
    flags = parse(Flags, arguments, "diagnose", __doc__)
    result = {"command": shlex.join(["fewstep", "diagnose", *arguments])} | diagnose(flags.plan, quiet=False)
    images = figures(result)
    write_file(flags.out / "drifting.json", json.dumps(result, indent=1))
    for name, image in images.items():
        write_file(flags.out / f"{name}.png", image)
    write_file(flags.out / "drifting.html", document(result, images))
    console = terminal()
    print_tables(tables(result), console)
    for note in notes(result):
        console.print(note, highlight=False)
    written = ", ".join(["drifting.json", "drifting.html", *(f"{name}.png" for name in images)])
    sys.stdout.write(f"written to {flags.out}: {written}\n")
    return 0
