"""Fine-tune a trained model to `p(x_0) exp(r(x_0) / T) / Z` on the ordinary training loop.

Two ways, both from the weights of the model that is there, a copy of which stays in the run (`finetuning/reference`):

- tilt: the training loss unchanged, on items weighted by `exp(r / T)`. No gradient of the reward, no teacher. Items are the
  training data, or the model's own draws: a pool that is weighted as far as a floor of its effective sample size allows, and
  where that is not all the way, the model is trained so far and draws the next pool. Older pools are kept and weighted on.
- gradient: `RewardGradient`, back-propagation through one step with an anchor.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fewstep import pictures
from fewstep.datasets import Arrays
from fewstep.draws import seed_of_stream
from fewstep.errors import UserError
from fewstep.files import write_file
from fewstep.models.base import EvaluationCounter
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives import RewardGradient
from fewstep.particles import effective_sample_size, log_mean_exp
from fewstep.pretrained import load, sample, save_pretrained
from fewstep.progress import Meter
from fewstep.recipe import Optimiser, Recipe
from fewstep.rewards import Reward
from fewstep.steering.base import rewards_of
from fewstep.training import TrainingOptions, train
from fewstep.training.checkpoint import stored_recipe
from fewstep.training.loop import PREPARED


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
        if min(self.pool, self.rounds, self.steps) < 1 or (self.batch_size or 1) < 1 or self.seed < 0:
            raise UserError("pool, rounds, steps and batch size count from 1 up, seed from 0")
        if self.pool < 100:
            raise UserError(f"a pool of {self.pool} items is no law to learn: take 100 or more")


@dataclass
class Pool:
    """Items `(n, ...)` with `g = r / T` `(n,)` in float64, drawn from about `p exp(strength g) / exp(log_z)`."""

    x_0: Tensor
    g: Tensor
    strength: float
    log_z: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Weighing:
    """Items of all pools with weights that sum to 1, of the law `p exp(strength g) / exp(log_z)`."""

    x_0: Tensor
    weights: Tensor
    strength: float
    ess: float
    log_z: float
    mean_g: float

    @property
    def kl(self) -> float:
        """The divergence of that law from the reference's, `strength E[g] - log_z`."""
        return max(0.0, self.strength * self.mean_g - self.log_z)


def weigh(pools: list[Pool], strength: float) -> Weighing:
    """The pools weighted to this strength: each by itself, then in proportion to their effective numbers."""
    shares, sizes = [], []
    for pool in pools:
        log_w = (strength - pool.strength) * pool.g
        sizes.append(effective_sample_size(log_w[:, None]).item())
        shares.append(log_w.softmax(0))
    weights = torch.cat([share * size / sum(sizes) for share, size in zip(shares, sizes, strict=True)])
    newest, g = pools[-1], torch.cat([pool.g for pool in pools])
    log_z = newest.log_z + log_mean_exp((strength - newest.strength) * newest.g).item()
    return Weighing(
        x_0=torch.cat([pool.x_0 for pool in pools]),
        weights=weights,
        strength=strength,
        ess=1 / weights.square().sum().item(),
        log_z=log_z,
        mean_g=torch.where(weights > 0, weights * g, 0.0).sum().item(),
    )


def strongest(pools: list[Pool], least: float) -> Weighing:
    """The pools at the largest strength up to 1 at which `least` items are effective."""
    whole = weigh(pools, 1.0)
    if whole.ess >= least:
        return whole
    low, high = pools[-1].strength, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if weigh(pools, middle).ess >= least else (low, middle)
    return weigh(pools, low)


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
        raise UserError(f"fine-tuning is for a PosteriorFlow, and {run} holds a {type(model).__name__}")
    if options.out.exists() and any(options.out.iterdir()) and not options.resume:
        raise UserError(f"{options.out} is not empty: add --resume to go on, or choose another --out")
    reward = reward.for_data(recipe.dataset)
    rewards_of(reward, recipe.dataset.train(options.data).up_to(8)["x_0"])
    reference = (options.out / PREPARED / "reference").absolute()
    if not reference.exists():
        save_pretrained(model, reference)
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
        else _by_tilt(tuned, reward, plan, options)
    )


