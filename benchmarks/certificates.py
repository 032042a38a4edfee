"""Theory as a gauge: the certified bounds of `fewstep.theory` next to the distances that they bound.

1. Random mixtures in the plane and networks in general position on the Gaussian skip: Corollary 1 against the measured
   mean squared W2 of a draw (debiased), and the coupled bound of a two-step sampler against its W2.
2. A trained ring: e(t) along the flow clock, Corollary 1, the measured error and the Lipschitz constant for each tau, and
   the bounds on N steps: composed from Corollary 1, composed from the measured eps, by coupling; then the measured W2^2
   (debiased) and the distance of moments, which is never above the truth.
3. Grids on the ring: the composed bound at even times, at even log-SNR, and at the times that minimise it, and the
   energy distance that the model reaches on each (unbiased; the mean over seeds and its standard error).

python benchmarks/certificates.py [--run runs/ring] [--train-steps 1500] [--seeds 10]
"""

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import fewstep
from fewstep.datasets import Ring
from fewstep.metrics import EnergyDistance
from fewstep.mixture import GaussianMixture
from fewstep.models import PosteriorFlow
from fewstep.networks import MLPConfig
from fewstep.recipes import find_recipe
from fewstep.samplers import Ancestral
from fewstep.scaling import GaussianScaling
from fewstep.schedule import VPSchedule
from fewstep.theory import (
    Level,
    Row,
    best_grid,
    certify,
    composed_bound,
    conditional_distance,
    corollary_1,
    coupled_bound,
    interpolate_levels,
    mean_flow_residual,
    measure,
    sampled_distance,
    second_moment,
    start_error,
)
from fewstep.times import Grid, LogSNRGrid, UniformGrid
from fewstep.training import TrainingOptions, train

TAUS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
SAMPLES = 5000


def generator(seed: int) -> torch.Generator:
    """A generator with this seed."""
    return torch.Generator().manual_seed(seed)


def random_mixture(seed: int) -> GaussianMixture:
    """Four components in the plane."""
    weights, means, spread = (
        torch.randn(shape, generator=generator(seed), dtype=torch.float64) for shape in ((4,), (4, 2), (4, 2, 2))
    )
    return GaussianMixture(weights.softmax(0), 1.5 * means, 0.1 * spread @ spread.mT + 0.03 * torch.eye(2).double())


