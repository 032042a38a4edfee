"""Fine-tune a trained model to a reward: fewstep finetune RUN --reward REWARD [flags]

The target is p(x_0) exp(r(x_0) / T) / Z, p the model's own law and T the --temperature. --method tilt trains on items that
are weighted by the reward (the training data, or with --source model the model's own draws); gradient goes through the reward
and one step of the model, anchored to the model as it was. REWARD is as for fewstep steer.

The result is a run of its own in --out: fewstep sample, evaluate and calibrate take it. The model as it was is kept in
finetuning/reference. A run that was stopped goes on with --resume. Prints mean reward and variety before and after;
finetune.json has them (docs/json.md). docs/rewards.md explains.
"""

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from fewstep.cli._parsing import allow_code_here, parse, parse_duration
from fewstep.cli._tables import print_tables, terminal
from fewstep.cli.steer import reward_of, spread
from fewstep.errors import UserError
from fewstep.files import write_file
from fewstep.finetuning import FinetunePlan, Finetuning, finetune
from fewstep.pretrained import load, sample
from fewstep.rewards import Reward
from fewstep.steering import kl_at_least, rewards_of
from fewstep.training.checkpoint import PREPARED


@dataclass(frozen=True, kw_only=True)
class Flags(FinetunePlan):
    """What to fine-tune to, how, and where."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    reward: tuple[str, ...] = ()
    """ink, thin, symmetry, a call such as 'ClassProbability(label=7)', or FILE.py:FUNCTION; several are summed."""
    weights: tuple[float, ...] = ()
    """Of several rewards: the factor of each."""
    decode: str = ""
    """FILE.py:FUNCTION that makes of latent items what the reward looks at."""
    n: int = 500
    """Samples to measure before and after, 100 or more."""
    out: Path | None = None
    """Folder of the new run; RUN-METHOD if left out."""
    data: Path | None = None
    """Folder of the data sets; FEWSTEP_DATA if left out."""
    resume: bool = False
    """Go on where it was stopped."""
    stop_after: str | None = None
    """End cleanly with a checkpoint after this time: 90s, 10m, 1h30m."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""
    precision: Literal["no", "bf16"] = "no"
    """bf16 runs the network in bfloat16 with float32 weights."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the newest two are kept."""
    quiet: bool = False
    """No progress."""
    trust_code: bool = False
    """Load a run whose classes are not part of fewstep: runs their code."""


def run(arguments: list[str]) -> int:
    """Fine-tune; 0 when finished or out of time, 130 when interrupted."""
    from fewstep.training import TrainingOptions
    from fewstep.training.checkpoint import stored_recipe

    flags = parse(Flags, arguments, "finetune", __doc__)
    if flags.n < 100 or flags.checkpoint_every < 1:
        raise UserError("--n counts from 100 up (fewer say nothing of a divergence), --checkpoint-every from 1")
    allow_code_here(flags.trust_code)
    reward = reward_of(flags.reward, flags.weights, flags.decode, stored_recipe(flags.run, flags.trust_code).dataset)
    out = flags.out or flags.run.parent / f"{flags.run.name}-{flags.method}"
    command = shlex.join(["fewstep", "finetune", *(a for a in arguments if a != "--resume")])
    options = TrainingOptions(
        out=out,
        data=flags.data,
        resume=flags.resume,
        stop_after=None if flags.stop_after is None else parse_duration(flags.stop_after),
        device=flags.device,
        precision=flags.precision,
        checkpoint_every=flags.checkpoint_every,
        quiet=flags.quiet,
        command=command,
    )
    names = FinetunePlan.__dataclass_fields__
    plan = FinetunePlan(**{name: getattr(flags, name) for name in names})
    found = finetune(flags.run, reward, plan, options, flags.trust_code)
    if found.reason != "finished":
        sys.stdout.write(f"stopped; go on with: {command} --resume\n")
        return 130 if found.reason == "interrupted" else 0
    result = {"command": command, "reward": repr(reward), **asdict(plan), "rounds": found.rounds}
    result |= measured(out, reward, flags.n, plan.seed) | {"notes": found.notes}
    if result["spread"] < 0.2:
        result["notes"].append(
            f"two samples are {result['spread']:.2g} times as far apart as before: almost one and the same; give a higher "
            "--temperature, a larger --anchor or fewer --steps"
        )
    write_file(out / "finetune.json", json.dumps(result, indent=1))
    console = terminal()
    print_tables(tables(result, found), console)
    for note in result["notes"]:
        console.print(note, highlight=False)
    sys.stdout.write(f"written to {out}: a run, with finetune.json and {PREPARED}/reference, the model as it was\n")
    return 0


def measured(run: Path, reward: Reward, n: int, seed: int) -> dict[str, Any]:
    """Mean reward and variety of n samples of the run and of its reference, from the same noise."""
    before, after = (load(folder) for folder in (run / PREPARED / "reference", run))
    old, new = sample(before, n, seed=seed, sampler=after.sampler), sample(after, n, seed=seed)
    r_old, r_new = rewards_of(reward, old), rewards_of(reward, new)
    return {
        "n": n,
        "own_mean_reward": r_old.mean().item(),
        "mean_reward": r_new.mean().item(),
        "kl_at_least": kl_at_least(new, old, r_new, r_old),
        "spread": spread(new) / spread(old),
        "moved": (new - old).flatten(1).square().sum(1).mean().sqrt().item(),
    }


def tables(result: dict[str, Any], found: Finetuning) -> list[tuple[str, list[str], list[list[str]]]]:
    """`(title, header, rows)`: the rounds of a tilt, and before and after."""
    shown = []
    if found.rounds:
        rows = [
            [str(i), *(f"{row[key]:.4g}" for key in ("strength", "items", "ess", "mean_reward", "kl"))]
            for i, row in enumerate(found.rounds, start=1)
        ]
        header = ["round", "strength (1 is the target)", "items", "effective", "mean reward there", "KL there, nats"]
        shown.append(("what the items are weighted to", header, rows))
    rows = [
        ["mean reward before", f"{result['own_mean_reward']:.4g}"],
        ["mean reward after", f"{result['mean_reward']:.4g}"],
        ["KL from the model before, nats, at least", f"{result['kl_at_least']:.3g}"],
        ["distance of two samples, over that before", f"{result['spread']:.3g}"],
        ["root mean square move of a sample, same noise", f"{result['moved']:.3g}"],
    ]
    title = f"{result['reward']}, T = {result['temperature']:g}, {result['method']}: {result['n']} samples"
    return [*shown, (title, ["number", "value"], rows)]
