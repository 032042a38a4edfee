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
from fewstep.files import write_file


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to measure."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """Number of samples; as many as there are held-out items (at most 10000; 6000 of a mixture) if left out."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 16)
    """N: steps on the diffusion clock."""
    flow_steps: tuple[int, ...] = (1, 4)
    """M: steps on the flow clock."""
    taus: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.8)
    """Times at which the posterior is looked at."""
    pairs: int = 500
    """Held-out pairs (x_0, x_tau) for each time."""
    draws: int = 16
    """Draws from the posterior for each pair."""
    seed: int = 0
    """Seed of the samples."""
    batch_size: int = 500
    """Items at a time."""
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

    from fewstep.evaluation import EvaluationPlan, evaluate
    from fewstep.pretrained import load, newest_checkpoint
    from fewstep.training.checkpoint import stored_recipe

    allow_code_here(flags.trust_code)
    model = load(flags.run, device=flags.device, trust_code=flags.trust_code)
    recipe = stored_recipe(flags.run, flags.trust_code)
    shared = ("n", "steps", "flow_steps", "taus", "pairs", "draws", "seed", "batch_size")
    plan = EvaluationPlan(**{name: getattr(flags, name) for name in shared})
    checkpoint = newest_checkpoint(flags.run) or flags.run
    command = shlex.join(["fewstep", "evaluate", *arguments])
    result = {
        "recipe": recipe.name,
        "command": command,
        "checkpoint": checkpoint.name,
        **evaluate(model, recipe.dataset, plan, flags.data, quiet=False),
    }
    write_file(flags.out or flags.run / "evaluation.json", json.dumps(result, indent=1))
    show(result, Console())
    sys.stdout.write(f"written to {flags.out or flags.run / 'evaluation.json'}\n")
    return 0


def show(result: dict[str, Any], console: Console) -> None:
    """Print the two tables."""
    from fewstep.evaluation import tables

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
