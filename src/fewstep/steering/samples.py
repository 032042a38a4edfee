"""Weighted samples of a law `p(x_0) exp(g(x_0)) / Z`, and whether they can be trusted."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source
from fewstep.particles import effective_sample_size, systematic, take


class DegeneracyWarning(UserWarning):
    """Few of the samples carry the weight: what they say of the law is uncertain."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedSamples:
    """Samples of b laws: `x` `(k, b, *item_shape)` with log-weights `log_w` `(k, b)` that sum to 1 (to 0 where no sample is
    possible).

    `ess` `(b,)` is the effective sample size, of weighted samples that are equal counted as one; `log_z` `(b,)` the
    log-normaliser `log E_p[exp(g)]` where the method estimates it; `nfe` the network evaluations for each sample; `notes` what
    went wrong, in plain words.
    """

    x: Tensor
    log_w: Tensor
    ess: Tensor
    log_z: Tensor | None
    nfe: float
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> Tensor:
        """The weighted mean of each law, `(b, *item_shape)`."""
        weights = self.log_w.exp().to(self.x)
        return (weights.reshape(*weights.shape, *[1] * (self.x.ndim - 2)) * self.x).sum(0)

    def unweighted(self, generator: Source = None) -> Tensor:
        """As many samples `(k, b, *item_shape)` without weights, drawn by their weights (systematically)."""
        return take(self.x, systematic(self.log_w, generator).to(self.x.device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """What a method found: samples `(k b, *item_shape)`; log-weights `(k, b)`, equal where None; log-evidence `(b,)`.

    `families` `(k, b)` numbers samples that stem from one and have not moved apart since: they count as one. Without it, equal
    samples do. `bad` `(b,)` says in which problems the `complaint` holds.
    """

    x: Tensor
    log_w: Tensor | None = None
    log_z: Tensor | None = None
    families: Tensor | None = None
    bad: Tensor | None = None
    complaint: str = ""


def collect(
    found: list[Drawn], k: int, item_shape: tuple[int, ...], nfe: float, name: str, remedy: str
) -> WeightedSamples:
    """What a method found for groups of laws, k samples for each, as one; a `DegeneracyWarning` for every note."""
    sizes = [len(one.x) // k for one in found]
    x = torch.cat([one.x.reshape(k, b, *item_shape) for one, b in zip(found, sizes, strict=True)], dim=1)
    weights = [
        one.log_w if one.log_w is not None else one.x.new_zeros(k, b) for one, b in zip(found, sizes, strict=True)
    ]
    log_w = torch.cat(weights, dim=1).double()
    log_w = log_w - torch.where(log_w.isneginf().all(0), 0.0, log_w.logsumexp(0))
    different = log_w
    if found[0].families is not None:
        different = _put_together(log_w, torch.cat([one.families for one in found if one.families is not None], dim=1))
    elif found[0].log_w is not None:
        different = _put_together(log_w, _equal(x))
    ess = effective_sample_size(different)
    many = sum(int(one.bad.sum()) for one in found if one.bad is not None)
    said = [f"in {many} of {len(ess)} problems {found[0].complaint}"] if many else []
    notes = tuple(f"{name}: {note}" for note in (*said, *_degenerate(different, ess, remedy)))
    for note in notes:
        warnings.warn(note, DegeneracyWarning, stacklevel=3)
    evidence = [one.log_z for one in found if one.log_z is not None]
    log_z = torch.cat(evidence) if evidence else None
    return WeightedSamples(x=x, log_w=log_w, ess=ess, log_z=log_z, nfe=nfe, notes=notes)


def _put_together(log_w: Tensor, families: Tensor) -> Tensor:
    """Log-weights `(k, b)` of families, each in one place; the places that are left are empty.

    Resampling makes weights equal and samples too: weights alone do not tell that few are left.
    """
    return torch.zeros_like(log_w).scatter_add_(0, families.to(log_w.device), log_w.exp()).log()


def _equal(x: Tensor) -> Tensor:
    """Numbers `(k, b)` of samples `(k, b, ...)`, the same for equal ones."""
    return torch.stack([one.flatten(1).unique(dim=0, return_inverse=True)[1] for one in x.unbind(1)], dim=1)


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
