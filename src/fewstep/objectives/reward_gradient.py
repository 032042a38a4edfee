"""Fine-tuning to a reward by back-propagation through one step, held near the reference model at shared noise."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.draws import Source, normal_like
from fewstep.errors import UserError
from fewstep.flow import flow_map
from fewstep.models.posterior_flow import PosteriorFlow
from fewstep.objectives.base import Batch, Loss, LossFunction, Objective, noised, squared_error
from fewstep.pretrained import load
from fewstep.rewards import Reward
from fewstep.scaling import GaussianScaling
from fewstep.shapes import per_item
from fewstep.steering.base import RewardFunction, checked_rewards
from fewstep.times import TimeLaw, Uniform


@dataclass(frozen=True, kw_only=True)
class RewardGradient(Objective):
    """`-r(G(z, x_tau)) / T + anchor / 2 ||G(z, x_tau) - G_ref(z, x_tau)||^2 / s(tau)^2`, one draw z for each state.

    G is the one-step draw of `q(x_0 | x_tau)`, `G_ref` that of the model in the folder `reference`, with the same z: the penalty
    bounds the squared Wasserstein distance of the two laws, a trust region. `s(tau)` is the deviation that `x_0` given x_tau
    has for Gaussian data of the model's deviation (`GaussianScaling`): if `q(x_0 | x_tau)` were `N(m, s^2 I)` and r linear, with
    `anchor = 1` the least loss is at the tilted law `q exp(r / T) / Z`. Elsewhere it is a *heuristic*: draws move uphill, and
    no mode gets another weight. Only one flow step is trained (`flow_steps = 1`). r needs a derivative.

    Raises `UserError` where a number is out of range, r has no derivative or is not finite, or the reference is another kind of
    model.
    """

    reward: Reward | None = None
    reference: str = ""
    temperature: float = 1.0
    anchor: float = 1.0
    tau_law: TimeLaw = Uniform()

    def __post_init__(self) -> None:
        if not (0 < self.temperature < torch.inf and 0 <= self.anchor < torch.inf):
            raise UserError(
                f"temperature is above 0 and anchor not negative, both finite: not {self.temperature} and {self.anchor}"
            )

    @property
    def num_times(self) -> int:
        return 1

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        return self.build()(model, batch, generator)

    def build(self, item_shape: tuple[int, ...] = (), data: Path | None = None) -> LossFunction:
        if self.reward is None or not self.reference:
            raise UserError("fine-tuning by the reward's gradient needs a reward and the folder of a reference model")
        return _Anchored(config=self, reward=self.reward, reference=load(self.reference))


def differentiable_rewards(reward: RewardFunction, x_0: Tensor) -> Tensor:
    """The rewards `(batch,)` of items that are asked for a gradient. `UserError` where they are bad or have none."""
    r = checked_rewards(reward, x_0)
    if not r.requires_grad:
        raise UserError("the reward has no derivative: make it of torch operations, or tilt instead (--method tilt)")
    return r


@dataclass(frozen=True, kw_only=True)
class _Anchored:
    """The objective with its reference; no module, so that the reference is neither trained nor stored."""

    config: RewardGradient
    reward: Reward
    reference: PosteriorFlow

    def __call__(self, model: PosteriorFlow, batch: Batch, generator: Source) -> Loss:
        x_0 = batch["x_0"]
        reference = self.reference.to(x_0)
        self._check(model)
        x_tau, tau = noised(x_0, self.config.tau_law, model.schedule, generator)
        z = normal_like(x_0, generator)
        drawn = _draw(model, z, x_tau, tau)
        with torch.no_grad():
            anchor = _draw(reference, z, x_tau, tau)
        r = differentiable_rewards(self.reward, drawn)
        if not r.isfinite().all():
            raise UserError(
                f"the reward of {int((~r.isfinite()).sum())} of {len(r)} items is not finite: give finite numbers, or tilt "
                "instead (--method tilt), where -infinity is an item that must not be"
            )
        _, scale = GaussianScaling().coefficients(x_tau, tau, model.schedule, model.data_mean, model.data_std)
        moved = squared_error(drawn / per_item(scale, x_0), anchor / per_item(scale, x_0))
        loss = -r / self.config.temperature + 0.5 * self.config.anchor * moved
        logs = {"bucket": tau, "reward": r.detach().to(x_0)}
        return Loss(per_sample=loss.to(x_0), raw=moved.detach(), logs=logs, times=tau[:, None])

    def _check(self, model: PosteriorFlow) -> None:
        if not isinstance(self.reference, PosteriorFlow) or self.reference.item_shape != model.item_shape:
            raise UserError(
                f"the reference {self.config.reference} is a {type(self.reference).__name__} of items "
                f"{self.reference.item_shape}: give a {type(model).__name__} of items {model.item_shape}"
            )


def _draw(model: PosteriorFlow, z: Tensor, x_tau: Tensor, tau: Tensor) -> Tensor:
    """The one-step draws that the noise z becomes."""
    return model.decode(flow_map(model.u, z, 1.0, 0.0, (x_tau, tau)), x_tau, tau)