def _by_gradient(recipe: Recipe, reward: Reward, plan: FinetunePlan, options: TrainingOptions) -> Finetuning:
    objective = RewardGradient(
        reward=reward, reference=recipe.start_from, temperature=plan.temperature, anchor=plan.anchor
    )
    # one flow step is what is trained
    recipe = replace(recipe, objective=objective, sampler=recipe.sampler.with_steps(None, 1))
    outcome = train(recipe, options)
    return Finetuning(run=options.out, reason=outcome.reason)


def _by_tilt(recipe: Recipe, reward: Reward, plan: FinetunePlan, options: TrainingOptions) -> Finetuning:
    result, pools, source = Finetuning(run=options.out, reason="finished"), list[Pool](), Path(recipe.start_from)
    strength, log_z = 0.0, 0.0
    for number in range(1, plan.rounds + 1):
        base = (options.out / PREPARED / f"round-{number}").absolute()
        if not (base / "pool.npz").exists():
            drawn, nfe = _items(recipe, source, plan, number, options)
            g = rewards_of(reward, drawn) / plan.temperature
            arrays = {
                "x_0": drawn.numpy(),
                "g": g.numpy(),
                "strength": np.array([strength, log_z]),
                "nfe": np.array(nfe),
            }
            write_file(base / "pool.npz", pictures.npz_bytes(arrays))
        with np.load(base / "pool.npz") as stored:
            x_0, g, nfe = torch.from_numpy(stored["x_0"]), torch.from_numpy(stored["g"]), float(stored["nfe"])
        pools.append(Pool(x_0=x_0, g=g, strength=strength, log_z=log_z))
        found = strongest(pools, plan.floor * len(g))
        row = {"strength": found.strength, "items": len(found.weights), "ess": found.ess, "log_z": found.log_z}
        row |= {"mean_reward": found.mean_g * plan.temperature, "kl": found.kl, "nfe": nfe}
        result.rounds.append(row)
        if found.strength < min(1.0, strength + 1e-3):
            raise UserError(
                f"round {number}: beyond strength {found.strength:.3g} of 1 fewer than {plan.floor:g} of the {len(g)} items are "
                "effective: give a higher --temperature, a larger --pool or a lower --floor"
            )
        if not (base / "weighted.npz").exists():
            arrays = {"x_0": found.x_0.numpy(), "weights": found.weights.numpy()}
            write_file(base / "weighted.npz", pictures.npz_bytes(arrays))
        last = found.strength >= 1 or number == plan.rounds or plan.source == "data"
        folder = options.out if last else base / "run"
        tuned = replace(recipe, dataset=Arrays(path=str(base / "weighted.npz")), start_from=str(source))
        result.reason = train(tuned, replace(options, out=folder)).reason
        if result.reason != "finished" or last:
            break
        source, strength, log_z = folder, found.strength, found.log_z
    reached = result.rounds[-1]["strength"]
    if reached < 1 and result.reason == "finished":
        result.notes.append(
            f"the tilt ended at strength {reached:.3g} of 1, as if the temperature were "
            f"{plan.temperature / max(reached, 1e-9):.3g}: beyond it fewer than {plan.floor:g} of the items are "
            "effective; give a larger --pool, a lower --floor, or --source model with more --rounds"
        )
    return result


def _items(
    recipe: Recipe, source: Path, plan: FinetunePlan, number: int, options: TrainingOptions
) -> tuple[Tensor, float]:
    """Items to weigh, training data or draws of the model in `source` (images clamped to [-1, 1]), and evaluations for each."""
    if plan.source == "data":
        return recipe.dataset.train(options.data).up_to(plan.pool, plan.seed)["x_0"], 0.0
    model = load(source)
    quiet = options.quiet
    with EvaluationCounter(model) as counter, Meter(f"pool {number}", plan.pool, unit="item", quiet=quiet) as meter:
        drawn = sample(model, plan.pool, seed=seed_of_stream(plan.seed, number), progress=meter.update).cpu()
    return (drawn.clamp(-1, 1) if len(model.item_shape) == 3 else drawn), counter.items / plan.pool
