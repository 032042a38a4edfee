"""Measure a trained model: distances of its samples, and whether its draws can be trusted: fewstep evaluate RUN [flags]

Writes evaluation.json to the run's folder (keys in docs/json.md) and prints two tables. The first compares samples with
held-out data for every number of steps N and flow steps M, each beside the same distance between real and real data at
the same size (or as much as there is): a sampler cannot be told from the data where it is at the floor. The energy
distance is unbiased, so it may fall below 0. The second table asks, for held-out pairs (x_0, x_tau), whether the draws
from q(x_0 | x_tau) vary as much as they err: spread/skill is 1 where they do.

With --grid it looks instead for the best sampler at --nfe network evaluations: (N, M), grid of times and kernel c, chosen
against training items and measured again on held-out ones; writes tuning.json, and with --save-default stores the winner
with the model.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from fewstep.cli._parsing import parse
from fewstep.cli._run import Run, open_run
from fewstep.cli._sampler import SamplerFlags, override
from fewstep.cli._tables import print_tables, terminal
from fewstep.errors import UserError
from fewstep.evaluation import EvaluationPlan, evaluate, tables
from fewstep.files import write_file
from fewstep.pretrained import sampler_of
from fewstep.tuning import TuningPlan, table_of, tune


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to measure."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    plan: Annotated[EvaluationPlan, tyro.conf.arg(name="")] = EvaluationPlan()
    sampler: str | None = None
    """Another sampler than the model's: one of those of fewstep sample --sampler."""
    strength: float | None = None
    """Strength of guidance, of a generator that was trained with it: from 1 (none). The distances are to data of all classes."""
    grid: bool = False
    """Look for the best sampler at --nfe network evaluations instead."""
    nfe: int | None = None
    """With --grid: network evaluations for each sample (4)."""
    save_default: bool = False
    """With --grid: store the best sampler as the model's default."""
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

    run = open_run(flags.run, flags.device, flags.trust_code, "evaluate", arguments)
    sampler = override(sampler_of(run.model), SamplerFlags(sampler=flags.sampler, strength=flags.strength))
    if not sampler.takes_steps:
        known = (
            flags.plan.steps in (EvaluationPlan.steps, (1,)),
            flags.plan.flow_steps in (EvaluationPlan.flow_steps, (1,)),
        )
        if not all(known) or flags.grid or flags.save_default or flags.nfe is not None:
            raise UserError(
                f"{type(sampler).__name__} is one call of the network: leave --steps, --flow-steps, --grid, --nfe and "
                "--save-default out"
            )
    if flags.grid:
        return _tune(flags, run, sampler)
    if flags.save_default or flags.nfe is not None:
        raise UserError("--save-default and --nfe belong to the search for a sampler: add --grid")
    result = run.about | evaluate(run.model, run.recipe.dataset, flags.plan, flags.data, quiet=False, sampler=sampler)
    out = flags.out or flags.run / "evaluation.json"
    write_file(out, json.dumps(result, indent=1))
    console = terminal()
    print_tables(tables(result), console)
    if "features" in result:
        f = result["features"]
        console.print(f"Frechet features: {f['extractor']}, accuracy {f['accuracy']:.1%}, sha256 {f['sha256'][:12]}")
    sys.stdout.write(f"written to {out}\n")
    return 0


def _tune(flags: Flags, run: Run, sampler: Any) -> int:
    """Look for the best sampler, write the search, store the winner if asked to."""
    from fewstep.pretrained import save_default_sampler

    if flags.plan != EvaluationPlan(n=flags.plan.n, batch_size=flags.plan.batch_size):
        raise UserError("--grid takes of the plan --n and --batch-size only: leave the other flags out")
    nfe = TuningPlan.nfe if flags.nfe is None else flags.nfe
    plan = TuningPlan(nfe=nfe, n=flags.plan.n, batch_size=flags.plan.batch_size)
    best, search = tune(run.model, run.recipe.dataset, plan, flags.data, quiet=False, sampler=sampler)
    result = run.about | search
    out = flags.out or flags.run / "tuning.json"
    write_file(out, json.dumps(result, indent=1))
    print_tables([table_of(result)], terminal())
    if flags.save_default:
        save_default_sampler(run.checkpoint, best)
        sys.stdout.write(f"stored as the default sampler of {run.checkpoint}\n")
    sys.stdout.write(f"written to {out}\n")
    return 0
