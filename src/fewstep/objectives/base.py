"""What every objective is, and what they share: the loss of each item, before any mean."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep import transition
from fewstep.draws import Source, normal_like, uniform
from fewstep.errors import UserError
from fewstep.flow import AverageVelocity, conditional_velocity, interpolate, mean_flow_target
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.schedule import Schedule
from fewstep.shapes import flat, per_item
from fewstep.times import LogitNormal, TimeLaw, TimePairs, Uniform

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The loss of each item `(batch,)`: `per_sample` is what the loop averages, `raw` the squared error before weights.

    `logs` are detached numbers per item: `bucket` (the interval t - r, or tau where there is no flow clock) sorts `raw`
    in the log; others are averaged. `times` `(batch, k)` are the times, in [0, 1], that the error depends on, for
    weights that may look at nothing else.
    """

    per_sample: Tensor
    raw: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    times: Tensor | None = None


LossFunction = Callable[[Any, Batch, Source], Loss]


class Objective(ABC):
    """A loss for a model; hyper-parameters are the fields of a frozen dataclass."""

    @property
    def sees_the_batch(self) -> bool:
        """Whether the loss of an item depends on the other items (of its process), as a batch statistic does."""
        return False

    @property
    def num_times(self) -> int:
        """How many `Loss.times` it names for each item, 0 where it names none."""
        return 0

    @abstractmethod
    def __call__(self, model: Any, batch: Batch, generator: Source) -> Loss:
        """The loss of `batch["x_0"]` `(batch, ...)`; all randomness comes from the generator.

        What comes with `x_0`: `labels` `(batch,)` where there are any, and in training `progress` `(batch,)`, the share
        of the steps that are done, the same for all items.
        """

    def build(self, item_shape: tuple[int, ...] = (), data: Path | None = None) -> LossFunction:
        """What training calls, made once for a run: the objective itself, or what it needs to load or to train.

        `item_shape` is that of the model's items, `data` the folder of the data sets.
        Of an `nn.Module` the parameters are trained with the model's, and it is stored with every checkpoint.
        """
        return self


def chosen_items(share: float, n: int, generator: Source, like: Tensor) -> tuple[Tensor, float]:
    """Indices of the items that take part, each with probability `share`, one by one; and `1 / share`, their weight.

    Where chance takes none, it is the first item with weight 0: so that every loss has a graph, and every process of a
    joint training a gradient.
    """
    chosen = torch.nonzero(uniform((n,), generator, like=like) < share).squeeze(1)
    return (chosen, 1 / share) if len(chosen) else (chosen.new_zeros(1), 0.0)


def spread_out(values: Tensor, chosen: Tensor, n: int, weight: float) -> Tensor:
    """Numbers `(n,)`: those of the chosen items, `weight` times, so that the mean stays what it was; 0 for the others."""
    return values.new_zeros(n).index_put((chosen,), weight * values)


def noised(x_0: Tensor, tau_law: TimeLaw, schedule: Schedule, generator: Source) -> tuple[Tensor, Tensor]:
    """`(x_tau, tau)`: a time `(batch,)` by the law for each item, and `x_tau = alpha x_0 + sigma eps` (eq. 15)."""
    tau = tau_law.sample(len(x_0), generator, x_0)
    return transition.sample(x_0, torch.zeros_like(tau), tau, schedule, generator), tau


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """`||prediction - target||^2`, summed over the components of each item."""
    return flat(prediction - target).square().sum(1)


def adaptive_weight(raw: Tensor, power: float, constant: float) -> Tensor:
    """`1 / sg(raw + c)^p` (eq. 73; Geng et al., arXiv 2505.13447, eq. 22); 1 where p = 0."""
    if power == 0:
        return torch.ones_like(raw)
    return (raw.detach() + constant) ** -power


def check_adaptive_weight(power: float, constant: float) -> None:
    """`UserError` where the adaptive weight could grow without bound or favour large errors."""
    if power < 0 or constant <= 0:
        raise UserError("the adaptive weight needs a power of at least 0 and a constant above 0")


