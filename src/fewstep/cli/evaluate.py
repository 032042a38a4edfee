"""Measure a trained model: distances of its samples, and whether its draws can be trusted: fewstep evaluate RUN [flags]

Writes evaluation.json to the run's folder (keys in docs/json.md) and prints two tables. The first compares samples with
held-out data for every number of steps N and flow steps M, each beside the same distance between real and real data at
the same size (or as much as there is): a sampler cannot be told from the data where it is at the floor. The energy
distance is unbiased, so it may fall below 0. The second table asks, for held-out pairs (x_0, x_tau), whether the draws
from q(x_0 | x_tau) vary as much as they err: spread/skill is 1 where they do.
"""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from fewstep.cli._parsing import allow_code_here, parse
from fewstep.evaluation import EvaluationPlan, evaluate, tables
from fewstep.files import write_file


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to measure."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    plan: Annotated[EvaluationPlan, tyro.conf.arg(name="")] = EvaluationPlan()
    data: Path | None = None
    """Folder of the data sets; FEWSTEP_DATA if left out."""
    out: Path | None = None
    """The JSON file; RUN/evaluation.json if left out."""
    device: str = "cpu"
    """cpu, or cuda where there is a GPU."""
    trust_code: bool = False
    """Load a run whose classes are not part of fewstep: runs their code."""


def run(arguments: list[str]) -> int:
    """Evaluate, write the JSON, print the tables."""
    flags = parse(Flags, arguments, "evaluate", __doc__)

    from fewstep.pretrained import load, newest_checkpoint
    from fewstep.training.checkpoint import stored_recipe

    allow_code_here(flags.trust_code)
    model = load(flags.run, device=flags.device, trust_code=flags.trust_code)
    recipe = stored_recipe(flags.run, flags.trust_code)
    checkpoint = newest_checkpoint(flags.run) or flags.run
    command = shlex.join(["fewstep", "evaluate", *arguments])
    result = {
        "recipe": recipe.name,
        "command": command,
        "checkpoint": checkpoint.name,
        **evaluate(model, recipe.dataset, flags.plan, flags.data, quiet=False),
    }
    write_file(flags.out or flags.run / "evaluation.json", json.dumps(result, indent=1))
    show(result, Console())
    sys.stdout.write(f"written to {flags.out or flags.run / 'evaluation.json'}\n")
    return 0


def show(result: dict[str, Any], console: Console) -> None:
    """Print the two tables."""
    for title, header, rows in tables(result):
        table = Table(title=title, title_justify="left")
        for column in header:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if "features" in result:
        f = result["features"]
        console.print(f"Frechet features: {f['extractor']}, accuracy {f['accuracy']:.1%}, sha256 {f['sha256'][:12]}")
