"""What every steering method is: a posterior model and a reward in, samples of `p(x_0) exp(r(x_0) / T) / Z` out."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.models.base import EvaluationCounter, Model
from fewstep.particles import log_mean_exp, systematic, take
from fewstep.progress import Meter
from fewstep.steering.samples import Drawn, collect
from fewstep.steering.target import Method, Steps, Target, check_count

RewardFunction = Callable[[Tensor], Tensor]
"""Items `(batch, ...)` -> their rewards `(batch,)`."""


def rewards_of(reward: RewardFunction, x_0: Tensor, max_batch: int = 4096) -> Tensor:
    """The rewards `(batch,)` of items `(batch, ...)`, in float64, `max_batch` items at a time.

    Raises `UserError` where the reward fails, is not one number for each item, or is NaN or +infinity (-infinity is an item
    that must not be).
    """
    return _asked(reward, x_0, max_batch).detach()


def _asked(reward: RewardFunction, x_0: Tensor, max_batch: int) -> Tensor:
    return torch.cat([checked_rewards(reward, part) for part in x_0.split(max_batch)])


def checked_rewards(reward: RewardFunction, x_0: Tensor) -> Tensor:
    """`rewards_of` in one piece."""
    before = None if x_0.is_inference() else x_0._version
    try:
        r = reward(x_0)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the reward failed on items {tuple(x_0.shape)}: {type(error).__name__}: {error} (--debug shows where)"
        ) from error
    if before is not None and x_0._version != before:
        raise UserError("the reward changes the items that it is shown, in place: work on a copy, x.clone()")
    if not isinstance(r, Tensor):
        raise UserError(f"the reward gave a {type(r).__name__}: give a tensor ({len(x_0)},), one number for each item")
    if r.shape != (len(x_0),):
        raise UserError(
            f"the reward gave a tensor {tuple(r.shape)} for items {tuple(x_0.shape)}: give ({len(x_0)},), one number each"
        )
    bad = r.isnan() | r.isposinf()
    if bad.any():
        raise UserError(
            f"the reward of {int(bad.sum())} of {len(r)} items is NaN or +infinity, the first at index "
            f"{int(bad.int().argmax())}: give finite numbers, or -infinity where an item must not be"
        )
    return r.double()


@dataclass(frozen=True, kw_only=True, eq=False)
class Tilt(Target):
    """`p(x_0) exp(r(x_0) / T) / Z`, `number` times; where items are latent, r looks at `decode(x_0)`."""

    reward: RewardFunction
    temperature: float
    number: int = 1
    decode: RewardFunction | None = None

    @property
    def like(self) -> Tensor:
        return self.model.like.new_empty(self.number, *self.model.item_shape)

    def log_potential(self, x_0: Tensor) -> Tensor:
        """`r(x_0) / T` `(.., rows)` of draws `(.., rows, *item_shape)`."""
        lead = x_0.shape[: x_0.ndim - len(self.model.item_shape)]
        r = self.rewards(x_0.reshape(-1, *self.model.item_shape)).reshape(lead)
        g = r / self.temperature
        if (g.isinf() & r.isfinite()).any():
            raise UserError(
                f"rewards up to {r[r.isfinite()].abs().max():.3g} over a temperature of {self.temperature:g} are beyond all "
                "numbers: raise the temperature, or scale the reward"
            )
        return g

    def rewards(self, x_0: Tensor) -> Tensor:
        """`r(x_0)` `(n,)` of items `(n, *item_shape)`."""
        seen = self.reward if self.decode is None else lambda x: self.reward(self.decode(x))
        return _asked(seen, x_0, self.max_batch)


@dataclass(frozen=True, kw_only=True, eq=False)
class SteeredSamples:
    """Samples `x` `(k, *item_shape)` with log-weights `log_w` `(k,)` that sum to 1, and rewards `(k,)`.

    `ess` is the effective sample size (equal samples counted once), `log_z` the log-normaliser `log E_p[exp(r / T)]` where it is
    estimated, `nfe` the network evaluations for each sample. `kl` is the divergence from the model's own law that the reward
    cost, in nats: where samples are weighted the estimate `E[r] / T - log_z` of that of the target; else, with
    `kl_is_bound`, what the method can have paid at most. `notes` say what went wrong.
    """

    x: Tensor
    log_w: Tensor
    rewards: Tensor
    temperature: float
    ess: float
    log_z: float | None
    kl: float | None
    kl_is_bound: bool
    nfe: float
    notes: tuple[str, ...] = ()

    def expectation(self, values: Tensor) -> Tensor:
        """The weighted mean of numbers `(k, ...)`."""
        weights = self.log_w.exp().to(values)
        return (weights.reshape(-1, *[1] * (values.ndim - 1)) * values).sum(0)

    @property
    def mean_reward_error(self) -> float:
        """The standard error of the mean reward, as if samples were independent."""
        away = self.rewards - self.mean_reward
        return (self.log_w.exp() * away).nan_to_num(0.0).square().sum().sqrt().item()

    @property
    def mean_reward(self) -> float:
        """The weighted mean of the rewards."""
        weights = self.log_w.exp()
        return torch.where(weights > 0, weights * self.rewards, 0.0).sum().item()

    def unweighted(self, generator: Source = None) -> Tensor:
        """As many samples `(k, *item_shape)` without weights, drawn by their weights (systematically)."""
        return take(self.x[:, None], systematic(self.log_w[:, None], generator).to(self.x.device))[:, 0]


@dataclass(frozen=True, kw_only=True)
class SteeringMethod(Method):
    """`method(model, reward, num_samples, generator) -> SteeredSamples`; hyper-parameters are the fields.

    The target is `p(x_0) exp(r(x_0) / temperature) / Z`. A draw takes `flow_steps` network evaluations; at most `max_batch` go
    through the network (and the reward) at once. Raises `UserError` where the model has no posterior, a number is out of range or
    the reward is bad (`rewards_of`).
    """

    temperature: float = 1.0
    flow_steps: int = 1
    max_batch: int = 4096

    together: ClassVar[bool] = False
    remedy: ClassVar[str] = "take more samples, or a higher temperature"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < torch.inf:
            raise UserError(f"a temperature is a finite number above 0, not {self.temperature}")
        super().__post_init__()

    def __call__(
        self,
        model: Model,
        reward: RewardFunction,
        num_samples: int,
        generator: Source = None,
        *,
        decode: Callable[[Tensor], Tensor] | None = None,
        quiet: bool = True,
    ) -> SteeredSamples:
        """`num_samples` samples. `reward` maps items `(batch, ...)`, or what `decode` makes of them, to `(batch,)`."""
        name = type(self).__name__
        check_count("num_samples", num_samples)
        if isinstance(generator, Sequence):
            raise UserError(f"the samples of {name} share their randomness: give one generator")
        self.check_model(model)
        sizes = [1] if self.together else _groups(num_samples, max(1, self.max_batch // self.held))
        k = num_samples if self.together else 1

        law = self.target(model, reward, generator, decode)
        total = self.iterations * len(sizes)
        with torch.no_grad(), EvaluationCounter(model) as counter, Meter(name, total, quiet=quiet) as meter:
            parts = [
                self.run(replace(law, number=b), k, Steps(meter, i * self.iterations)) for i, b in enumerate(sizes)
            ]
            found = parts[0] if self.together else _joined(parts)
            x = found.x.reshape(num_samples, *model.item_shape)
            rewards = law.rewards(x).detach()
        if rewards.isneginf().all():
            raise UserError(
                f"none of the {num_samples} samples has a reward above -infinity: the reward allows nothing that was drawn; "
                "soften it, or take more samples or draws"
            )
        nfe = counter.items / num_samples
        weighted = found if self.weighs else Drawn(x=found.x)
        samples = collect([weighted], num_samples, tuple(model.item_shape), nfe, name, self.remedy)
        log_w = samples.log_w[:, 0]
        log_z = None if samples.log_z is None else samples.log_z.item()
        return SteeredSamples(
            x=x,
            log_w=log_w,
            rewards=rewards,
            temperature=self.temperature,
            ess=samples.ess.item(),
            log_z=log_z,
            kl=self.kl(found, rewards / self.temperature, log_w, log_z),
            kl_is_bound=not self.weighs,
            nfe=nfe,
            notes=samples.notes + _forbidden(rewards, log_w),
        )

    def target(
        self,
        model: Any,
        reward: RewardFunction,
        generator: Source = None,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> Tilt:
        """The law that the method samples from."""
        return Tilt(
            model=model,
            generator=generator,
            flow_steps=self.flow_steps,
            max_batch=self.max_batch,
            reward=reward,
            temperature=self.temperature,
            decode=decode,
        )

    @property
    def weighs(self) -> bool:
        """Whether the samples carry the weights that make the method consistent."""
        return True

    @abstractmethod
    def run(self, target: Tilt, k: int, meter: Steps) -> Drawn:
        """K samples for each law of the target: all in one law where they go `together`, else one in each of many."""

    def kl(self, found: Drawn, g: Tensor, log_w: Tensor, log_z: float | None) -> float | None:
        """The divergence from the model's law: estimated, or where samples are not weighed the bound `E[g - log w]`.

        The bound is the divergence of the whole path of the method from that of the model, of which that of x_0 is a part.
        """
        if self.weighs:
            weights = log_w.exp()
            mean = torch.where(weights > 0, weights * g, 0.0).sum().item()
            return None if log_z is None else _not_negative(mean - log_z)
        if found.log_w is None:
            return None
        return _not_negative((g - found.log_w.flatten()).mean().item())


def _forbidden(rewards: Tensor, log_w: Tensor) -> tuple[str, ...]:
    many = int((rewards.isneginf() & log_w.isfinite()).sum())
    said = f"{many} of {len(rewards)} samples have a reward of -infinity, which must not be: take a method that weighs (SMC)"
    return (said,) if many else ()


def _not_negative(value: float) -> float | None:
    """A divergence up to rounding; None where it is unknown, as where an item is not allowed at all."""
    return max(0.0, value) if math.isfinite(value) else None


def _groups(n: int, size: int) -> list[int]:
    return [min(size, n - first) for first in range(0, n, size)]


def _joined(parts: list[Drawn]) -> Drawn:
    """Chains of one particle each as the particles of one law."""
    x = torch.cat([part.x for part in parts])
    weights = [part.log_w.flatten() for part in parts if part.log_w is not None]
    if not weights:
        return Drawn(x=x)
    log_w = torch.cat(weights)[:, None]
    return Drawn(x=x, log_w=log_w, log_z=log_mean_exp(log_w))
