"""Drifting of items, and of their features under a frozen encoder: one regression for each feature, all summed.

Groups of items are `(groups, points, ...)`: the labels of a step, or one group of all. With an encoder each place of each map has
a field of its own in each group; the scales S and lambda of a feature are those of all its places and groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.clouds import NoDistance
from fewstep.draws import Source
from fewstep.drift_regression import DriftRegression, Pull
from fewstep.encoders.base import MapsModule, check_frozen
from fewstep.encoders.pooling import pooled
from fewstep.errors import UserError
from fewstep.processes import gathered, own_part

ITEMS = "items"  # the name of the feature that the items themselves are


@dataclass(frozen=True, kw_only=True, eq=False)
class Clouds:
    """What a step compares: x `(g, n, ...)` with a gradient, positives, negatives (x itself where None), and more negatives.

    `beside` `(g, u, ...)` are further negatives, each of the weight of its group, `(g,)`, 1 where None.
    """

    x: Tensor
    positives: Tensor
    negatives: Tensor | None = None
    beside: Tensor | None = None
    beside_weight: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureDrift:
    """`drift(clouds, source) -> (per_item (g n,), raw (g n,), logs)`.

    Of several processes each has its part of the groups (`by_group`) or of the points in them, and the statistics are those of
    all: `beside`, where points are shared out, is the same for all. A feature that is one point for all
    items contributes nothing (`constant_features` in the log). Where samples are not finite the loss is NaN, so that training
    skips the step. Raises `UserError` for an encoder that is not frozen, maps of another shape and features that are not finite.
    """

    regression: DriftRegression
    encoder: MapsModule | None = None
    most_places: int | None = None
    by_group: bool = False

    def __call__(self, clouds: Clouds, source: Source) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        axis = 1 if self.by_group else 2  # of (places, groups, points, C)
        if (
            not gathered(clouds.x, source, axis - 1).isfinite().all()
        ):  # on all processes alike: the loop skips such a step
            lost = clouds.x.flatten(2).sum(2).flatten() * torch.nan
            return lost, lost.detach(), {}
        with torch.autocast(clouds.x.device.type, enabled=False):
            seen = {name: self._features(cloud) for name, cloud in self._given(clouds).items()}
        pulls = {}
        for name, x in seen["x"].items():
            try:
                pulls[name] = self._pull(name, x, seen, clouds, source)
            except NoDistance:
                if name == ITEMS:
                    raise
        total = torch.stack([pull.per_point.mean(0) for pull in pulls.values()]).sum(0).flatten()  # means over places
        raw = torch.stack([pull.raw.mean(0) for pull in pulls.values()]).sum(0).flatten()
        logs = self._logs(list(pulls.values()), raw)
        if len(pulls) < len(seen["x"]):
            logs["constant_features"] = torch.full_like(raw, len(seen["x"]) - len(pulls))
        return total, raw, logs

    def _pull(self, name: str, x: Tensor, seen: dict[str, dict[str, Tensor]], clouds: Clouds, source: Source) -> Pull:
        axis = 1 if self.by_group else 2
        everyone = {key: gathered(found[name], source, axis) for key, found in seen.items() if key != "beside"}
        negatives, weights = everyone.get("negatives", everyone["x"]), None
        if "beside" in seen:
            beside = seen["beside"][name].detach()
            beside = gathered(beside, source, axis) if self.by_group else beside
            weights = self._weights(clouds, source, negatives, beside)
            negatives = torch.cat([negatives, beside], dim=-2)
        return self.regression(
            x,
            everyone["positives"],
            negatives,
            negative_weights=weights,
            own=clouds.negatives is None,
            among=(everyone["x"], axis, own_part(source, x.shape[axis])),
        )

    def _given(self, clouds: Clouds) -> dict[str, Tensor]:
        named = {"x": clouds.x, "positives": clouds.positives, "negatives": clouds.negatives, "beside": clouds.beside}
        return {name: cloud for name, cloud in named.items() if cloud is not None}

    def _features(self, items: Tensor) -> dict[str, Tensor]:
        """`(places, g, points, C)` by name: the items themselves, and what the encoder sees."""
        groups, points = items.shape[:2]
        found = {ITEMS: items.flatten(2)[None]}
        if self.encoder is not None:
            check_frozen(self.encoder.to(items.device))
            weights = next(self.encoder.parameters(), items)
            x = items.flatten(0, 1).to(weights.dtype)
            if x.ndim != 4:
                raise UserError(
                    f"an encoder looks at images (channels, height, width), not at items {tuple(x.shape[1:])}"
                )
            maps = self.encoder.maps(x)
            if not maps or any(h.ndim != 4 or len(h) != len(x) for h in maps):
                raise UserError(f"an encoder gives maps ({len(x)}, C, H, W), not {[tuple(h.shape) for h in maps]}")
            features = pooled(x, maps, self.most_places)
            bad = [name for name, h in features.items() if not h.isfinite().all()]
            if bad:
                raise UserError(
                    f"features {', '.join(bad[:3])} of the encoder hold NaN or infinity: mend the encoder or its input"
                )
            found |= {name: h.reshape(h.shape[0], groups, points, -1) for name, h in features.items()}
        return found

    def _weights(self, clouds: Clouds, source: Source, negatives: Tensor, beside: Tensor) -> Tensor | None:
        """`(places, g, points)` of the negatives and those beside them."""
        if clouds.beside_weight is None:
            return None
        weight = clouds.beside_weight.to(negatives)
        weight = gathered(weight, source) if self.by_group else weight
        ones = negatives.new_ones(negatives.shape[:-1])
        return torch.cat([ones, weight[None, :, None].expand(beside.shape[:-1])], dim=-1)

    def _logs(self, pulls: list[Pull], raw: Tensor) -> dict[str, Tensor]:
        """The raw root mean square of each temperature, over features, and the mean distance of the items."""
        logs = {}
        for temperature in self.regression.temperatures:
            square = sum(pull.rms[temperature] ** 2 for pull in pulls) / len(pulls)
            logs[f"drift_rms_{temperature:g}"] = torch.full_like(raw, square**0.5)
        if pulls[0].distance is not None:
            logs["mean_distance"] = torch.full_like(raw, pulls[0].distance)
        return logs
