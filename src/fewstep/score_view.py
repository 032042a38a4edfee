"""The score view of drifting (arXiv 2603.07514): mean shifts as kernel-smoothed scores, and what is left over.

With `pi_k(x) = E_{y ~ pi}[k(x, y)]` and w the law of y tilted by `k(x, .)`:

- a Gaussian kernel: `V_pi = h^2 grad log pi_h`, exactly (theorem 1);
- by the kernel's own score: `V = alpha s + delta`, `s = grad log pi_k = E_w[(y - x) / b(r)]`, `alpha = E_w[b(r)]`, and the
  residual `delta = Cov_w(b(r), (y - x) / b(r))`, which is 0 where b is constant;
- by the companion kernel's: `V = (pi_k# / pi_k) grad log pi_k#`, without a residual.

For clouds, and for populations: mixtures of Gaussians under a Gaussian or a Laplace kernel, exactly in any dimension (a Laplace
kernel is a mixture of Gaussian ones, `exp(-a r) = int a / (2 sqrt(pi)) t^(-3/2) exp(-a^2 / 4 t) exp(-t r^2) dt`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.draws import Source, categorical, normal
from fewstep.errors import UserError
from fewstep.kernels import Gaussian, Kernel, Laplace
from fewstep.mixture import GaussianMixture
from fewstep.shapes import distances

NODES = 800  # of the quadrature over scales


@dataclass(frozen=True, kw_only=True, eq=False)
class Decomposition:
    """`shift = alpha score + delta` at points `(n, d)`: alpha `(n,)`, a squared length; the others `(n, d)`.

    `delta_across` is the part of delta that is orthogonal to the score.
    """

    shift: Tensor
    alpha: Tensor
    score: Tensor

    @property
    def delta(self) -> Tensor:
        """The residual."""
        return self.shift - self.alpha[:, None] * self.score

    @property
    def delta_across(self) -> Tensor:
        """The part of the residual that is orthogonal to the score."""
        along = (self.delta * self.score).sum(1) / self.score.square().sum(1).clamp_min(1e-300)
        return self.delta - along[:, None] * self.score


def decompose(kernel: Kernel, x: Tensor, y: Tensor) -> Decomposition:
    """The mean shift of a cloud y `(m, d)` at x `(n, d)`, by the kernel's own score."""
    x, y = x - y.mean(0), y - y.mean(0)
    r = distances(x, y)
    w, b = kernel.log_k(r).softmax(1), kernel.b(r)
    pull = torch.where(b > 0, w / b, 0.0)  # where a point is in the cloud itself, nothing
    return Decomposition(shift=w @ y - x, alpha=(w * b).sum(1), score=_away(pull, x, y))


def decompose_sharp(kernel: Kernel, x: Tensor, y: Tensor) -> Decomposition:
    """The same by the companion kernel's score: alpha is `pi_k# / pi_k`, and there is no residual."""
    x, y = x - y.mean(0), y - y.mean(0)
    r = distances(x, y)
    log_k, log_sharp = kernel.log_k(r), kernel.log_sharp(r)
    score = _away((log_k - log_sharp.logsumexp(1, keepdim=True)).exp(), x, y)
    alpha = (log_sharp.logsumexp(1) - log_k.logsumexp(1)).exp()
    return Decomposition(shift=log_k.softmax(1) @ y - x, alpha=alpha, score=score)