def random_network(mixture: GaussianMixture, seed: int) -> PosteriorFlow:
    """A small network off its start, over the exact posterior of a Gaussian with the mixture's moments."""
    torch.manual_seed(seed)
    network = MLPConfig(width=16, depth=1).build((2,), inputs=2, times=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = PosteriorFlow(network, VPSchedule(), GaussianScaling(), (2,), gaussian_skip=True).double()
    model.fit(mixture.sample((4000,), generator(seed)))
    return model


def mixtures(seeds: int) -> None:
    """Table 1."""
    print("1. random mixtures, networks in general position: squared W2")
    print(
        f"{'seed':>4} {'tau':>5} {'Corollary 1':>18} {'measured':>18} {'ratio':>6}   {'coupled, N = 2':>16} {'measured':>16}"
    )
    for seed in range(seeds):
        mixture = random_mixture(seed)
        model, g = random_network(mixture, seed), generator(seed)
        coupled = coupled_bound(model, mixture, Ancestral(2), generator=g)
        y = Ancestral(2)(model, torch.randn(8000, 2, generator=g, dtype=torch.float64), g)
        distance = sampled_distance(y, mixture.sample((8000,), g), blocks=8)
        for tau in (1.0, 0.3):
            bound = corollary_1(model, mixture, tau, generator=g)
            truth = conditional_distance(model, mixture, tau, states=64, generator=g)
            assert bound.upper() >= truth.lower(), "a bound below the truth"
            end = f"{cell(coupled, 8)} {cell(distance, 8)}" if tau == 1 else ""
            print(f"{seed:>4} {tau:>5} {cell(bound)} {cell(truth)} {bound.value / truth.value:>6.1f}   {end}")
        assert coupled.upper() >= distance.lower(), "a bound below the truth"


def ring(model: PosteriorFlow, mixture: GaussianMixture) -> list[Row]:
    """Table 2; returns its rows."""
    print("\n2. the trained ring\ne(t), in the units of w, at tau = 1 and .3")
    print("t       " + "".join(f"{t:>9}" for t in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)))
    for tau in (1.0, 0.3):
        e = [mean_flow_residual(model, mixture, t, tau=tau, draws=2000, generator=generator(0)) for t in
             (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]  # fmt: skip
        print(f"tau {tau:<4}" + "".join(f"{row.value:>9.3f}" for row in e))
    print(
        f"\n{'tau':>5} {'Corollary 1':>18} {'measured, debiased':>20} {'plain':>8} {'ratio':>7} {'L seen':>8} {'typical':>8}"
    )
    rows = []
    for tau in TAUS:
        row = measure(model, mixture, tau, generator=generator(1))
        rows.append(row)
        print(f"{tau:>5} {cell(row.bound)}   {cell(row.measured)} {row.measured.plain.value:>8.4f} "
              f"{row.bound.value / row.measured.plain.value:>7.1f} {row.L.largest:>8.3f} {row.L.typical:>8.3f}")  # fmt: skip
        assert row.bound.upper() >= row.measured.lower(), "a bound below the truth"
    print(
        f"\n{'N':>3} {'composed, Cor. 1':>18} {'composed, eps':>20} {'coupled':>18} {'W2^2 of samples':>18} {'moments':>11}"
    )
    for steps in (1, 2, 4):
        found = certify(model, mixture, Ancestral(steps), generator=generator(2))
        print(f"{steps:>3} {cell(found.composed)}   {cell(found.composed_measured)} {cell(found.coupled)} "
              f"{cell(found.measured)} {found.lower:>11.4f}")  # fmt: skip
        bounds = (found.composed, found.composed_measured, found.coupled)
        assert min(bound.upper() for bound in bounds) >= found.measured.lower(), "a bound below the truth"
    return rows


def grids(model: PosteriorFlow, mixture: GaussianMixture, rows: list[Row], seeds: int) -> None:
    """Table 3."""
    print("\n3. grids on the ring: composed bound on W2 (with the measured eps), energy distance of one-step draws")
    start = start_error(second_moment(mixture), mixture.dim, model.schedule)
    by_bound = [Level(tau=row.tau, error=row.bound, L=row.L) for row in rows]
    by_measure = [Level(tau=row.tau, error=row.measured.plain, L=row.L) for row in rows]
    for steps in (2, 3, 4, 6, 8):
        choices: dict[str, Grid] = {
            "even": UniformGrid(),
            "log-SNR": LogSNRGrid(),
            "chosen, Cor. 1": best_grid(by_bound, start, model.schedule, steps),
            "chosen, measured": best_grid(by_measure, start, model.schedule, steps),
        }
        for name, grid in choices.items():
            times = grid(steps, model.schedule)
            levels = interpolate_levels(by_measure, times[:-1].tolist(), model.schedule)
            bound = composed_bound(levels, start, model.schedule).w2
            energies = []
            for seed in range(seeds):
                noise = torch.randn(SAMPLES, 2, generator=generator(seed), dtype=torch.float64)
                y = Ancestral(steps, grid=grid)(model, noise, generator(seed + 100))
                energies.append(
                    EnergyDistance()(y, mixture.sample((SAMPLES,), generator(seed + 200)))["energy_distance"]
                )
            energy = torch.tensor(energies)
            shown = " ".join(f"{tau:.3f}" for tau in times.tolist())
            print(f"N = {steps}  {name:<17} bound {bound:7.3f}   energy {energy.mean():.4f} +- "
                  f"{energy.std() / math.sqrt(seeds):.4f}   {shown}")  # fmt: skip


def cell(estimate, width: int = 9) -> str:
    """A value and its standard error."""
    return f"{estimate.value:>{width}.4f} +-{estimate.standard_error:>6.4f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained ring-stmd; without it one is trained")
    parser.add_argument("--train-steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    mixtures(arguments.seeds)
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or Path(folder)
        if arguments.run is None:
            train(replace(find_recipe("ring-stmd"), steps=arguments.train_steps), TrainingOptions(out=run))
        model = fewstep.load(run).double()
    mixture = Ring().mixture
    grids(model, mixture, ring(model, mixture), arguments.seeds)


if __name__ == "__main__":
    main()