@dataclass(frozen=True, kw_only=True)
class AverageVelocityObjective(Objective):
    """`|| u_theta(z_t, r, t) - sg( v_c - (t - r) du_theta/dt ) ||^2` (eq. 13; with `held` tensors, eq. 22).

    `eps ~ N(0, I)`, `(r, t)` by their law, `z_t = (1 - t) w + t eps`, `v_c = eps - w`, w what the flow transports.

    - `pair_law`, `frac_r_below_t`, `atom_t_1`: the law of `(r, t)`, two times from `pair_law` as in `times.TimePairs`.
    - `adaptive_power` p >= 0 and `adaptive_constant` c: weight `1 / sg(||.||^2 + c)^p` (eq. 73); 0 is no weight. The
      weight looks at the residual of the single draw, and so moves the minimiser off the conditional mean.
    - `tangent`: `conditional` puts `v_c` into du/dt (the paper), `own` the model's `u(z, t, t)`, which varies less and
      costs one more evaluation.
    """

    pair_law: TimeLaw = LogitNormal()
    frac_r_below_t: float = 0.5
    atom_t_1: float = 0.0
    adaptive_power: float = 0.75
    adaptive_constant: float = 1e-3
    tangent: Literal["conditional", "own"] = "conditional"

    def __post_init__(self) -> None:
        check_adaptive_weight(self.adaptive_power, self.adaptive_constant)
        _ = self.time_pairs  # checks the shares

    @property
    def num_times(self) -> int:
        return 2

    @property
    def time_pairs(self) -> TimePairs:
        """The law of `(r, t)`."""
        law = self.pair_law
        return TimePairs(first=law, second=law, frac_r_below_t=self.frac_r_below_t, atom_t_1=self.atom_t_1)

    def regress(
        self,
        u: AverageVelocity,
        w: Tensor,
        held: tuple[Tensor, ...],
        generator: Source,
        w_mean: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Loss:
        """The loss of each item of `w` `(batch, ...)`, the flow's clean end.

        `w_mean(z_t, t)` is an estimate of `E[w | z_t]`, unbiased given `z_t` and what is held, that varies less than w
        itself; the conditional velocity is then `v_c + (w - w_mean) / t`, by `v = (z_t - E[w | z_t]) / t`.
        """
        eps = normal_like(w, generator)
        r, t = self.time_pairs.sample(w.shape[0], generator, w)
        z_t = interpolate(w, eps, t)
        v_c = conditional_velocity(w, eps)
        if w_mean is not None:
            v_c = v_c + (w - w_mean(z_t, t)) / per_item(t, w)
        target = mean_flow_target(u, z_t, r, t, v_c, held, self.tangent)
        raw = squared_error(u(z_t, r, t, *held), target)
        weight = adaptive_weight(raw, self.adaptive_power, self.adaptive_constant)
        times = torch.stack([t, t - r], dim=1)
        return Loss(per_sample=weight * raw, raw=raw.detach(), logs={"bucket": t - r}, times=times)


@dataclass(frozen=True, kw_only=True)
class PosteriorVelocityObjective(AverageVelocityObjective):
    """The loss of an average velocity with `(x_tau, tau)` held (eq. 22): what STMD and its distillation share.

    `tau ~ tau_law`, `x_tau = alpha x_0 + sigma eps'`, w the data in the model's scaling.
    """

    tau_law: TimeLaw = Uniform()

    @property
    def num_times(self) -> int:
        return 3

    def regress_posterior(
        self,
        model: PosteriorFlow,
        x_0: Tensor,
        generator: Source,
        x_mean: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Loss:
        """The loss of each item of `x_0` `(batch, ...)`; its times are `(t, t - r, tau)`.

        `x_mean(y, lam)` estimates `E[x_0 | z_t, x_tau]` from the one observation that both are (`evidence.combine`); without
        it the item itself does.
        """
        x_tau, tau = noised(x_0, self.tau_law, model.schedule, generator)

        def w_mean(z: Tensor, t: Tensor) -> Tensor:
            assert x_mean is not None
            return model.encode(x_mean(*model.observation(z, t, x_tau, tau)), x_tau, tau)

        w = model.encode(x_0, x_tau, tau)
        loss = self.regress(model.u, w, (x_tau, tau), generator, None if x_mean is None else w_mean)
        assert loss.times is not None
        return replace(loss, times=torch.cat([loss.times, tau[:, None]], dim=1))
