"""Rewards where everything is known: T2 with r = (.5, -1) x, the exact model and a trained one, steered and fine-tuned.

python benchmarks/rewards_t2.py runs/t2-stmd --out runs/rewards-t2

RUN is a trained T2 (`fewstep train t2-stmd`). The exact model separates an algorithm's error from the network's. Fine-tuned runs
are made once and kept in --out (about five minutes of a core for the tilt, two for the gradient, whose anchor is chosen so that
one step has the tilt's mean reward). Prints tables; the calibration of the fine-tuned model is against the exact posterior of the
tilted law.
"""

import argparse
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

import fewstep
from fewstep.calibration import CalibrationPlan, calibrate
from fewstep.datasets import T2
from fewstep.datasets.mixtures import MixtureDataset
from fewstep.finetuning import FinetunePlan, finetune
from fewstep.metrics import EnergyDistance
from fewstep.mixture import GaussianMixture
from fewstep.models import MixturePosterior
from fewstep.models.base import Model
from fewstep.rewards import Linear
from fewstep.samplers import Ancestral
from fewstep.schedule import VPSchedule
from fewstep.steering import SMC, BestOfN, DegeneracyWarning, Guidance, SingleParticle, SteeringMethod, kl_at_least
from fewstep.training import TrainingOptions

SLOPE = torch.tensor([0.5, -1.0], dtype=torch.float64)
REWARD = Linear(slope=(0.5, -1.0))
LAW, LOG_Z = T2().mixture.tilt(SLOPE)
BASE = Ancestral(steps=8)
METHODS: dict[str, SteeringMethod] = {
    "SMC, 15 x 8": SMC(steps=15, draws=8),
    "single particle, 15 x 8": SingleParticle(steps=15, draws=8),
    "single particle, 15 x 8, weighted": SingleParticle(steps=15, draws=8, anneal=1.0, weighted=True),
    "guidance, 15 x 8": Guidance(steps=15, draws=8),
    "guidance, plug-in, 60 x 2": Guidance(steps=60, gradient="plug-in"),
    "best of 4": BestOfN(n=4, sampler=BASE),
    "soft best of 15": BestOfN(n=15, soft=True, sampler=BASE),
    "importance sampling": BestOfN(n=1, soft=True, weighted=True, sampler=BASE),
}
PLANS = {
    "tilt": FinetunePlan(pool=50_000, steps=1500),
    "gradient": FinetunePlan(method="gradient", steps=1000, anchor=1.7),
}


@dataclass(frozen=True, kw_only=True)
class TiltedT2(MixtureDataset):
    """The tilted law as data, so that calibration knows its exact posterior."""

    @property
    def mixture(self) -> GaussianMixture:
        """The law."""
        return LAW


def steered(model: Model, n: int) -> list[str]:
    """Rows of the methods."""
    rows = []
    for name, method in METHODS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegeneracyWarning)
            found = method(model, REWARD, n, torch.Generator().manual_seed(0))
        x = found.x.double()
        weights = found.expectation(LAW.responsibilities(x))
        off = (found.expectation(x) - LAW.mean).abs().max()
        log_z = "" if found.log_z is None else f"{found.log_z:.3f}"
        shown = " ".join(f"{w:.3f}" for w in weights)
        rows.append(
            f"| {name} | {shown} | {off:.3f} | {found.mean_reward:.3f} | {log_z} | {found.kl:.3f}"
            f"{' at most' if found.kl_is_bound else ''} | {found.ess:.0f} | {found.nfe:.0f} |"
        )
    return rows


def tuned(run: Path, out: Path, n: int) -> None:
    """Rows of the fine-tuned models."""
    truth, other = (LAW.sample((n,), torch.Generator().manual_seed(seed)) for seed in (5, 6))
    own = fewstep.sample(fewstep.load(run), n, sampler=Ancestral(steps=1), batch_size=n).double()
    print(f"\nenergy distance of the tilted law to itself {EnergyDistance()(other, truth)['energy_distance']:.4f}\n")
    print("| fine-tuned | N | weights | E[r] | KL from the model, at least | energy distance |\n" + "|---" * 6 + "|")
    for name, plan in PLANS.items():
        if not (out / name / "checkpoints").exists():
            finetune(run, REWARD, plan, TrainingOptions(out=out / name))
        model = fewstep.load(out / name)
        for steps in (1, 4, 16):
            x = fewstep.sample(model, n, sampler=Ancestral(steps=steps), batch_size=n).double()
            weights = " ".join(f"{w:.3f}" for w in LAW.responsibilities(x).mean(0))
            distance = EnergyDistance()(x, truth)["energy_distance"]
            paid = kl_at_least(x, own)
            print(
                f"| {name} | {steps} | {weights} | {(x @ SLOPE).mean():.3f} | {paid:.3f} | {distance:.4f} |", flush=True
            )


def calibrated(folder: Path, pairs: int) -> None:
    """One-step draws of the tilted posterior against the exact one."""
    found = calibrate(
        fewstep.load(folder), TiltedT2(), CalibrationPlan(pairs=pairs, draws=63, flow_steps=(1,), controls=False)
    )
    (folder / "calibration-tilted.json").write_text(json.dumps(found, indent=1))
    rows = next(f for f in found["families"] if f["name"] == "M = 1")["rows"]
    print(f"\ncalibration of {folder} against the tilted law, one flow step, {pairs} pairs")
    for row in rows:
        exact = row["exact"]
        print(
            f"tau {row['tau']:g}: variance ratio {exact['variance_ratio']:.3f}, distance "
            f"{exact['conditional_energy_distance']:.4f}, ranks p {row['rank_p_adjusted']:.2g}, "
            f"TARP p {row['tarp_p_adjusted']:.2g}, {', '.join(row['words'])}"
        )


def main() -> None:
    """Steer, fine-tune, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path("runs/rewards-t2"))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    kl = (LAW.mean @ SLOPE - LOG_Z).item()
    print(
        f"truth: weights {LAW.weights.tolist()}, E[r] {(LAW.mean @ SLOPE).item():.4f}, log Z {LOG_Z:.4f}, KL {kl:.4f}\n"
    )
    header = ["", "weights", "mean off by", "E[r]", "log Z", "KL", "effective", "NFE"]
    for title, model in (("exact", MixturePosterior(T2().mixture, VPSchedule())), ("trained", fewstep.load(flags.run))):
        print(f"\n{title} model, {flags.n} samples\n")
        print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|", flush=True)
        print("\n".join(steered(model, flags.n)), flush=True)
    tuned(flags.run, flags.out, flags.n)
    calibrated(flags.out / "tilt", flags.pairs)


if __name__ == "__main__":
    main()
