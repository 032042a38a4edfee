"""A law `p(x_0) exp(g(x_0)) / Z` to sample from: a model of p, and what g says of each item.

Inverse problems and rewards are the same to their samplers: g is a log-likelihood `log p(y | x_0)`, or a reward over its
temperature, `r(x_0) / T`. Several such laws may be asked for at once, b of them, k chains for each. The states of all chains are
rows `(k b, *item_shape)`, chain by chain; the network sees at most `max_batch` of them at a time.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.bridge import sample_bridge
from fewstep.draws import Source, normal_like, split
from fewstep.errors import UserError
from fewstep.models.base import Model, PosteriorModel
from fewstep.models.consistency import has_posterior
from fewstep.posterior import FlowPosterior
from fewstep.progress import Meter


@dataclass(frozen=True, kw_only=True, eq=False)
class Target(ABC):
    """The model, where the randomness comes from, and g."""

    model: PosteriorModel
    generator: Source
    flow_steps: int
    max_batch: int

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """Any tensor `(b, *item_shape)` in the dtype and on the device of the states: b is how many laws there are."""

    @abstractmethod
    def log_potential(self, x_0: Tensor) -> Tensor:
        """`g(x_0)` `(.., rows)` of draws `(.., rows, *item_shape)`."""

    @property
    def count(self) -> int:
        """How many laws, b."""
        return len(self.like)

    def start(self, k: int) -> Tensor:
        """Standard normal states `(k b, *item_shape)`."""
        return normal_like(self.like, self.generator, (k,)).flatten(0, 1)

    def normal(self, x: Tensor, m: tuple[int, ...] = ()) -> Tensor:
        """Standard normal numbers `(*m, *x.shape)` for rows x."""
        return normal_like(x, self.source(len(x)), m)

    def source(self, rows: int) -> Source:
        """The source of the rows' randomness: the generator of a law serves all of its rows in turn."""
        if isinstance(self.generator, Sequence):
            return list(self.generator) * (rows // self.count)
        return self.generator

    def step(self, x_0: Tensor, x_tau: Tensor, s: Tensor, tau: Tensor) -> Tensor:
        """A draw of `x_s` from the bridge, for rows."""
        return sample_bridge(x_0, x_tau, s, tau, self.model.schedule, self.source(len(x_tau)))

    def draw(self, x_tau: Tensor, tau: Tensor, m: int) -> Tensor:
        """Draws of `q(x_0 | x_tau)`, m for each row, `(m, rows, *item_shape)`, a bounded number at a time."""
        chunks = x_tau.split(max(1, self.max_batch // m))
        sources = split(self.source(len(x_tau)), [len(chunk) for chunk in chunks])
        parts = [
            self._posterior(chunk, tau).sample((m,), flow_steps=self.flow_steps, generator=source).to(x_tau)
            for chunk, source in zip(chunks, sources, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def push(self, x_tau: Tensor, tau: Tensor, z: Tensor) -> Tensor:
        """The draws `(m, rows, *item_shape)` that the noise z `(m, rows, *item_shape)` becomes.

        Raises `UserError` where draws are no function of Gaussian noise.
        """
        parts = []
        for chunk, noise in zip(
            *(v.split(max(1, self.max_batch // len(z)), d) for v, d in ((x_tau, 0), (z, 1))), strict=True
        ):
            q = self._posterior(chunk, tau)
            if not isinstance(q, FlowPosterior):
                raise UserError(
                    f"draws of a {type(self.model).__name__} are no function of Gaussian noise: leave the chain and the "
                    "reparametrised gradient off"
                )
            parts.append(q.sample((len(z),), flow_steps=self.flow_steps, noise=noise.to(self.model.like)).to(x_tau))
        return torch.cat(parts, dim=1)

    def mean(self, x_tau: Tensor, tau: Tensor) -> Tensor:
        """The posterior's mean `(rows, *item_shape)`, differentiable in the state."""
        chunks = x_tau.split(self.max_batch)
        sources = split(self.source(len(x_tau)), [len(chunk) for chunk in chunks])
        parts = [
            self._posterior(chunk, tau).mean(generator=source).to(x_tau)
            for chunk, source in zip(chunks, sources, strict=True)
        ]
        return torch.cat(parts)

    def _posterior(self, x_tau: Tensor, tau: Tensor):
        return self.model(x_tau.to(self.model.like), tau)


class Method(ABC):
    """What methods for inverse problems and for rewards share; the numbers are fields of their dataclasses.

    A draw takes `flow_steps` network evaluations; no more than `max_batch` go through the network at once.
    """

    flow_steps: int
    max_batch: int

    remedy: ClassVar[str] = "take more samples"

    def __post_init__(self) -> None:
        check_count("flow_steps", self.flow_steps)
        check_count("max_batch", self.max_batch)

    @property
    @abstractmethod
    def iterations(self) -> int:
        """How many steps the progress counts."""

    @property
    def held(self) -> int:
        """How many draws are held at once for each sample."""
        return 1

    def check_model(self, model: Model) -> None:
        """`UserError` unless the model knows `q(x_0 | x_tau)`."""
        if not has_posterior(model):
            raise UserError(
                f"{type(self).__name__} needs a model of q(x_0 | x_tau), and a {type(model).__name__} is none: give a run of an "
                "stmd or ddpm recipe"
            )


class Stepwise(Method):
    """A method of `steps` times that holds `draws` draws of each sample at once."""

    steps: int
    draws: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps)
        check_count("draws", self.draws)

    @property
    def iterations(self) -> int:
        return self.steps

    @property
    def held(self) -> int:
        return self.draws


@dataclass(frozen=True)
class Steps:
    """A part of a progress: the steps of one group of problems, after those of others."""

    meter: Meter
    before: int

    def update(self, done: int) -> None:
        """Show that `done` steps of the group are done."""
        self.meter.update(self.before + done)


def check_count(name: str, value: int, least: int = 1) -> None:
    """`UserError` unless the value is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} counts from {least} up, not {value!r}")
