"""What every method for inverse problems is: a posterior model, an operator and an observation in, samples of `p(x_0 | y)` out.

`y = A(x_0) + noise`, b problems at once: `y` `(b, *y_shape)`, samples `(k, b, *item_shape)`, k for each problem. Inside, the
states of all chains are rows `(k b, *item_shape)`, sample by sample; the network sees at most `max_batch` of them at a
time. With a sequence of generators, one for each problem, no problem changes another, nor does `max_batch` change any that
it holds as a whole.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.draws import Source, split
from fewstep.errors import UserError
from fewstep.models.base import EvaluationCounter, Model
from fewstep.operators import Inpainting, Noise, check_observation, is_linear
from fewstep.progress import Meter
from fewstep.shapes import flat
from fewstep.steering.samples import Drawn, WeightedSamples, collect
from fewstep.steering.target import Method, Steps, Target, check_count


@dataclass(frozen=True, kw_only=True, eq=False)
class PosteriorSamples(WeightedSamples):
    """Samples of `p(x_0 | y)` for each of b problems; `log_z` is the log-evidence `log p(y)` where the method estimates it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem(Target):
    """An observation with what made it, the model of what it was made of, and where the randomness comes from."""

    operator: Any
    noise: Noise
    y: Tensor

    @property
    def like(self) -> Tensor:
        return self.y.new_empty(len(self.y), *self.model.item_shape)

    def rows_of_y(self, rows: int) -> Tensor:
        """The observation of each row, `(rows, *y_shape)`."""
        return self.y.repeat(rows // len(self.y), *[1] * (self.y.ndim - 1))

    def log_potential(self, x_0: Tensor) -> Tensor:
        """`log p(y | x_0)` `(.., rows)` of draws `(.., rows, *item_shape)`."""
        lead = x_0.shape[: x_0.ndim - len(self.model.item_shape)]
        clean = self.operator.A(x_0.reshape(-1, *self.model.item_shape)).reshape(*lead, -1)
        y, seen = flat(self.rows_of_y(lead[-1])), observed(self.operator)
        return self.noise.log_likelihood(*((y, clean) if seen is None else (y[:, seen], clean[..., seen])))


@dataclass(frozen=True, kw_only=True)
class InverseMethod(Method):
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
        self.check_model(model)
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
        nfe = counter.items / (num_samples * len(y))
        samples = collect(found, num_samples, tuple(model.item_shape), nfe, name, self.remedy)
        return PosteriorSamples(**vars(samples))

    def _problem(self, model: Any, operator: Any, y: Tensor, generator: Source) -> "Problem":
        return Problem(
            model=model,
            generator=generator,
            flow_steps=self.flow_steps,
            max_batch=self.max_batch,
            operator=operator,
            noise=self.noise,
            y=y,
        )

    def check(self, operator: Any) -> None:
        """`UserError` where the method cannot take this operator or this noise."""
        return

    @abstractmethod
    def run(self, problem: Problem, k: int, meter: "Steps") -> Drawn:
        """Samples, k for each problem."""


def observed(operator: Any) -> Tensor | None:
    """The entries of a flattened measurement that say something of x, where some say nothing; None where all do."""
    return operator.observed.expand(operator.item_shape).flatten() if isinstance(operator, Inpainting) else None
