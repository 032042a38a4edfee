"""Chains in the noise of a draw: `z ~ N(0, I) p(y | f(z, x_tau))`, f the one-step map from noise to a draw of `q(x_0 | x_tau)`.

Where few independent draws explain y, a chain that starts at the best of them goes on to others. Each step is a Metropolis
step, so that the law of z is kept whatever the step size is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import uniform
from fewstep.errors import UserError
from fewstep.shapes import flat, per_item
from fewstep.steering.target import Target, check_count

Value = Callable[[Tensor], tuple[Tensor, Tensor]]
"""z `(rows, ...)` -> the draw that it becomes, and its log-likelihood `(rows,)`."""


@dataclass(frozen=True, kw_only=True)
class LatentChain(ABC):
    """`length` steps of a Markov chain with the law `N(z; 0, I) p(y | f(z))`; what it returns is the last draw."""

    length: int = 20
    size: float = 0.3

    def __post_init__(self) -> None:
        check_count("length", self.length)
        if not 0 < self.size <= 1:
            raise UserError(f"a chain has a size in (0, 1], not {self.size}")

    def run(self, problem: Target, value: Value, z: Tensor) -> tuple[Tensor, Tensor]:
        """The draw `(rows, ...)` at the end of the chain from z, and the share of its proposals that were accepted `(rows,)`."""
        x_0, log_p = value(z)
        accepted = torch.zeros_like(log_p)
        for _ in range(self.length):
            proposal, log_ratio = self.propose(problem, value, z)
            moved, log_q = value(proposal)
            u = uniform((len(z),), problem.source(len(z)), like=log_p)
            yes = u.log() < log_q - log_p + log_ratio
            z, x_0 = (torch.where(per_item(yes, a), b, a) for a, b in ((z, proposal), (x_0, moved)))
            log_p = torch.where(yes, log_q, log_p)
            accepted += yes
        return x_0, accepted / self.length

    @abstractmethod
    def propose(self, problem: Target, value: Value, z: Tensor) -> tuple[Tensor, Tensor]:
        """Another z, and the log of the ratio of its density under N(0, I) and of the proposals there and back."""


@dataclass(frozen=True, kw_only=True)
class PCN(LatentChain):
    """`z' = sqrt(1 - size^2) z + size xi`, which keeps N(0, I) by itself: the likelihood alone decides (Cotter et al. 2013)."""

    def propose(self, problem: Target, value: Value, z: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - self.size**2) ** 0.5 * z + self.size * problem.normal(z), z.new_zeros(len(z))


@dataclass(frozen=True, kw_only=True)
class MALA(LatentChain):
    """`z' = z + size^2 / 2 grad log pi(z) + size xi`, `pi = N(z; 0, I) p(y | f(z))` (Roberts and Tweedie 1996)."""

    def propose(self, problem: Target, value: Value, z: Tensor) -> tuple[Tensor, Tensor]:
        there = z + 0.5 * self.size**2 * self._gradient(value, z)
        proposal = there + self.size * problem.normal(z)
        back = proposal + 0.5 * self.size**2 * self._gradient(value, proposal)
        squares = [flat(v).square().sum(1) for v in (proposal - there, z - back, z, proposal)]
        return proposal, (squares[0] - squares[1]) / (2 * self.size**2) + 0.5 * (squares[2] - squares[3])

    def _gradient(self, value: Value, z: Tensor) -> Tensor:
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            return torch.autograd.grad(value(at)[1].sum(), at)[0] - z
