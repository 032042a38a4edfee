"""Where does the truth lie among the draws? The machinery of every calibration test that is made of ranks.

If the truth and the m draws of a case are exchangeable, the truth's rank among the draws, `#{i: X_i < x}`, is uniform on
`0 .. m` (Talts et al. 2018, arXiv 1804.06788, theorem 1; Hamill 2001). Two randomisations keep that exact:
- ties are broken at random, so that components that are often equal (the border of a digit) have uniform ranks too;
- `u = (rank + U) / (m + 1)`, U uniform on [0, 1), is exactly uniform on [0, 1), so that Kolmogorov and Smirnov's
  test of it is exact for every m, though ranks are discrete.

A rank is `(n, ...)`, one case a row; columns are its flattened components. Uniform ranks say nothing of sharpness: draws
from the prior have them.
"""

import torch
from torch import Tensor

from fewstep.draws import uniform
from fewstep.errors import UserError
from fewstep.shapes import flat


def ranks(draws: Tensor, truth: Tensor, generator: torch.Generator) -> Tensor:
    """How many of the draws `(m, n, ...)` lie below the truth `(n, ...)`, component by component: `(n, d)`, in `0 .. m`.

    A truth that equals e of the draws has one of its e + 1 possible ranks, each as probable as the next. Raises
    `UserError` where the shapes do not fit and where a number is NaN, which has no rank.
    """
    if draws.shape[1:] != truth.shape or truth.ndim < 1:
        raise UserError(f"draws {tuple(draws.shape)} are (m, *cases) for cases {tuple(truth.shape)}: they do not fit")
    below, equal = torch.zeros(2, *truth.shape, dtype=torch.int64, device=truth.device)
    unordered = truth.isnan().any()
    for draw in draws:  # one at a time: m comparisons at once would be as large as the draws
        below += draw < truth
        equal += draw == truth
        unordered |= draw.isnan().any()
    if unordered:
        raise UserError("a draw or a truth is NaN and has no rank: the sampler diverged, take more steps or another")
    u = uniform(tuple(truth.shape), generator, like=torch.empty((), dtype=torch.float64, device=truth.device))
    return flat(below + (u * (equal + 1)).long())


def uniformity(rank: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """The p-value of Kolmogorov and Smirnov's test that each column's ranks are uniform on `0 .. m`: `(columns,)`."""
    return kolmogorov_smirnov(randomised(rank, m, generator))[1]


def calibration_test(rank: Tensor, m: int, generator: torch.Generator) -> tuple[float, float]:
    """One p-value that the ranks of all columns are uniform, Bonferroni's, and the largest `sup_u |F_n(u) - u|` of a column."""
    u = randomised(rank, m, generator)
    p = column_p_values(u)
    return min(1.0, len(p) * p.min().item()), kolmogorov_smirnov(u)[0].max().item()


def column_p_values(u: Tensor) -> Tensor:
    """The p-value of each column of `(n, columns)` numbers, uniform on [0, 1] where the truth is a draw: `(columns,)`.

    Each is tested twice: `u`, which moves with a bias, and `|2u - 1|`, which moves with the spread and sees its error with
    a quarter of the cases that u needs; the smaller p-value counts twice (Bonferroni).
    """
    return (2 * torch.minimum(kolmogorov_smirnov(u)[1], kolmogorov_smirnov((2 * u - 1).abs())[1])).clamp_max(1)


def randomised(rank: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """`u = (rank + U) / (m + 1)`, uniform on [0, 1) where the ranks are on `0 .. m`: `(n, columns)`, columns in order.

    U is added to the ordered ranks, not to those of the cases as they come: the order of the cases is no matter.
    """
    rank = _columns(rank, m).sort(dim=0).values
    like = torch.empty((), dtype=torch.float64, device=rank.device)
    return ((rank + uniform(tuple(rank.shape), generator, like=like)) / (m + 1)).sort(dim=0).values


def kolmogorov_smirnov(u: Tensor) -> tuple[Tensor, Tensor]:
    """`sup |F_n(u) - u|` of each column of `(n, columns)` numbers in [0, 1], and its exact p-value: `(columns,)` each."""
    from scipy.stats import kstwo

    n, u = len(u), u.sort(dim=0).values
    steps = torch.arange(n + 1, dtype=torch.float64, device=u.device)[:, None] / n
    statistic = torch.maximum(steps[1:] - u, u - steps[:-1]).amax(0)
    return statistic, torch.from_numpy(kstwo.sf(statistic.cpu().numpy(), n)).to(u.device)


def chi_square_uniformity(rank: Tensor, m: int, bins: int = 16) -> Tensor:
    """The p-value of Pearson's test of each column's `histogram`, `(columns,)`; about 5 cases a bin or more are needed."""
    from scipy.stats import chi2

    counts = histogram(rank, m, bins).double()
    expected = len(rank) / bins
    statistic = (counts - expected).square().sum(0) / expected
    return torch.from_numpy(chi2.sf(statistic.cpu().numpy(), bins - 1)).to(rank.device)


def histogram(rank: Tensor, m: int, bins: int) -> Tensor:
    """How many cases have a rank in each of `bins` equal parts of `0 .. m`: counts `(bins, columns)`.

    Raises `UserError` unless `bins` divides m + 1: unequal parts of uniform ranks are not uniform.
    """
    if bins < 2 or (m + 1) % bins:
        raise UserError(
            f"{m} draws give {m + 1} ranks, which {bins} bins do not divide evenly: take bins that divide {m + 1}, "
            f"or a number of draws like {max(1, round((m + 1) / max(bins, 2))) * max(bins, 2) - 1}"
        )
    part = _columns(rank, m) * bins // (m + 1)
    return torch.stack([(part == i).sum(0) for i in range(bins)])


def coverage(rank: Tensor, m: int, levels: Tensor) -> Tensor:
    """The share of the truths inside the central interval of each level `(l,)`: `(l, columns)`.

    A truth is inside the interval of level q where `|u - 1/2| < q/2`, `u = (rank + U) / (m + 1)`. The mean over U is
    taken exactly: a truth counts by the part of `[rank, rank + 1] / (m + 1)` that lies inside. Under uniform ranks the
    expectation is q for every m and every q, also for those that are no multiple of `1 / (m + 1)`; the interval between two
    empirical quantiles is too narrow for few draws. Raises `UserError` for a level outside [0, 1].
    """
    if not ((levels >= 0) & (levels <= 1)).all():
        raise UserError(f"the levels of intervals are between 0 and 1, not {levels.tolist()}")
    rank, half = _columns(rank, m).double(), levels.to(rank.device).double()[:, None, None] / 2
    low, high = (0.5 - half) * (m + 1), (0.5 + half) * (m + 1)
    return (torch.minimum(high, rank + 1) - torch.maximum(low, rank)).clamp_min(0).mean(1)


def _columns(rank: Tensor, m: int) -> Tensor:
    if rank.ndim < 1 or not rank.numel() or rank.min() < 0 or rank.max() > m:
        raise UserError(f"ranks {tuple(rank.shape)} among {m} draws are (n, ...) whole numbers from 0 to {m}")
    return flat(rank)
