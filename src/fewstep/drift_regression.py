"""Regression on a stopped drifting field: the loss of drifting models, with its scales (arXiv 2602.04770, appendix A.6).

For generated points x, data y and a field V of the kernel at temperatures T,

    S = rho / sqrt(C),  rho the mean distance of x to both clouds, C the number of components
    V~ = sum_T V_T / lambda_T,  lambda_T = sqrt(E ||V_T||^2 / C) in units of S
    L_i = || x_i / S - sg( x_i / S + V~_i ) ||^2 / C,

so that temperatures are shares of the mean distance and every temperature pulls equally hard. The value of L is that of
`||V~||^2 / C`: with one temperature it is exactly 1 in the mean, whatever the mismatch, and says nothing of progress. What does
is the raw `sqrt(E ||V_T||^2 / C)`, which is always logged. Its gradient in x_i is `-2 V~_i / (S N C)`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.drift import DriftingField
from fewstep.errors import UserError
from fewstep.kernels import Kernel, Laplace


@dataclass(frozen=True, kw_only=True, eq=False)
class Pull:
    """What the regression of a cloud found: `per_point` `(.., n)` with a gradient, `raw` `(.., n)` without, `rms` by temperature.

    `raw` is `sum_T ||V_T||^2 / C`, in squared units of the data, as `rms` is in units of the data; `distance` is rho.
    """

    per_point: Tensor
    raw: Tensor
    rms: dict[float, float]
    distance: float | None


@dataclass(frozen=True, kw_only=True)
class DriftRegression:
    """`regression(x, positives) -> Pull`: pulls points x `(.., n, C)`, which have a gradient, along the field.

    - `field`: the drifting field; its kernel's bandwidth is multiplied by each of the `temperatures`.
    - `relative`: temperatures are shares of the mean distance rho, measured on all groups at once, and x is divided by S. Without
      it they are in units of the data and S = 1.
    - `equalise`: each temperature's field is divided by its root mean square over all groups.

    The defaults are the published ones. Of the authors' code, which differs from their paper, they have not: the affinity floor
    1e-6 (`field.floor`; there own pairs have it too), the zero self-distances in rho, and a least `E ||V||^2 / C` of 1e-8 under
    the root, by which a dead field stays dead; here any field that is not 0 pulls.

    Raises `UserError` where a temperature is not above 0, there is none, all points are one, or clouds are bad.
    """

    field: DriftingField = DriftingField(kernel=Laplace(bandwidth=1.0))
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2)
    relative: bool = True
    equalise: bool = True

    def __post_init__(self) -> None:
        if not self.temperatures or not all(0 < t < torch.inf for t in self.temperatures):
            raise UserError(f"temperatures are above 0 and finite, one at least: not {self.temperatures}")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise UserError(f"a temperature is given twice: {self.temperatures}")

    def __call__(
        self,
        x: Tensor,
        positives: Tensor,
        negatives: Tensor | None = None,
        positive_weights: Tensor | None = None,
        negative_weights: Tensor | None = None,
        own: bool = False,
        among: tuple[Tensor, int, slice] | None = None,
    ) -> Pull:
        """The regression of x `(.., n, C)`; clouds and weights as for a `DriftingField`.

        `among = (everyone, axis, part)`: x is that part, along that axis, of more points, and the statistics are those of all.
        """
        with torch.autocast(x.device.type, enabled=False):  # a rounded centroid is off by more than the drift
            return self._pull(x, among, (positives, negatives, positive_weights, negative_weights, own))

    def _pull(self, x: Tensor, among: tuple[Tensor, int, slice] | None, clouds: tuple) -> Pull:
        still, axis, part = (x.detach(), 0, slice(None)) if among is None else among
        pair = self.field.pair(still, *clouds)
        rho = pair.mean_distance() if self.relative else None
        scale = 1.0 if rho is None else rho / x.shape[-1] ** 0.5
        pull = torch.zeros_like(still, dtype=x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32)
        raw, rms = torch.zeros_like(pull[..., 0]), {}
        for temperature in self.temperatures:
            drift = self._field(temperature * (rho or 1.0)).of(pair).double()  # squares of a far field are tiny
            energy = drift.square().mean(-1)
            raw += energy.to(raw)
            rms[temperature] = size = energy.mean().sqrt().item()
            if not self.equalise:
                pull += (drift / scale).to(pull)
            elif size > 0:
                pull += (drift / size).to(pull)
        pull, raw = (t[(slice(None),) * axis + (part,)] for t in (pull, raw))
        moved = (x - x.detach()).to(pull) / scale  # 0, with a gradient: the value is that of the pull to the last digit
        per_point = (moved - pull).square().mean(-1)
        return Pull(per_point=per_point, raw=raw, rms=rms, distance=rho)

    def _field(self, factor: float) -> DriftingField:
        return replace(self.field, kernel=scaled(self.field.kernel, factor))


def scaled(kernel: Kernel, factor: float) -> Kernel:
    """The kernel with its bandwidth times a factor."""
    return replace(kernel, bandwidth=kernel.bandwidth * factor)
