"""Draw samples steered to a reward, without training: fewstep steer RUN --reward REWARD [flags]

The target is p(x_0) exp(r(x_0) / T) / Z, p the model's own law and T the --temperature. REWARD is a name (ink, thin,
symmetry), a call such as 'ClassProbability(label=7)', or FILE.py:FUNCTION, a function of a file of yours (it is run) that
maps a batch of items to one number each; --reward R1 R2 --weights 1 0.5 is a weighted sum. METHOD is smc, single,
single-weighted, guidance, guidance-through, plug-in, best-of-n or soft-best-of-n, or a call such as 'SMC(steps=20, draws=8)'.

Writes steered.npz (x_0, log_w, rewards), for images steered.png (drawn by their weights) and steered.json (docs/json.md)
to --out, and prints the rewards, what they cost in nats and in variety, and what went wrong. docs/rewards.md explains.
"""

import json
import math
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from fewstep import rewards, steering
from fewstep.cli._expression import build, concrete
from fewstep.cli._parsing import parse
from fewstep.cli._run import open_run
from fewstep.cli._tables import print_tables, terminal
from fewstep.datasets.base import Dataset
from fewstep.errors import UserError
from fewstep.files import write_file

REWARDS = {"ink": "Ink()", "thin": "Ink(sign=-1.0)", "symmetry": "Symmetry()"}
METHODS = {
    "smc": "SMC()",
    "single": "SingleParticle()",
    "single-weighted": "SingleParticle(weighted=True)",
    "guidance": "Guidance()",
    "guidance-through": "Guidance(gradient='reparametrised')",
    "plug-in": "Guidance(gradient='plug-in')",
    "best-of-n": "BestOfN()",
    "soft-best-of-n": "BestOfN(soft=True)",
}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to steer to, and how."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    reward: tuple[str, ...] = ()
    """ink, thin, symmetry, a call such as 'ClassProbability(label=7)', or FILE.py:FUNCTION; several are summed."""
    weights: tuple[float, ...] = ()
    """Of several rewards: the factor of each."""
    temperature: float = 1.0
    """T: the lower, the more the reward counts."""
    method: str = "smc"
    """smc, single, single-weighted, guidance, guidance-through, plug-in, best-of-n, soft-best-of-n; or a call."""
    n: int = 64
    """Number of samples."""
    decode: str = ""
    """FILE.py:FUNCTION that makes of latent items what the reward looks at."""
    seed: int = 0
    """Seed of the samples."""
    max_batch: int = 4096
    """Draws at a time: bounds the memory."""
    data: Path | None = None
    """Folder of the data sets; FEWSTEP_DATA if left out."""
    out: Path | None = None
    """Folder for the results; RUN/steered if left out."""
    device: str = "cpu"
    """cpu, or cuda where there is a GPU."""
    trust_code: bool = False
    """Load a run whose classes are not part of fewstep: runs their code."""


def run(arguments: list[str]) -> int:
    """Steer, write the files, print the numbers."""
    from fewstep import pictures

    flags = parse(Flags, arguments, "steer", __doc__)
    if flags.n < 2 or flags.seed < 0 or not flags.temperature > 0:
        raise UserError("--n counts from 2 up, --seed from 0, and --temperature is above 0")
    run = open_run(flags.run, flags.device, flags.trust_code, "steer", arguments)
    reward = reward_of(flags.reward, flags.weights, flags.decode, run.recipe.dataset)
    method = method_of(flags.method, flags.temperature, flags.max_batch)
    start, generator = time.monotonic(), torch.Generator().manual_seed(flags.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", steering.DegeneracyWarning)  # the notes are printed below
        own = steering.BestOfN(n=1, max_batch=flags.max_batch)(run.model, reward, flags.n, generator)
        found = method(run.model, reward, flags.n, generator, quiet=False)
    result = run.about | {"reward": repr(reward), "method": repr(method), "seed": flags.seed}
    result |= numbers(found, own) | {"seconds": time.monotonic() - start}
    result = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in result.items()}
    out, shown = flags.out or flags.run / "steered", "steered.npz, steered.json"
    arrays = {"x_0": found.x, "log_w": found.log_w, "rewards": found.rewards}
    write_file(out / "steered.npz", pictures.npz_bytes({name: value.cpu().numpy() for name, value in arrays.items()}))
    write_file(out / "steered.json", json.dumps(result, indent=1))
    drawn = found.unweighted(generator).cpu()
    if drawn.ndim == 4 and drawn.shape[1] in (1, 3):
        write_file(out / "steered.png", pictures.png_bytes(pictures.grid(drawn)))
        shown += " and steered.png"
    console = terminal()
    print_tables([table(result)], console)
    for note in result["notes"]:
        console.print(note, highlight=False)
    sys.stdout.write(f"written to {out}: {shown}\n")
    return 0


