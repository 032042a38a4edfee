"""The handwritten digits that come with scikit-learn: the smallest real images, and no download."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.datasets.base import Dataset, TensorExamples


@dataclass(frozen=True, kw_only=True)
class Digits(Dataset):
    """1797 grey images `(1, 8, 8)` of ten classes, `x_0 = x / 8 - 1` for the grey levels 0 .. 16.

    500 images chosen once and for all are there to test on, the other 1297 to train on.
    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (its test part, as in scikit-learn).
    """

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (1, 8, 8)

    @property
    def num_classes(self) -> int:
        return 10

    def train(self, root: Path | None = None) -> TensorExamples:
        return self._split()[0]

    def test(self, root: Path | None = None) -> TensorExamples:
        return self._split()[1]

    def _split(self) -> tuple[TensorExamples, TensorExamples]:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        x_0 = torch.from_numpy(pixels).reshape(-1, *self.item_shape) / 8 - 1
        examples = TensorExamples(
            name="digits",
            item_shape=self.item_shape,
            x_0=x_0,
            labels=torch.from_numpy(labels),
            num_classes=self.num_classes,
            levels=17,
        )
        return examples.split(num_test=500)
