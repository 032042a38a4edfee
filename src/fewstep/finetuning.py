"""Fine-tune a trained model to `p(x_0) exp(r(x_0) / T) / Z` on the ordinary training loop.

Two ways, both from the weights of the model that is there, a copy of which stays in the run (`finetuning/reference`):

- tilt: the training loss unchanged, on items weighted by `exp(r / T)`. No gradient of the reward, no teacher. Items are the
  training data, or the model's own draws: a pool that is weighted as far as a floor of its effective sample size allows, and
  where that is not all the way, the model is trained so far and draws the next pool. Older pools are kept and weighted on.
- gradient: `RewardGradient`, back-propagation through one step with an anchor.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fewstep import pictures
from fewstep.configuration import differences, to_config
from fewstep.datasets.tilted import Tilted
from fewstep.draws import seed_of_stream
from fewstep.errors import UserError
from fewstep.files import parse_json, write_file
from fewstep.models.base import EvaluationCounter
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives import RewardGradient
from fewstep.objectives.reward_gradient import differentiable_rewards
from fewstep.pretrained import load, sample, save_pretrained
from fewstep.progress import Meter
from fewstep.recipe import Optimiser, Recipe
from fewstep.rewards import Reward
from fewstep.steering.base import checked_rewards, rewards_of
from fewstep.steering.pools import Pool, Weighing, placed, strongest
from fewstep.training import TrainingOptions, train
from fewstep.training.checkpoint import PREPARED, stored_recipe

FEW = 100  # effective items, fewer than which are learnt by heart


@dataclass(frozen=True, kw_only=True)
class FinetunePlan:
    """How to fine-tune. Raises `UserError` where a number is out of range."""

    method: Literal["tilt", "gradient"] = "tilt"
    """tilt: weighted items, the loss unchanged. gradient: through the reward, one step, anchored to the reference."""
    source: Literal["data", "model"] = "data"
    """Of tilt: items are the training data, or the model's own draws."""
    temperature: float = 1.0
    """T of the target p(x_0) exp(r(x_0) / T) / Z."""
    pool: int = 10_000
    """Of tilt: number of items that are weighted, at most."""
    floor: float = 0.05
    """Of tilt: least effective share of the pool; the strength grows no further than that."""
    rounds: int = 5
    """Of tilt on the model's draws: at most so many pools, each drawn from the model that the one before has trained."""
    anchor: float = 1.0
    """Of gradient: weight of the squared distance to the reference's draw at the same noise, in deviations (docs/rewards.md)."""
    steps: int = 1000
    """Optimiser steps of a round."""
    lr: float = 5e-4
    """Learning rate, by a cosine to 0."""
    batch_size: int | None = None
    """Items a step; as the model was trained if left out."""
    seed: int = 0
    """Seed of the draws and of the training."""

    def __post_init__(self) -> None:
        if not (0 < self.temperature < math.inf and 0 < self.floor <= 1 and 0 <= self.anchor < math.inf):
            raise UserError("temperature is above 0, floor in (0, 1], anchor not negative, all of them finite")
        batch = 1 if self.batch_size is None else self.batch_size
        if min(self.pool, self.rounds, self.steps, batch) < 1 or self.seed < 0:
            raise UserError("pool, rounds, steps and batch size count from 1 up, seed from 0")
        if self.method == "gradient" and self.source == "model":
            raise UserError("--source is of the tilt: --method gradient noises training data")
        if self.pool < 100:
            raise UserError(f"a pool of {self.pool} items is no law to learn: take 100 or more")


