"""Restore images from measurements, and measure the restoration: quality of the mean, and whether the draws can be trusted."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep import pictures
from fewstep.draws import item_generators, seed_of_stream
from fewstep.errors import UserError
from fewstep.inverse import InverseMethod, PosteriorSamples
from fewstep.inverse.base import observed
from fewstep.metrics import CRPS, EnergyScore, SpreadSkill
from fewstep.metrics.ranks import coverage, ranks
from fewstep.models.base import Model
from fewstep.operators import Noise, is_linear
from fewstep.pictures import to_levels
from fewstep.shapes import flat

INTERVAL, RESAMPLES = 0.9, 1000
SSIM_WINDOW = 11  # pixels across
NEARLY_CONSTANT = 0.1  # a component whose deviation is below this share of the mean one


def measure(operator: Any, noise: Noise, x_0: Tensor, seed: int) -> Tensor:
    """Measurements of items `(b, *item_shape)`; item i has a generator of its own, other ones than `restore` with this seed."""
    return noise.sample(operator.A(x_0), item_generators(len(x_0), seed_of_stream(seed, 1)))


def interval(draws: Tensor, level: float = INTERVAL) -> tuple[Tensor, Tensor, float]:
    """The ends of the central interval of draws `(k, ...)` that holds a further draw with probability `level`, and that level.

    The ends are between order statistics, at `p (k + 1)`, because k draws and the further one are exchangeable (the usual
    sample quantiles hold it less often). k draws reach `(k - 1) / (k + 1)` at most.
    """
    k = len(draws)
    level = min(level, (k - 1) / (k + 1))
    p = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=draws.dtype, device=draws.device)
    low, high = draws.quantile(((p * (k + 1) - 1) / (k - 1)).clamp(0, 1), dim=0)
    return low, high, level


@dataclass(frozen=True, kw_only=True, eq=False)
class Restoration:
    """What a method found for measurements `y` `(b, *y_shape)`: its samples, and draws `(k, b, *item_shape)` without weights."""

    y: Tensor
    found: PosteriorSamples
    draws: Tensor
    seconds: float

    @property
    def arrays(self) -> dict[str, Tensor]:
        """Samples, their weights, mean, standard deviation and the ends of the central interval (`interval`), by name."""
        low, high, _ = interval(self.draws)
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
    """Samples of `p(x_0 | y)`, n for each measurement; problem i has a generator of its own. Raises what the method raises."""
    if n < 2:
        raise UserError(f"a standard deviation needs 2 samples or more, not {n}")
    start, generators = time.monotonic(), item_generators(len(y), seed)
    found = method(model, operator, y.to(model.like), n, generators, quiet=quiet)
    return Restoration(y=y, found=found, draws=found.unweighted(generators), seconds=time.monotonic() - start)


def numbers(restoration: Restoration, operator: Any, truth: Tensor | None = None) -> dict[str, Any]:
    """What a restoration cost and how far it is from y; with the truth `(b, *item_shape)` also quality and calibration.

    `misfit`: the root mean square of `y - A(x)` over draws and observed entries. `psnr` and `ssim` of the mean, for images in
    [-1, 1] (`ssim` needs 11 x 11 pixels or more).
    CRPS, energy score and spread/skill are of the draws (where samples carry weights: of as many drawn by them). Keys in
    docs/json.md.
    """
    draws, found = restoration.draws, restoration.found
    clean = operator.A(draws.flatten(0, 1)).reshape(*draws.shape[:2], -1)
    y, seen = flat(restoration.y).to(clean), observed(operator)
    misses = y - clean if seen is None else (y - clean)[..., seen]
    result: dict[str, Any] = {
        "n": len(draws),
        "problems": draws.shape[1],
        "nfe": found.nfe,
        "seconds": restoration.seconds,
        "ess": found.ess.mean().item(),
        "notes": list(found.notes),
        "misfit": misses.square().mean().sqrt().item() if misses.numel() else 0.0,
        "interval": interval(draws)[2],
        "spread": draws.std(0).square().mean().sqrt().item(),
    }
    if found.log_z is not None:
        result["log_z"] = found.log_z.tolist()
    if truth is None:
        return result
    truth, draws = truth.double(), draws.double().cpu()
    errors = flat(found.mean.double().cpu() - truth).square().mean(1)
    result["psnr"] = (10 * (4 / errors.clamp_min(1e-12)).log10()).mean().item()
    if truth.ndim == 4 and min(truth.shape[2:]) >= SSIM_WINDOW:
        result["ssim"] = ssim(found.mean.double().cpu(), truth)
    return result | CRPS()(draws, truth) | EnergyScore()(draws, truth) | SpreadSkill()(draws, truth)


def ssim(images: Tensor, truth: Tensor) -> float:
    """Mean structural similarity of images `(b, c, h, w)` in [-1, 1], at most 1 (Wang et al. 2004; torchmetrics)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    found, expected = (((x.double() + 1) / 2).clamp(0, 1) for x in (images, truth))
    value = structural_similarity_index_measure(found, expected, data_range=1.0, kernel_size=SSIM_WINDOW)
    assert isinstance(value, Tensor)
    return value.item()


