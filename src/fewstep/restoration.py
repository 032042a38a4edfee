"""Restore images from measurements, and measure the restoration: quality of the mean, and whether the draws can be trusted."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep import pictures
from fewstep.draws import item_generators
from fewstep.errors import UserError
from fewstep.inverse import InverseMethod, PosteriorSamples
from fewstep.metrics import CRPS, EnergyScore, IntervalCoverage, SpreadSkill
from fewstep.models.base import Model
from fewstep.operators import is_linear
from fewstep.shapes import flat

INTERVAL = 0.9


@dataclass(frozen=True, kw_only=True, eq=False)
class Restoration:
    """What a method found for measurements `y` `(b, *y_shape)`: its samples, and draws `(k, b, *item_shape)` without weights."""

    y: Tensor
    found: PosteriorSamples
    draws: Tensor
    seconds: float

    @property
    def arrays(self) -> dict[str, Tensor]:
        """Samples, their weights, mean, standard deviation and the ends of the central 90 % interval, by name."""
        ends = torch.tensor([(1 - INTERVAL) / 2, (1 + INTERVAL) / 2], dtype=self.draws.dtype)
        low, high = self.draws.quantile(ends.to(self.draws.device), dim=0)
        return {
            "y": self.y,
            "samples": self.found.x,
            "log_w": self.found.log_w,
            "mean": self.found.mean,
            "std": self.draws.std(0),
            "low": low,
            "high": high,
        }


def restore(
    model: Model, operator: Any, method: InverseMethod, y: Tensor, n: int, seed: int = 0, quiet: bool = True
) -> Restoration:
    """N samples of `p(x_0 | y)` for each measurement; problem i has a generator of its own. Raises what the method raises."""
    if n < 2:
        raise UserError(f"a standard deviation needs 2 samples or more, not {n}")
    start, generators = time.monotonic(), item_generators(len(y), seed)
    found = method(model, operator, y.to(model.like), n, generators, quiet=quiet)
    return Restoration(y=y, found=found, draws=found.unweighted(generators), seconds=time.monotonic() - start)


def numbers(restoration: Restoration, operator: Any, truth: Tensor | None = None) -> dict[str, Any]:
    """What a restoration cost and how far it is from y; with the truth `(b, *item_shape)` also quality and calibration.

    `misfit`: the root mean square of `y - A(x)` over draws. `psnr` of the mean, in dB for images in [-1, 1]. Coverage, CRPS,
    energy score and spread/skill are of the draws. Keys in docs/json.md.
    """
    draws, found = restoration.draws, restoration.found
    clean = operator.A(draws.flatten(0, 1)).unflatten(0, draws.shape[:2])
    result: dict[str, Any] = {
        "n": len(draws),
        "problems": draws.shape[1],
        "nfe": found.nfe,
        "seconds": restoration.seconds,
        "ess": found.ess.mean().item(),
        "notes": list(found.notes),
        "misfit": (restoration.y.to(clean) - clean).square().mean().sqrt().item(),
        "spread": draws.std(0).square().mean().sqrt().item(),
    }
    if found.log_z is not None:
        result["log_z"] = found.log_z.tolist()
    if truth is None:
        return result
    truth, draws = truth.double(), draws.double().cpu()
    errors = flat(found.mean.double().cpu() - truth).square().mean(1)
    psnr = (10 * (4 / errors.clamp_min(1e-12)).log10()).mean().item()
    scores = CRPS()(draws, truth) | EnergyScore()(draws, truth) | SpreadSkill()(draws, truth)
    coverage = IntervalCoverage()(draws, truth)["coverage_90"]
    return result | {"psnr": psnr, "coverage_90": coverage} | scores


def picture(
    restoration: Restoration, operator: Any, truth: Tensor | None = None, shown: int = 8, problems: int = 8
) -> bytes:
    """A PNG: a row for each problem: truth (where known), measurement, mean, standard deviation, and draws.

    The measurement is seen through `A_dagger` where A is linear; else as it is, enlarged pixel by pixel; grey where it is no
    image.
    """
    arrays = restoration.arrays
    like = arrays["mean"]
    b, count = min(problems, len(like)), min(shown, len(restoration.draws))
    std = arrays["std"]
    columns = [_as_image(restoration.y, operator, like), like, 2 * std / std.amax().clamp_min(1e-12) - 1]
    columns = [*([] if truth is None else [truth.to(like)]), *columns, *restoration.draws[:count]]
    rows = torch.stack([column[:b] for column in columns], dim=1).flatten(0, 1)
    return pictures.png_bytes(pictures.grid(rows.cpu(), columns=len(columns), least=560))


def _as_image(y: Tensor, operator: Any, like: Tensor) -> Tensor:
    """Measurements in the shape of the items, to look at."""
    if is_linear(operator):
        return operator.A_dagger(y.to(like))
    if y.shape == like.shape:
        return y.to(like)
    if y.ndim != 4 or y.shape[1] not in (1, like.shape[1]):
        return torch.zeros_like(like)
    enlarged = torch.nn.functional.interpolate(y.to(like), size=like.shape[2:], mode="nearest")
    return enlarged.expand_as(like)