def _away(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """`sum_j w_ij (y_j - x_i)`."""
    return weights @ y - weights.sum(1, keepdim=True) * x


@dataclass(frozen=True, kw_only=True, eq=False)
class IsotropicMixture:
    """`sum_k w_k N(m_k, std^2 I)`, weights `(K,)`, means `(K, d)`: with no covariance matrix, for many dimensions."""

    weights: Tensor
    means: Tensor
    std: float

    @property
    def dim(self) -> int:
        """The number of dimensions d."""
        return self.means.shape[1]

    @property
    def mean(self) -> Tensor:
        """`(d,)`."""
        return self.weights @ self.means

    @property
    def spread(self) -> float:
        """`E ||x - mean||^2`, the trace of the covariance."""
        return (self.dim * self.std**2 + self.weights @ (self.means - self.mean).square().sum(1)).item()

    def sample(self, n: int, generator: Source) -> Tensor:
        """`(n, d)` draws."""
        index = categorical(self.weights.log().expand(n, -1), generator)
        return self.means[index] + self.std * normal((n, self.dim), generator, like=self.means)


def mean_square_distance(p: IsotropicMixture, q: IsotropicMixture) -> float:
    """`rho^2 = E ||x - y||^2` of x ~ q and y ~ p."""
    return p.spread + q.spread + (p.mean - q.mean).square().sum().item()


def decompose_population(kernel: Kernel, x: Tensor, law: GaussianMixture | IsotropicMixture) -> Decomposition:
    """The mean shift of a whole mixture at x `(n, d)`, by the kernel's own score; Gaussian and Laplace kernels.

    Raises `UserError` for other kernels, which have no closed form here.
    """
    if not isinstance(kernel, Gaussian | Laplace):
        raise UserError(f"populations are known under Gaussian and Laplace kernels, not {type(kernel).__name__}")
    if isinstance(law, IsotropicMixture):
        away = x[:, None] - law.means
        squares, spectrum = away.square().sum(-1, keepdim=True), law.means.new_full((1, 1), law.std**2)
        of_square, of_score, of_shift = _pulls(kernel, squares, spectrum, law.dim, law.weights)
        score, shift = ((pull.sum(1) * x - pull[..., 0] @ law.means) for pull in (of_score, of_shift))
    else:
        spectrum, axes = torch.linalg.eigh(law.covariances)
        away = torch.einsum("kji,nkj->nki", axes, x[:, None] - law.means)  # (n, components, d), along each one's axes
        of_square, of_score, of_shift = _pulls(kernel, away.square(), spectrum, 1, law.weights)
        score, shift = (torch.einsum("kij,nkj->ni", axes, pull * away) for pull in (of_score, of_shift))
    return Decomposition(shift=shift, alpha=of_square, score=score)


def _pulls(
    kernel: Gaussian | Laplace, squares: Tensor, spectrum: Tensor, times: int, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The alpha `(n,)`, and what multiplies `x - m_k` in score and shift, `(n, K, G)`: along G axes that stand for `times` each.

    `squares` `(n, K, G)` are those of x - m_k, `spectrum` `(K or 1, G)` the variances of the components.
    """
    if isinstance(kernel, Gaussian):
        variance = spectrum + kernel.bandwidth**2
        share = (weights.log() + _log_density(squares, variance, times)).softmax(1)
        pull = share[..., None] / -variance
        return squares.new_full((len(squares),), kernel.bandwidth**2), pull, kernel.bandwidth**2 * pull
    d, rate = times * squares.shape[2], 1 / kernel.bandwidth
    # the integrand has its peak about t = rate / 2 r; it falls as exp(-rate^2 / 4 t) below and as t^(-(d + 1) / 2) above
    size = (squares.sum(-1).amax(1) + times * spectrum.sum(-1).max()).sqrt()
    peak = (rate / (2 * size)).log()
    low, high = (peak - 6).clamp_max(2 * math.log(rate) - 8), peak + 8 + 56 / (d + 1)
    u = torch.linspace(0, 1, NODES, dtype=squares.dtype, device=squares.device)
    scales = (low[:, None] + (high - low)[:, None] * u).exp()  # (n, nodes): each point has nodes of its own
    log_mass = []
    for t in scales.unbind(1):
        # weight of the scale, times dt = t d(log t), times E[exp(-t r^2)] = (pi / t)^(d / 2) density of the smoothed law
        weight = math.log(rate / 2) - 0.5 * (math.pi * t).log() - rate**2 / (4 * t) + 0.5 * d * (math.pi / t).log()
        log_density = _log_density(squares, spectrum + 1 / (2 * t)[:, None, None], times)
        log_mass.append(weight[:, None] + weights.log() + log_density)
    share = (
        torch.stack(log_mass, dim=1).flatten(1).softmax(1).reshape(len(squares), NODES, -1)
    )  # of scales and components
    of_score, of_shift = torch.zeros_like(squares), torch.zeros_like(squares)
    for i, t in enumerate(scales.unbind(1)):
        width = 1 / (2 * t)[:, None, None]
        pull = share[:, i, :, None] / -(spectrum + width)
        of_score += pull
        of_shift += pull * width  # grad exp(-t r^2) = 2 t (y - x) exp(-t r^2)
    # E[k r] = -d/da E[k], by the derivative of the weights
    mean_distance = (share.sum(2) * (rate / (2 * scales) - 1 / rate)).sum(1)
    return kernel.bandwidth * mean_distance, of_score, of_shift


def _log_density(squares: Tensor, variance: Tensor, times: int) -> Tensor:
    """`(n, K)`, of normal laws with these variances along axes that stand for `times` each."""
    d = times * squares.shape[2]
    return -0.5 * ((squares / variance + times * variance.log()).sum(-1) + d * math.log(2 * math.pi))


def alignment(p: Decomposition, q: Decomposition, tau_rho: float | None = None) -> dict[str, float]:
    """How the drift `D = V_p - V_q` and the score difference `S = s_p - s_q` agree, in the mean over points x ~ q.

    `cosine` in the mean; `c_star = <D, S> / ||S||^2`, the best factor; `c_alpha = E[alpha_p + alpha_q] / 2` and, where given,
    `c_rho = tau rho`; `absolute`, `E ||D - c_alpha S||^2`, and `relative`, over `E ||D||^2`; `relative_best` with c_star;
    `alpha_ratio`, the mean of `alpha_p / alpha_q`; `gap_energy`, `E ||delta_p - delta_q||^2`, and `gap_share`, over `E ||D||^2`.
    Raises `UserError` where the two are not of the same points.
    """
    if p.shift.shape != q.shift.shape:
        raise UserError(
            f"drift at {tuple(p.shift.shape)} and at {tuple(q.shift.shape)}: decompose both laws at the same points x"
        )
    drift, score, gap = p.shift - q.shift, p.score - q.score, p.delta - q.delta
    energy = drift.square().sum(1).mean()
    c_star = ((drift * score).sum() / score.square().sum()).item()
    c_alpha = (0.5 * (p.alpha + q.alpha)).mean().item()

    def off(c: float) -> float:
        return (drift - c * score).square().sum(1).mean().item()

    found = {
        "cosine": torch.cosine_similarity(drift, score, dim=1).mean().item(),
        "c_star": c_star,
        "c_alpha": c_alpha,
        "absolute": off(c_alpha),
        "relative": off(c_alpha) / energy.item(),
        "relative_best": off(c_star) / energy.item(),
        "alpha_ratio": (p.alpha / q.alpha).mean().item(),
        "gap_energy": gap.square().sum(1).mean().item(),
        "gap_share": (gap.square().sum(1).mean() / energy).item(),
    }
    return found | ({} if tau_rho is None else {"c_rho": tau_rho})