def reward_of(texts: tuple[str, ...], weights: tuple[float, ...], decode: str, dataset: Dataset) -> rewards.Reward:
    """The reward that the flags name, for items of this data set, or for what `decode` makes of them."""
    if not texts:
        raise UserError(f"what is wanted? give --reward {', '.join(REWARDS)}, a call or FILE.py:FUNCTION")
    found = [
        rewards.FileReward(file=text)
        if ".py:" in text and "(" not in text
        else build(text, concrete(rewards), REWARDS, "--reward", {}, rewards.Reward)
        for text in texts
    ]
    if weights and len(weights) != len(found):
        raise UserError(f"{len(weights)} --weights for {len(found)} rewards: give one for each")
    many = len(found) > 1 or weights
    reward = rewards.WeightedRewards(rewards=tuple(found), weights=weights or None) if many else found[0]
    return rewards.DecodedReward(reward=reward, decode=decode) if decode else reward.for_data(dataset)


def method_of(text: str, temperature: float, max_batch: int) -> steering.SteeringMethod:
    """The method that the flag names."""
    given = {"temperature": temperature, "max_batch": max_batch}
    return build(text, concrete(steering), METHODS, "--method", given, steering.SteeringMethod)


def numbers(found: steering.SteeredSamples, own: steering.SteeredSamples) -> dict[str, Any]:
    """What was gained, and what it cost; `own` are samples of the model as it is. Keys in docs/json.md."""
    drawn = found.unweighted(torch.Generator().manual_seed(0))
    variety, before = spread(drawn), spread(own.x)
    different = len(drawn.flatten(1).unique(dim=0))
    notes = list(found.notes)
    if different < 0.2 * len(drawn):
        notes.append(f"only {different} of {len(drawn)} samples are different: they are few, however well they score")
    if variety < 0.2 * before:
        notes.append(
            f"the samples are {variety / before:.2g} times as far apart as the model's own: almost one and the same; give a "
            "higher --temperature, or more samples or draws"
        )
    return {
        "n": len(found.x),
        "temperature": found.temperature,
        "mean_reward": found.mean_reward,
        "mean_reward_error": found.mean_reward_error,
        "own_mean_reward": own.mean_reward,
        "log_z": found.log_z,
        "kl": found.kl,
        "kl_is_bound": found.kl_is_bound,
        "ess": found.ess,
        "different": different,
        "spread": variety / before,
        "nfe": found.nfe,
        "notes": notes,
    }


def spread(x_0: torch.Tensor) -> float:
    """The mean distance of two of the items `(n, ...)`."""
    return torch.pdist(x_0.flatten(1).double().cpu()).mean().item()


def table(result: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """The numbers as `(title, header, rows)`."""
    names = {
        "mean_reward": "mean reward",
        "own_mean_reward": "mean reward of the model's own samples",
        "kl": "KL from the model, nats" + (", at most" if result["kl_is_bound"] else " (estimate)"),
        "log_z": "log Z",
        "ess": "effective samples (of weighted ones)",
        "different": "different samples",
        "spread": "distance of two samples, over that of the model's own",
        "nfe": "network evaluations a sample",
        "seconds": "seconds",
    }
    rows = [[text, f"{result[name]:.4g}"] for name, text in names.items() if result.get(name) is not None]
    if result["mean_reward"] is not None:
        rows[0][1] += f" ± {result['mean_reward_error'] or 0:.2g}"
    title = f"{result['recipe']}, {result['reward']}, T = {result['temperature']:g}: {result['n']} samples"
    return title, ["number", "value"], rows
