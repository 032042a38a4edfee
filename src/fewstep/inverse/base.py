"""What every method for inverse problems is: a posterior model, an operator and an observation in, samples of `p(x_0 | y)` out.

`y = A(x_0) + noise`, b problems at once: `y` `(b, *y_shape)`, samples `(k, b, *item_shape)`, k for each problem. Inside, the
states of all chains are rows `(k b, *item_shape)`, sample by sample; the network sees at most `max_batch` of them at a
time. With a sequence of generators, one for each problem, no problem changes another, nor does `max_batch` change any that
it holds as a whole.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.bridge import sample_bridge
from fewstep.draws import Source, normal_like, split
from fewstep.errors import UserError
from fewstep.models.base import EvaluationCounter, Model, PosteriorModel
from fewstep.models.consistency import has_posterior
from fewstep.operators import Inpainting, Noise, check_observation, is_linear
from fewstep.particles import effective_sample_size, systematic, take
from fewstep.posterior import FlowPosterior
from fewstep.progress import Meter
from fewstep.shapes import flat


class DegeneracyWarning(UserWarning):
    """Few of the samples carry the weight: what they say of the posterior is uncertain."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PosteriorSamples:
    """Samples of `p(x_0 | y)`: `x` `(k, b, *item_shape)` with log-weights `log_w` `(k, b)` that sum to 1 (to 0 where no sample
    can explain y).

    `ess` `(b,)` is the effective sample size, of weighted samples that are equal counted as one; `log_z` `(b,)` the
    log-evidence `log p(y)` where the method estimates it; `nfe` the network evaluations for each sample; `notes` what went
    wrong, in plain words.
    """

    x: Tensor
    log_w: Tensor
    ess: Tensor
    log_z: Tensor | None
    nfe: float
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> Tensor:
        """The weighted mean of each problem, `(b, *item_shape)`."""
        weights = self.log_w.exp().to(self.x)
        return (weights.reshape(*weights.shape, *[1] * (self.x.ndim - 2)) * self.x).sum(0)

    def unweighted(self, generator: Source = None) -> Tensor:
        """As many samples `(k, b, *item_shape)` without weights, drawn by their weights (systematically)."""
        return take(self.x, systematic(self.log_w, generator).to(self.x.device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """What a method found: samples `(k b, *item_shape)`; log-weights `(k, b)`, equal where None; log-evidence `(b,)`.

    `bad` `(b,)` says in which problems the `complaint` holds.
    """

    x: Tensor
    log_w: Tensor | None = None
    log_z: Tensor | None = None
    bad: Tensor | None = None
    complaint: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """An observation with what made it, the model of what it was made of, and where the randomness comes from."""

    model: PosteriorModel
    operator: Any
    noise: Noise
    y: Tensor
    generator: Source
    flow_steps: int
    max_batch: int

    def start(self, k: int) -> Tensor:
        """Standard normal states `(k b, *item_shape)`."""
        like = self.y.new_empty(len(self.y), *self.model.item_shape)
        return normal_like(like, self.generator, (k,)).flatten(0, 1)

    def normal(self, x: Tensor, m: tuple[int, ...] = ()) -> Tensor:
        """Standard normal numbers `(*m, *x.shape)` for rows x."""
        return normal_like(x, self.source(len(x)), m)

    def source(self, rows: int) -> Source:
        """The source of the rows' randomness: a problem's generator serves all of its rows in turn."""
        if isinstance(self.generator, Sequence):
            return list(self.generator) * (rows // len(self.y))
        return self.generator

    def step(self, x_0: Tensor, x_tau: Tensor, s: Tensor, tau: Tensor) -> Tensor:
        """A draw of `x_s` from the bridge, for rows."""
        return sample_bridge(x_0, x_tau, s, tau, self.model.schedule, self.source(len(x_tau)))

    def rows_of_y(self, rows: int) -> Tensor:
        """The observation of each row, `(rows, *y_shape)`."""
        return self.y.repeat(rows // len(self.y), *[1] * (self.y.ndim - 1))

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

    def _posterior(self, x_tau: Tensor, tau: Tensor):
        return self.model(x_tau.to(self.model.like), tau)

    def log_likelihood(self, x_0: Tensor) -> Tensor:
        """`log p(y | x_0)` `(.., rows)` of draws `(.., rows, *item_shape)`."""
        lead = x_0.shape[: x_0.ndim - len(self.model.item_shape)]
        clean = self.operator.A(x_0.reshape(-1, *self.model.item_shape)).reshape(*lead, -1)
        y, seen = flat(self.rows_of_y(lead[-1])), observed(self.operator)
        return self.noise.log_likelihood(*((y, clean) if seen is None else (y[:, seen], clean[..., seen])))


@dataclass(frozen=True, kw_only=True)
class InverseMethod(ABC):
    """`method(model, operator, y, num_samples, generator) -> PosteriorSamples`; hyper-parameters are the fields.

    `noise` is the law of the measurement's noise. A draw takes `flow_steps` network evaluations. At most `max_batch` draws, or
    those of one problem, are held at a time, and no more go through the network at once. Raises `UserError` where the
    model has no posterior, the observation does not fit the operator or holds NaN, or the method cannot take the operator
    or the noise.
    """

    noise: Noise
    flow_steps: int = 1
    max_batch: int = 4096

    linear_only: ClassVar[bool] = False
    remedy: ClassVar[str] = "take more samples"

    def __post_init__(self) -> None:
        check_count("flow_steps", self.flow_steps)
        check_count("max_batch", self.max_batch)

    def __call__(
        self,
        model: Model,
        operator: Any,
        y: Tensor,
        num_samples: int,
        generator: Source = None,
        quiet: bool = True,
    ) -> PosteriorSamples:
        """`num_samples` samples for each of the problems `y` `(b, *y_shape)`; randomness is drawn from the generator(s)."""
        name = type(self).__name__
        if not has_posterior(model):
            raise UserError(f"{name} needs a model of q(x_0 | x_tau), and a {type(model).__name__} is none")
        check_count("num_samples", num_samples)
        if self.linear_only and not is_linear(operator):
            raise UserError(
                f"{name} needs a linear operator, one with A_adjoint, A_dagger and prox_l2, and {type(operator).__name__} is "
                "none: take DecoupledSIR or NestedSMC, which need A alone"
            )
        check_observation(operator, y)
        if isinstance(generator, Sequence) and len(generator) != len(y):
            raise UserError(f"{len(generator)} generators for {len(y)} problems: give one for each, or one for all")
        self.check(operator)
        groups = y.split(max(1, self.max_batch // (num_samples * self.held)))
        sources, total = split(generator, [len(group) for group in groups]), self.iterations * len(groups)
        with torch.no_grad(), EvaluationCounter(model) as counter, Meter(name, total, quiet=quiet) as meter:
            found = [
                self.run(self._problem(model, operator, group, source), num_samples, Steps(meter, i * self.iterations))
                for i, (group, source) in enumerate(zip(groups, sources, strict=True))
            ]
        shapes = [(num_samples, len(group)) for group in groups]
        parts = [one.x.reshape(*shape, *model.item_shape) for one, shape in zip(found, shapes, strict=True)]
        weights = [
            one.log_w if one.log_w is not None else y.new_zeros(shape) for one, shape in zip(found, shapes, strict=True)
        ]
        evidence = [one.log_z for one in found if one.log_z is not None]
        log_w = torch.cat(weights, dim=1).double()
        log_w = log_w - torch.where(log_w.isneginf().all(0), 0.0, log_w.logsumexp(0))
        x = torch.cat(parts, dim=1)
        different = _put_together(x, log_w) if found[0].log_w is not None else log_w
        ess = effective_sample_size(different)
        many = sum(int(one.bad.sum()) for one in found if one.bad is not None)
        said = [f"in {many} of {len(y)} problems {found[0].complaint}"] if many else []
        notes = tuple(f"{name}: {note}" for note in (*said, *_degenerate(different, ess, self.remedy)))
        for note in notes:
            warnings.warn(note, DegeneracyWarning, stacklevel=2)
        return PosteriorSamples(
            x=x,
            log_w=log_w,
            ess=ess,
            log_z=torch.cat(evidence) if evidence else None,
            nfe=counter.items / (num_samples * len(y)),
            notes=notes,
        )

    def _problem(self, model: PosteriorModel, operator: Any, y: Tensor, generator: Source) -> "Problem":
        options = {"flow_steps": self.flow_steps, "max_batch": self.max_batch}
        return Problem(model=model, operator=operator, noise=self.noise, y=y, generator=generator, **options)

    @property
    @abstractmethod
    def iterations(self) -> int:
        """How many steps the progress counts."""

    @property
    def held(self) -> int:
        """How many draws are held at once for each sample."""
        return 1

    def check(self, operator: Any) -> None:
        """`UserError` where the method cannot take this operator or this noise."""
        return

    @abstractmethod
    def run(self, problem: Problem, k: int, meter: "Steps") -> Drawn:
        """Samples, k for each problem."""


@dataclass(frozen=True)
class Steps:
    """A part of a progress: the steps of one group of problems, after those of others."""

    meter: Meter
    before: int

    def update(self, done: int) -> None:
        """Show that `done` steps of the group are done."""
        self.meter.update(self.before + done)


def observed(operator: Any) -> Tensor | None:
    """The entries of a flattened measurement that say something of x, where some say nothing; None where all do."""
    return operator.observed.expand(operator.item_shape).flatten() if isinstance(operator, Inpainting) else None


def check_count(name: str, value: int, least: int = 1) -> None:
    """`UserError` unless the value is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} counts from {least} up, not {value!r}")


def _put_together(x: Tensor, log_w: Tensor) -> Tensor:
    """Log-weights `(k, b)` of different samples: those of equal ones are put together, the places that are left are empty.

    Resampling makes weights equal and samples too: weights alone do not tell that few are left.
    """
    different = torch.zeros_like(log_w)
    for problem in range(x.shape[1]):
        place = x[:, problem].flatten(1).unique(dim=0, return_inverse=True)[1].to(log_w.device)
        different[:, problem].index_add_(0, place, log_w[:, problem].exp())
    return different.log()


def _degenerate(log_w: Tensor, ess: Tensor, remedy: str) -> list[str]:
    """Plain words for weights that few samples carry."""
    k, b = log_w.shape
    if k < 3:
        return []
    heavy = int((log_w.amax(0).exp() > 0.5).sum())
    low = int((~(ess >= max(1.5, 0.1 * k))).sum())  # also where nothing explains y
    if heavy:
        return [f"one sample carries more than half of the weight in {heavy} of {b} problems: {remedy}"]
    return [f"less than a tenth of the samples are effective in {low} of {b} problems: {remedy}"] if low else []
