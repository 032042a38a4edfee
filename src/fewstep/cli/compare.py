"""Compare trained models on equal terms: fewstep compare RUN RUN ... [flags]

All runs are of one data set. RUN@NAME samples from a run in another way than its default: ancestral, re-noising, ddpm,
ddim, euler, heun, euler-maruyama, exponential (as for fewstep sample --sampler). For every number of network evaluations
(NFE) and every run the distances to held-out data are measured over several seeds, beside the real-versus-real floor; a
run whose posterior is carried by a flow has a line for each M. Writes comparison.json (keys in docs/json.md),
comparison.png and comparison.html to --out.
"""

import json
import shlex
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import tyro

from fewstep.cli._parsing import allow_code_here, parse
from fewstep.cli._sampler import named_sampler
from fewstep.cli._tables import print_tables, terminal
from fewstep.comparison import ComparisonPlan, Contestant, compare
from fewstep.comparison_report import document, figure, notes, tables
from fewstep.errors import UserError
from fewstep.evaluation import NAMES
from fewstep.files import write_file


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to compare and where to put it."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of the runs, each perhaps with @SAMPLER behind it."""
    plan: Annotated[ComparisonPlan, tyro.conf.arg(name="")] = ComparisonPlan()
    out: Path = Path("runs/comparison")
    """Folder for the results."""
    data: Path | None = None
    """Folder of the data sets; FEWSTEP_DATA if left out."""
    device: str = "cpu"
    """cpu, or cuda where there is a GPU."""
    trust_code: bool = False
    """Load runs whose classes are not part of fewstep: runs their code."""


def run(arguments: list[str]) -> int:
    """Compare, write the results, print the tables."""
    flags = parse(Flags, arguments, "compare", __doc__)
    if not flags.runs:
        raise UserError("give the folders of the runs to compare: fewstep compare runs/a runs/b")
    allow_code_here(flags.trust_code)
    folders = {_parts(text)[0].absolute() for text in flags.runs}
    for a, b in combinations(sorted(folders), 2):
        if a.name == b.name:
            raise UserError(f"{a} and {b} have one name in the tables: rename one of the folders")
    contestants = [_contestant(text, flags) for text in flags.runs]
    result = {"command": shlex.join(["fewstep", "compare", *arguments])}
    result |= compare(contestants, flags.plan, flags.data, quiet=False)
    image = figure(result)
    write_file(flags.out / "comparison.json", json.dumps(result, indent=1))
    write_file(flags.out / "comparison.png", image)
    write_file(flags.out / "comparison.html", document(result, image))
    console = terminal()
    print_tables(tables(result, NAMES), console)
    for note in notes(result):
        console.print(note, highlight=False)
    sys.stdout.write(f"written to {flags.out}: comparison.json, comparison.png, comparison.html\n")
    return 0


def _parts(text: str) -> tuple[Path, str]:
    """The folder and the sampler's name, which stands behind the last @ of the folder's own name."""
    path = Path(text)
    name, at, sampler = path.name.rpartition("@")
    return (path.with_name(name), sampler) if at else (path, "")


def _contestant(text: str, flags: Flags) -> Contestant:
    from fewstep.pretrained import load, newest_checkpoint
    from fewstep.training.checkpoint import stored_recipe, training_cost

    folder, sampler = _parts(text)
    model = load(folder, device=flags.device, trust_code=flags.trust_code)
    recipe = stored_recipe(folder, flags.trust_code)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint: give the folder of a run, as `fewstep train` writes it")
    return Contestant(
        name=f"{folder.name}@{sampler}" if sampler else folder.name,
        run=folder.name,
        model=model,
        sampler=named_sampler(sampler) if sampler else model.sampler,
        recipe=recipe,
        training={"checkpoint": checkpoint.name} | training_cost(checkpoint),
    )