def covered(
    draws: Tensor, truth: Tensor, components: Tensor, step: float | None = None, seed: int = 0
) -> dict[str, Any]:
    """`coverage_90` and its bootstrap `coverage_90_interval` over problems, of some components `(d,)`, on the grey levels.

    By ranks with random ties, as in `fewstep calibrate`: exact for every number of draws `(k, b, ...)`. None for no component.
    """
    if not components.any():
        return {"coverage_90": None, "coverage_90_interval": None}
    generator, level = torch.Generator().manual_seed(seed), torch.tensor([INTERVAL], dtype=torch.float64)
    rank = ranks(to_levels(draws, step), to_levels(truth.to(draws), step), generator)[:, components]
    inside = torch.stack([coverage(row[None], len(draws), level).mean() for row in rank])
    picks = torch.randint(len(inside), (RESAMPLES, len(inside)), generator=generator)
    ends = inside[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=inside.dtype))
    return {"coverage_90": inside.mean().item(), "coverage_90_interval": ends.tolist()}


def uncertain(operator: Any, x_0: Tensor) -> Tensor:
    """The components `(d,)` that vary among items `(n, ...)` of the data and that the measurement does not hold one by one."""
    std, seen = flat(x_0).std(0), observed(operator)
    varying = std > NEARLY_CONSTANT * std.mean()
    return varying if seen is None else varying & ~seen


def picture(
    restoration: Restoration, operator: Any, truth: Tensor | None = None, shown: int = 8, problems: int = 8
) -> bytes:
    """A PNG: a row for each problem: what `columns` has; the largest standard deviation is white."""
    parts = columns(restoration, operator, truth, shown)
    parts["deviation"] = 2 * parts["deviation"] / parts["deviation"].amax().clamp_min(1e-12) - 1
    rows = torch.stack([images[:problems] for images in parts.values()], dim=1).flatten(0, 1)
    return pictures.png_bytes(pictures.grid(rows.cpu(), columns=len(parts), least=560))


def columns(restoration: Restoration, operator: Any, truth: Tensor | None = None, shown: int = 8) -> dict[str, Tensor]:
    """Images `(b, *item_shape)` by name: truth (where known), measurement, mean, deviation, and up to `shown` draws.

    The measurement is seen through `A_dagger` where A is linear; else as it is, enlarged pixel by pixel; grey where it is no
    image.
    """
    arrays = restoration.arrays
    mean = arrays["mean"]
    found = {} if truth is None else {"truth": truth.to(mean)}
    found |= {"measurement": _as_image(restoration.y, operator, mean), "mean": mean, "deviation": arrays["std"]}
    draws = restoration.draws  # those by weights come with copies side by side: a few of all places
    places = torch.linspace(0, len(draws) - 1, min(shown, len(draws))).round().long().tolist()
    return found | {f"draw {i}": draws[place] for i, place in enumerate(places, start=1)}


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
