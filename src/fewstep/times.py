"""Laws of the times met in training, and grids of the times visited in sampling.

Both clocks run from 0 (data) to 1 (noise): `tau` and `s` on the diffusion clock, `t` and `r` on the flow clock.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.draws import Source, normal, uniform
from fewstep.errors import UserError
from fewstep.schedule import Schedule


class TimeLaw(ABC):
    """A law of one time in [0, 1]."""

    @abstractmethod
    def sample(self, n: int, generator: Source, like: Tensor) -> Tensor:
        """`n` independent times `(n,)` in the dtype and on the device of `like`."""

    @property
    def latest(self) -> float:
        """No time is later."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Uniform(TimeLaw):
    """Uniform on `[low, high]`. Raises `UserError` unless `0 <= low < high <= 1`."""

    low: float = 0.001
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise UserError(f"a uniform law of times needs 0 <= low < high <= 1, not [{self.low}, {self.high}]")

    def sample(self, n: int, generator: Source, like: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * uniform((n,), generator, like=like)

    @property
    def latest(self) -> float:
        return self.high


@dataclass(frozen=True, kw_only=True)
class LogitNormal(TimeLaw):
    """`sigmoid(mean + std n)`, n standard normal; `std > 0`. It never reaches 0 or 1 (Esser et al. 2024, arXiv 2403.03206)."""

    mean: float = -0.4
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise UserError(f"a logit-normal law of times needs std > 0, not {self.std}")

    def sample(self, n: int, generator: Source, like: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * normal((n,), generator, like=like))


@dataclass(frozen=True, kw_only=True)
class TimePairs:
    """The law of `(r, t)`, `r <= t`: one time from each law, the larger of them t, r = t for all but `frac_r_below_t`.

    With `atom_t_1 > 0`, t is set to 1 for that share of the items, so that `u(z, 1, 1)` is trained to be the denoiser
    (the logit-normal laws never reach 1). Both shares lie in [0, 1]. The share is named after what it counts because
    "ratio" means opposite things in the public Mean Flow code bases. Source: Geng et al. (arXiv 2505.13447), section
    4.3.
    """

    first: TimeLaw = LogitNormal()
    second: TimeLaw = LogitNormal()
    frac_r_below_t: float = 0.5
    atom_t_1: float = 0.0

    def __post_init__(self) -> None:
        for name in ("frac_r_below_t", "atom_t_1"):
            check_share(name, getattr(self, name))

    def sample(self, n: int, generator: Source, like: Tensor) -> tuple[Tensor, Tensor]:
        """`n` pairs `(r, t)`, each `(n,)`."""
        a, b = self.first.sample(n, generator, like), self.second.sample(n, generator, like)
        r, t = torch.minimum(a, b), torch.maximum(a, b)
        t = torch.where(uniform((n,), generator, like=like) < self.atom_t_1, torch.ones_like(t), t)
        below = uniform((n,), generator, like=like) < self.frac_r_below_t
        return torch.where(below, r, t), t


class Grid(ABC):
    """The times `1 = tau_N > ... > tau_0 = 0` that a sampler visits."""

    @abstractmethod
    def __call__(self, steps: int, schedule: Schedule | None) -> Tensor:
        """The `steps + 1` times, decreasing, in float64; on the flow clock there is no schedule."""

    def for_steps(self, steps: int) -> "Grid":
        """A grid that can have this number of steps: this one, unless its times are given one by one."""
        return self


@dataclass(frozen=True)
class UniformGrid(Grid):
    """`tau_i = i / N`."""

    def __call__(self, steps: int, schedule: Schedule | None) -> Tensor:
        return even_times(steps)


@dataclass(frozen=True, kw_only=True)
class LogSNRGrid(Grid):
    """Even in log-SNR from tau = 1 to `tau_min`, then 0; `0 < tau_min < 1`. One step is `1 -> 0`."""

    tau_min: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.tau_min < 1:
            raise UserError(f"tau_min lies between 0 and 1, not {self.tau_min}")

    def __call__(self, steps: int, schedule: Schedule | None) -> Tensor:
        if schedule is None:
            raise UserError("a grid of log-SNR belongs to the diffusion clock: a flow map takes uniform or given times")
        if steps <= 1:
            return even_times(steps)
        ends = schedule.log_snr(torch.tensor([1.0, self.tau_min], dtype=torch.float64))
        inner = schedule.tau_at(torch.linspace(ends[0].item(), ends[1].item(), steps, dtype=torch.float64))
        inner[0] = 1.0  # exactly, not to the rounding of the inverse
        return torch.cat([inner, torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True, kw_only=True)
class CustomGrid(Grid):
    """The given times, from 1 down to 0. Raises `UserError` unless they decrease strictly and number `steps + 1`."""

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        given_times(self.times)

    def for_steps(self, steps: int) -> Grid:
        return self if len(self.times) == steps + 1 else UniformGrid()

    def __call__(self, steps: int, schedule: Schedule | None) -> Tensor:
        if len(self.times) != steps + 1:
            raise UserError(f"the grid has {len(self.times) - 1} steps, but steps = {steps}: make them agree")
        return given_times(self.times)


def even_times(steps: int) -> Tensor:
    """`steps` even intervals from 1 down to 0, in float64. Raises `UserError` where `steps` is less than 1."""
    if steps < 1:
        raise UserError(f"the number of steps is a whole number from 1 up, not {steps}")
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def given_times(times: tuple[float, ...]) -> Tensor:
    """The given times in float64. Raises `UserError` unless they decrease strictly from 1 to 0."""
    decreasing = all(a > b for a, b in pairwise(times))
    if len(times) < 2 or times[0] != 1 or times[-1] != 0 or not decreasing:
        raise UserError(f"a grid of times decreases strictly from 1 to 0, for example 1,0.6,0.2,0; not {times}")
    return torch.tensor(times, dtype=torch.float64)


def check_share(name: str, value: float, least: float = 0.0) -> None:
    """`UserError` where a share of the items is none; `least` is 0, or above it for a share that must not be empty."""
    if not least <= value <= 1:
        raise UserError(f"{name} is a share of the items and lies in {'(' if least else '['}0, 1], not {value}")
