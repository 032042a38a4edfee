"""Methods for inverse problems on T2, where the posterior is known: `A = [1, .5]`, noise of deviation .5, `y = .5`.

With the exact posterior model, which shows the algorithm's error alone, and with a trained one (--run): the difference is the
network's. Of `--samples` samples at y = .5: sliced W2 to exact samples and the total variation of the modes' weights. Of
`--problems` others, 63 samples each: coverage of the 90 % interval, p-values of SBC and of TARP with two points that depend on y:
a linear estimate, off by a fixed vector, and the middle of the component that is the likeliest given y.

python benchmarks/inverse_t2.py [--run runs/t2-stmd] [--problems 500]
"""

import argparse
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

import fewstep
from fewstep import MixturePosterior, VPSchedule
from fewstep.datasets import T2
from fewstep.inverse import DPS, PCN, DecoupledSIR, InverseMethod, LookAhead, NestedSMC, NullSpace, SplitGibbs
from fewstep.metrics import SBC, TARP, EnergyScore, IntervalCoverage, SlicedWasserstein
from fewstep.models.base import PosteriorModel
from fewstep.operators import Gaussian, Matrix

SIGMA, MATRIX = 0.5, torch.tensor([[1.0, 0.5]], dtype=torch.float64)
NOISE, A = Gaussian(sigma=SIGMA), Matrix(item_shape=(2,), matrix=MATRIX)
MIXTURE = T2().mixture
COVARIANCE = SIGMA**2 * torch.eye(1, dtype=torch.float64)
METHODS: dict[str, InverseMethod] = {
    "NullSpace, 50 steps": NullSpace(noise=NOISE, steps=50),
    "DPS, 200 steps": DPS(noise=NOISE, steps=200),
    "LookAhead, 50 steps of 16": LookAhead(noise=NOISE, steps=50, draws=16),
    "DecoupledSIR, 5 levels of 16": DecoupledSIR(noise=NOISE, draws=16),
    "DecoupledSIR, 5 levels of 64": DecoupledSIR(noise=NOISE, draws=64),
    "DecoupledSIR, PCN of 16": DecoupledSIR(noise=NOISE, draws=8, chain=PCN(length=16, size=0.5)),
    "SplitGibbs without weights": SplitGibbs(noise=NOISE, weigh_above=None),
    "SplitGibbs": SplitGibbs(noise=NOISE),
    "SplitGibbs, weighed to the end": SplitGibbs(noise=NOISE, weigh_above=0.0),
    "NestedSMC, 20 steps of 16": NestedSMC(noise=NOISE, prior_variance=3.0),
}


def generator(seed: int) -> torch.Generator:
    """A generator with this seed."""
    return torch.Generator().manual_seed(seed)


def row(method: InverseMethod, model: PosteriorModel, samples: int, problems: int) -> str:
    """One line of the table."""
    like = model.like
    y = torch.full((1, 1), 0.5).to(like)
    law = MIXTURE.condition(y[0].double(), MATRIX, COVARIANCE)
    start = time.monotonic()
    one = method(model, A, y, samples, generator(0)).unweighted(generator(1))[:, 0].double()
    seconds = time.monotonic() - start
    w2 = SlicedWasserstein()(one, law.sample((samples,), generator(2)))["sliced_w2"]
    variation = 0.5 * (law.responsibilities(one).mean(0) - law.weights).abs().sum().item()
    x_0 = MIXTURE.sample((problems,), generator(3))
    y = x_0 @ MATRIX.T + SIGMA * torch.randn(problems, 1, generator=generator(4), dtype=torch.float64)
    found = method(model, A, y.to(like), 63, generator(5))
    draws = found.unweighted(generator(6)).double()
    points = [torch.stack([at(one) for one in y]) for at in (_estimate, _likeliest)]
    tarp = min(1.0, 2 * min(TARP(references=at)(draws, x_0)["tarp_p"] for at in points))
    numbers = IntervalCoverage()(draws, x_0) | SBC()(draws, x_0) | EnergyScore()(draws, x_0)
    return (
        f"{w2:.3f} | {variation:.3f} | {numbers['coverage_90']:.3f} | {numbers['sbc_p']:.1g} | {tarp:.1g} | "
        f"{numbers['energy_score']:.3f} | {found.nfe:.0f} | {seconds:.1f}"
    )


def _estimate(y: Tensor) -> Tensor:
    """A point that depends on y: the posterior's mean if the data were Gaussian, off by a fixed vector."""
    covariance, mean = MIXTURE.covariance, MIXTURE.mean
    gain = covariance @ MATRIX.T @ torch.linalg.inv(MATRIX @ covariance @ MATRIX.T + COVARIANCE)
    return mean + gain @ (y - MATRIX @ mean) + torch.tensor([0.7, -0.9], dtype=torch.float64)


def _likeliest(y: Tensor) -> Tensor:
    """The mean of the component that is the likeliest given y."""
    law = MIXTURE.condition(y, MATRIX, COVARIANCE)
    return law.means[law.weights.argmax()]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained t2-stmd")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--problems", type=int, default=500)
    flags = parser.parse_args()
    models: dict[str, PosteriorModel] = {"exact posterior": MixturePosterior(MIXTURE, VPSchedule())}
    if flags.run:
        models[str(flags.run)] = fewstep.load(flags.run)
    warnings.simplefilter("ignore")
    law = MIXTURE.condition(torch.tensor([0.5], dtype=torch.float64), MATRIX, COVARIANCE)
    floor = [
        SlicedWasserstein()(law.sample((flags.samples,), generator(i)), law.sample((flags.samples,), generator(i + 50)))
        for i in range(8)
    ]
    print(
        f"sliced W2 of exact samples: {min(f['sliced_w2'] for f in floor):.3f} to {max(f['sliced_w2'] for f in floor):.3f}"
    )
    for name, model in models.items():
        print(
            f"\n{name}\n\n| method | sliced W2 | modes, TV | 90 % covers | SBC p | TARP p | energy score | NFE | s |\n"
            + "|---" * 9
            + "|"
        )
        for title, method in METHODS.items():
            if isinstance(method, DecoupledSIR) and method.chain and isinstance(model, MixturePosterior):
                continue  # its draws are no function of Gaussian noise
            print(f"| {title} | {row(method, model, flags.samples, flags.problems)} |", flush=True)


if __name__ == "__main__":
    main()
