"""Can a classifier tell samples from the reference? (Lopez-Paz and Oquab 2017, arXiv 1610.06545.)"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.base import Metric, subset, two_samples


def perceptron(seed: int) -> Any:
    """scikit-learn's perceptron with two hidden layers of 64, by Adam at 3e-3, stopped early on a tenth of the items."""
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((64, 64), learning_rate_init=3e-3, early_stopping=True, random_state=seed)


@dataclass(frozen=True, kw_only=True)
class C2ST(Metric):
    """`{"c2st": ...}`, the share of held-out items that a classifier assigns to the right sample: 0.5 if it cannot tell.

    Cross-validated in `folds` folds, standardised with the mean and deviation of each training part. Both classes have
    as many items, the smaller sample's number but at most `at_most`, drawn with `seed`. `classifier` makes a scikit-learn
    classifier from a seed. For equal laws the deviation of the number is about `.5 / sqrt(2 n)`; it says that the laws
    differ, hardly how much, and what the classifier does not learn it does not see. Raises `UserError` unless there are
    2 folds or more, and an item of each sample in each.
    """

    classifier: Callable[[int], Any] = perceptron
    folds: int = 5
    at_most: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.folds <= self.at_most:
            raise UserError(f"C2ST needs 2 <= folds <= at_most, not folds = {self.folds} and at_most = {self.at_most}")

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        from sklearn.model_selection import StratifiedKFold, cross_val_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        x, y = two_samples(samples, reference, at_least=self.folds)
        generator = torch.Generator().manual_seed(self.seed)
        n = min(len(x), len(y), self.at_most)
        items = torch.cat([subset(x, n, generator), subset(y, n, generator)]).cpu().numpy()
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=self.seed)
        pipeline = make_pipeline(StandardScaler(), self.classifier(self.seed))
        return {"c2st": float(cross_val_score(pipeline, items, np.repeat([0, 1], n), cv=folds).mean())}
