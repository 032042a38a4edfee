"""What a method paid in divergence, seen from its samples alone."""

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError

FEW = 16  # components up to which squares and products are looked at, too


def kl_at_least(
    samples: Tensor, own: Tensor, rewards: Tensor | None = None, own_rewards: Tensor | None = None
) -> float:
    """A lower bound of `KL(q || p)` in nats, estimated from samples `(n, ...)` of q and `(m, ...)` of p (Donsker and Varadhan's).

    `KL >= E_q[f] - log E_p[exp f]` for every f; here the log-odds of a logistic regression, learnt on one half of both and
    asked on the other, and the other way round: the mean of the two, 0 where it is below. The regression sees the components
    (for up to 16 of them also their squares and products) and the rewards; where there are rewards, one sees them and their
    squares alone, too, and the larger bound counts. A tilt by a linear reward, or by any whose values are given, is found exactly
    as n grows. Its own noise, about .1 for 500 samples, may put it above the truth; of what the regression does not see, and of
    more than about log m, it says nothing. Of rewards that are -infinity it sees that they are. Raises `UserError` for fewer than
    20 samples of either, or for items that do not fit.
    """
    if min(len(samples), len(own)) < 20 or samples.shape[1:] != own.shape[1:]:
        raise UserError(
            f"a divergence needs 20 samples or more of one kind, not {tuple(samples.shape)} and {tuple(own.shape)}"
        )
    if (rewards is None) != (own_rewards is None):
        raise UserError("give the rewards of both samples, or of none")
    q, p = (x.flatten(1).double().cpu().numpy() for x in (samples, own))
    degree = 2 if q.shape[1] <= FEW else 1
    if rewards is None or own_rewards is None:
        return _bound(q, p, degree)
    asked = [r.detach().double().cpu()[:, None] for r in (rewards, own_rewards)]
    if not all(r.isfinite().all() for r in asked):  # where items are forbidden, that they are is what is seen
        asked = [r.isfinite().double() for r in asked]
    r_q, r_p = (r.numpy() for r in asked)
    return max(_bound(np.hstack([q, r_q]), np.hstack([p, r_p]), degree), _bound(r_q, r_p, 2))


def _bound(q: np.ndarray, p: np.ndarray, degree: int) -> float:
    """The bound by what a regression sees: rows of q and of p."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    generator, found = np.random.default_rng(0), []
    q, p = generator.permutation(q), generator.permutation(p)
    strength = 1.0 if q.shape[1] <= FEW + 1 else 0.01  # of many components few samples say little
    for learn, ask in ((0, 1), (1, 0)):
        x = np.concatenate([q[learn::2], p[learn::2]])
        label = np.repeat([1, 0], [len(q[learn::2]), len(p[learn::2])])
        regression = LogisticRegression(C=strength, max_iter=1000)
        model = make_pipeline(StandardScaler(), PolynomialFeatures(degree, include_bias=False), regression).fit(
            x, label
        )
        f_q, f_p = (torch.from_numpy(model.decision_function(part[ask::2])) for part in (q, p))
        found.append((f_q.mean() - f_p.logsumexp(0) + np.log(len(f_p))).item())
    return max(0.0, float(np.mean(found)))