@dataclass(kw_only=True)
class Finetuning:
    """What `finetune` did: the folder, and by round what was weighted and paid; keys in docs/json.md."""

    run: Path
    reason: str
    rounds: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def finetune(
    run: Path, reward: Reward, plan: FinetunePlan, options: TrainingOptions, trust_code: bool = False
) -> Finetuning:
    """Fine-tune the model in the folder `run` to a reward; the result is a run in `options.out`, with its own recipe.

    The reward is asked before anything is written. Stopped at any time, or by a reward that fails, it goes on with
    `options.resume` where it was. Raises `UserError` where the model is no posterior flow, the reward is bad, or as `train` does.
    """
    model, recipe = load(run, trust_code=trust_code), stored_recipe(run, trust_code)
    if not isinstance(model, PosteriorFlow):
        raise UserError(
            f"fine-tuning is for a PosteriorFlow, and {run} holds a {type(model).__name__}: give a run of an stmd recipe"
        )
    if options.out.exists() and any(options.out.iterdir()) and not options.resume:
        raise UserError(f"{options.out} is not empty: add --resume to go on, or choose another --out")
    reward = reward.for_data(recipe.dataset)
    data, first = recipe.dataset.train(options.data), None
    with torch.enable_grad():
        asked: Callable = differentiable_rewards if plan.method == "gradient" else checked_rewards
        asked(reward, data.up_to(8)["x_0"].clone().requires_grad_())
    if plan.method == "tilt" and plan.source == "data" and not (options.out / PREPARED).exists():
        first = _weighed(reward, data.up_to(plan.pool, plan.seed)["x_0"], plan)
        _check_floor(strongest([first], plan.floor * len(first.g)), plan)
    reference = (options.out / PREPARED / "reference").absolute()
    _store_plan(options.out / PREPARED, reference, model, reward, plan)
    tuned = replace(
        recipe,
        name=f"{recipe.name}-{plan.method}",
        description=f"{recipe.name} fine-tuned to a reward by {plan.method}",
        optimiser=Optimiser(lr=plan.lr, decay="cosine", warmup_steps=min(50, plan.steps // 4)),
        steps=plan.steps,
        batch_size=plan.batch_size or recipe.batch_size,
        ema_decay=max(0.0, 1 - 20 / plan.steps),
        ema_warmup=False,
        seed=plan.seed,
        start_from=str(reference),
    )
    return (
        _by_gradient(tuned, reward, plan, options)
        if plan.method == "gradient"
        else _by_tilt(tuned, reward, plan, options, first)
    )


def _store_plan(folder: Path, reference: Path, model: PosteriorFlow, reward: Reward, plan: FinetunePlan) -> None:
    """Keep the model as it was, and the plan; or check that they are those that are there."""
    given = {"plan": to_config(plan), "reward": to_config(reward)}
    if not reference.exists():
        write_file(folder / "plan.json", json.dumps(given, indent=1))
        save_pretrained(model, reference)
        return
    stored = parse_json((folder / "plan.json").read_bytes(), folder / "plan.json")
    changed = differences(stored, given)
    if changed:
        raise UserError(
            f"{folder.parent} was begun otherwise ({'; '.join(changed[:3])}): resume with the flags it was started with, or "
            "choose another --out"
        )
    pairs = zip(model.state_dict().values(), load(reference).state_dict().values(), strict=True)
    if not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
        raise UserError(f"{folder.parent} was begun from another model: resume from that one, or choose another --out")


def _check_floor(found: Weighing, plan: FinetunePlan, before: float = 0.0, number: int = 1) -> None:
    if found.strength < min(1.0, before + 1e-3):
        raise UserError(
            f"round {number}: beyond strength {found.strength:.3g} of 1 fewer than {plan.floor:g} of the items of a pool are "
            "effective: give a higher --temperature, a larger --pool or a lower --floor (does the reward like any item at all?)"
        )


def _by_gradient(recipe: Recipe, reward: Reward, plan: FinetunePlan, options: TrainingOptions) -> Finetuning:
    objective = RewardGradient(
        reward=reward, reference=recipe.start_from, temperature=plan.temperature, anchor=plan.anchor
    )
    # one flow step is what is trained
    recipe = replace(recipe, objective=objective, sampler=recipe.sampler.with_steps(None, 1))
    outcome = train(recipe, options)
    return Finetuning(run=options.out, reason=outcome.reason)


def _by_tilt(
    recipe: Recipe, reward: Reward, plan: FinetunePlan, options: TrainingOptions, first: Pool | None
) -> Finetuning:
    """Round by round; `first` is the first pool where it has been weighed already."""
    result, pools, source = Finetuning(run=options.out, reason="finished"), list[Pool](), Path(recipe.start_from)
    strength, log_z, started = 0.0, 0.0, time.monotonic()
    for number in range(1, plan.rounds + 1):
        left = None if options.stop_after is None else options.stop_after - (time.monotonic() - started)
        base = (options.out / PREPARED / f"round-{number}").absolute()
        if not (base / "pool.npz").exists():
            pool, nfe = (
                (first, 0.0) if first and number == 1 else _new_pool(recipe, source, reward, plan, number, options)
            )
            arrays = {"x_0": pool.x_0.numpy(), "g": pool.g.numpy(), "nfe": np.array(nfe)}
            write_file(base / "pool.npz", pictures.npz_bytes(arrays))
        with np.load(base / "pool.npz") as stored:
            x_0, g, nfe = torch.from_numpy(stored["x_0"]), torch.from_numpy(stored["g"]), float(stored["nfe"])
        assumed = Pool(x_0=x_0, g=g, strength=strength, log_z=log_z)
        pools.append(placed(pools, assumed) if pools else assumed)
        strength = pools[-1].strength
        found = strongest(pools, plan.floor * len(g))
        row = {"strength": found.strength, "items": len(found.weights), "ess": found.ess, "log_z": found.log_z}
        row |= {"mean_reward": found.mean_g * plan.temperature, "kl": found.kl, "nfe": nfe}
        result.rounds.append(row)
        _check_floor(found, plan, strength, number)
        if not (base / "weighted.npz").exists():
            held_out = _held_out(recipe, reward, plan, found.strength, options)
            arrays = {"x_0": found.x_0.numpy(), "weights": found.weights.numpy(), "x_0_test": held_out.numpy()}
            if step := recipe.dataset.train(options.data).step:
                arrays["levels"] = np.array(round(2 / step) + 1)
            write_file(base / "weighted.npz", pictures.npz_bytes(arrays))
        last = found.strength >= 1 or number == plan.rounds or plan.source == "data"
        folder = options.out if last else base / "run"
        kind = recipe.dataset.base if isinstance(recipe.dataset, Tilted) else recipe.dataset
        dataset = Tilted(base=kind, path=str(base / "weighted.npz"))
        tuned = replace(recipe, dataset=dataset, start_from=str(source))
        result.reason = train(
            tuned, replace(options, out=folder, stop_after=None if left is None else max(0.0, left))
        ).reason
        if result.reason != "finished" or last:
            break
        source, strength, log_z = folder, found.strength, found.log_z
    reached, effective = result.rounds[-1]["strength"], result.rounds[-1]["ess"]
    if effective < FEW:
        result.notes.append(
            f"only {effective:.0f} items are effective: the model learns these by heart; give a larger --pool (of --source model "
            "as large as you like), or a higher --temperature"
        )
    if reached < 1 and result.reason == "finished":
        result.notes.append(
            f"the tilt ended at strength {reached:.3g} of 1, as if the temperature were "
            f"{plan.temperature / max(reached, 1e-9):.3g}: beyond it fewer than {plan.floor:g} of the items are "
            "effective; give a larger --pool, a lower --floor, or --source model with more --rounds"
        )
    return result


def _weighed(reward: Reward, x_0: Tensor, plan: FinetunePlan) -> Pool:
    """Items of the law as it was, with `r / T`."""
    return Pool(x_0=x_0, g=rewards_of(reward, x_0) / plan.temperature, strength=0.0, log_z=0.0)


def _held_out(recipe: Recipe, reward: Reward, plan: FinetunePlan, strength: float, options: TrainingOptions) -> Tensor:
    """Held-out items of the tilted law, by rejection: each is kept with a chance in proportion to its weight."""
    x_0 = recipe.dataset.test(options.data).up_to(plan.pool, plan.seed)["x_0"]
    g = strength * rewards_of(reward, x_0) / plan.temperature
    generator = torch.Generator().manual_seed(seed_of_stream(plan.seed, 0))
    kept = torch.rand(len(g), dtype=torch.float64, generator=generator).log() < g - g.max()
    return x_0[kept & g.isfinite()]


def _new_pool(
    recipe: Recipe, source: Path, reward: Reward, plan: FinetunePlan, number: int, options: TrainingOptions
) -> tuple[Pool, float]:
    """Training data or draws of the model in `source` (images clamped to [-1, 1]), and the evaluations for each item."""
    if plan.source == "data":
        return _weighed(reward, recipe.dataset.train(options.data).up_to(plan.pool, plan.seed)["x_0"], plan), 0.0
    model = load(source)
    quiet = options.quiet
    with EvaluationCounter(model) as counter, Meter(f"pool {number}", plan.pool, unit="item", quiet=quiet) as meter:
        drawn = sample(model, plan.pool, seed=seed_of_stream(plan.seed, number), progress=meter.update).cpu()
    items = drawn.clamp(-1, 1) if len(model.item_shape) == 3 else drawn
    return _weighed(reward, items, plan), counter.items / plan.pool
