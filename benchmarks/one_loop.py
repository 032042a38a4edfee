"""One loop, two posteriors: the figure of the README, and its numbers.

A mixture of three normal laws in one dimension, weights (.5, .3, .2), means (-2, .5, 2), standard deviations (.2, .3, .15).
The same ancestral loop on an even grid is run with the exact posterior q(x_0 | x_tau), and with a point mass at its mean
(DDPM). W1 is the distance to the data's law. The floor is the distance of as many draws from the data's law itself: its
mean and its largest value over 40 repeats, because the shares of the modes, which W1 sees, vary from sample to sample.

python benchmarks/one_loop.py [--draws 1000000] [--figure docs/figures/one_loop.png]
"""

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from fewstep import Ancestral, GaussianMixture, MixturePosterior, VPSchedule
from fewstep.models import MeanOnly

STEPS = (1, 2, 4, 16, 64, 256)
REPEATS = 40


def mixture() -> GaussianMixture:
    """The data's law, in float64."""
    weights, means, stds = torch.tensor([[0.5, 0.3, 0.2], [-2, 0.5, 2], [0.2, 0.3, 0.15]], dtype=torch.float64)
    return GaussianMixture(weights, means[:, None], stds[:, None, None] ** 2)


def w1(sample: Tensor, law: GaussianMixture) -> float:
    """The Wasserstein-1 distance of a sample `(n, 1)` to the law: the mean distance of the order statistics to quantiles."""
    x = torch.linspace(-6, 6, 400_001, dtype=torch.float64)
    z = (x[:, None] - law.means[:, 0]) / law.covariances[:, 0, 0].sqrt()
    cdf = (0.5 * (1 + torch.erf(z / math.sqrt(2))) * law.weights).sum(1)
    levels = (torch.arange(len(sample), dtype=torch.float64) + 0.5) / len(sample)
    right = torch.searchsorted(cdf, levels).clamp(1, len(x) - 1)
    share = (levels - cdf[right - 1]) / (cdf[right] - cdf[right - 1])
    quantiles = x[right - 1] + share * (x[right] - x[right - 1])
    return (sample[:, 0].double().sort().values - quantiles).abs().mean().item()


def draw(
    figure: Path,
    samples: dict[tuple[str, int], Tensor],
    distances: dict[tuple[str, int], float],
    floors: Tensor,
    law: GaussianMixture,
) -> None:
    """Histograms for some step counts, and the distance against the number of steps."""
    import matplotlib.pyplot as plt

    shown = (1, 4, 64)
    fig, axes = plt.subplots(2, 4, figsize=(12, 4.6), layout="constrained")
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    density = law.log_prob(x[:, None]).exp()
    titles = {"draw": "a draw from q(x_0 | x_tau)", "mean": "its mean (DDPM)"}
    for row, kind in enumerate(titles):
        for axis, steps in zip(axes[row], shown, strict=False):
            axis.hist(
                samples[kind, steps][:, 0].numpy(), bins=240, range=(-3, 3), density=True, color=f"C{row}", alpha=0.7
            )
            axis.plot(x, density, "k", lw=0.8)
            axis.set(title=f"{titles[kind]}, N = {steps}", yticks=[], ylim=(0, 1.25), xlim=(-3, 3))
            axis.title.set_fontsize(9)
    for axis in axes[:, 3]:
        axis.remove()
    axis = fig.add_subplot(axes[0, 3].get_gridspec()[:, 3])
    for row, kind in enumerate(titles):
        axis.loglog(STEPS, [distances[kind, n] for n in STEPS], "o-", color=f"C{row}", label=titles[kind])
    axis.axhspan(*floors.aminmax(), color="0.85", label=f"real against real, {len(floors)} samples")
    axis.axhline(floors.mean(), color="0.5", ls=":")
    axis.set(xlabel="steps N", ylabel="Wasserstein-1 distance to the data")
    axis.legend(fontsize=8)
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure, dpi=120)


def main() -> None:
    """Print the table; write the figure if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1_000_000)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    n, law = arguments.draws, mixture()
    exact = MixturePosterior(law, VPSchedule())
    models = {"draw": exact, "mean": MeanOnly(exact)}
    generator = torch.Generator().manual_seed(0)
    floors = torch.tensor([w1(law.sample((n,), generator), law) for _ in range(REPEATS)])
    print(f"{n} draws; W1 of as many draws from the law itself, {REPEATS} times: "
          f"mean {floors.mean():.4f}, largest {floors.max():.4f}")  # fmt: skip
    distances: dict[tuple[str, int], float] = {}
    print(f"{'N':>4} {'exact posterior':>16} {'its mean (DDPM)':>16} {'seconds':>8}")
    samples = {}
    for steps in STEPS:
        start = time.monotonic()
        for kind, model in models.items():
            noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
            x_0 = Ancestral(steps, max_batch=100_000)(model, noise, generator)
            samples[kind, steps], distances[kind, steps] = x_0, w1(x_0, law)
        row = f"{steps:>4} {distances['draw', steps]:>16.4f} {distances['mean', steps]:>16.4f}"
        print(f"{row} {time.monotonic() - start:>8.1f}", flush=True)
    if arguments.figure:
        draw(arguments.figure, samples, distances, floors, law)
        print(f"written to {arguments.figure}")


if __name__ == "__main__":
    main()
