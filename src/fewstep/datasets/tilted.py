"""Weighted items of another data set's kind: what a model is fine-tuned on, and held-out items of the same law."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fewstep.datasets.base import Dataset, TensorExamples
from fewstep.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Tilted(Dataset):
    """The items of an .npz file: `x_0` `(n, *item_shape)` drawn in proportion to `weights` `(n,)`, and `x_0_test` without.

    `base` is the data set whose kind they are, with its shape; `levels` in the file are their grey levels, where they have few.
    They have no labels. Raises `UserError` where the file is missing or has not these arrays, or nothing was held out.
    """

    base: Dataset
    path: str

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.base.item_shape

    def train(self, root: Path | None = None) -> TensorExamples:
        return self._part("x_0", "weights")

    def test(self, root: Path | None = None) -> TensorExamples:
        return self._part("x_0_test")

    def _part(self, *names: str) -> TensorExamples:
        path = Path(self.path)
        if not path.is_file():
            raise UserError(f"no file {path}: it belongs to the run that was fine-tuned, in its folder finetuning")
        with np.load(path) as arrays:
            missing = [name for name in names if name not in arrays.files]
            if missing:
                raise UserError(f"{path} has no {', '.join(missing)}: it is not what fewstep finetune wrote")
            found = [torch.from_numpy(arrays[name]) for name in names]
            levels = int(arrays["levels"]) if "levels" in arrays.files else None
        if len(found[0]) == 0:
            raise UserError(
                f"{path}: of the held-out items none is left by the reward, so there is nothing to compare with: fine-tune "
                "with a higher --temperature, or on data with more held-out items"
            )
        weights = found[1] if len(found) > 1 else None
        return TensorExamples(
            name=f"{path} ({names[0]})",
            item_shape=self.item_shape,
            x_0=found[0],
            levels=levels,
            weights=weights,
        )
