"""Steering and fine-tuning digits to a reward: what each method reaches, what it pays, and what is left of the variety.

python benchmarks/rewards.py runs/digits-stmd --tuned runs/rw --out runs/rewards

The reward is log p(class 7), at temperature 1 the tilt is the law of the sevens, and every method has 32 network evaluations a
sample (the fine-tuned models need 8). A judge that no method sees (a support vector machine on pixels) says what is a seven.
`--tuned` holds the runs WISH-METHOD of `fewstep finetune`, WISH one of 7, symmetric, thick, METHOD tilt, own or gradient; missing
ones are left out. Writes rewards.json, curves.png (reward against divergence) and methods.png, and prints the table.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.svm import SVC
from torch import Tensor

import fewstep
from fewstep.datasets import Digits
from fewstep.features import classifier_of
from fewstep.metrics import PRDC, Copying, EnergyDistance, VendiScore
from fewstep.models.base import Model
from fewstep.rewards import ClassProbability, Ink, Reward, Symmetry
from fewstep.samplers import Ancestral
from fewstep.steering import SMC, BestOfN, DegeneracyWarning, Guidance, SingleParticle, SteeringMethod, kl_at_least

BASE = Ancestral(steps=8)
METHODS: dict[str, SteeringMethod] = {  # 32 evaluations a sample; plug-in spends two at each of 16 steps
    "best of 4": BestOfN(n=4, sampler=BASE),
    "soft best of 4": BestOfN(n=4, soft=True, sampler=BASE),
    "SMC": SMC(steps=8, draws=4),
    "single particle": SingleParticle(steps=8, draws=4),
    "guidance": Guidance(steps=8, draws=4),
    "guidance, through": Guidance(steps=8, draws=4, gradient="reparametrised"),
    "guidance, plug-in": Guidance(steps=16, gradient="plug-in"),
}
WISHES: dict[str, tuple[Reward, float]] = {
    "7": (ClassProbability(label=7, dataset=Digits()), 1.0),
    "symmetric": (Symmetry(), 0.05),
    "thick": (Ink(), 0.02),
}
TUNED = {
    "tilt": "fine-tuned, tilt of the data",
    "own": "fine-tuned, tilt of own draws",
    "gradient": "fine-tuned, gradient",
}
TEMPERATURES = (8.0, 4.0, 2.0, 1.0)


class Judge:
    """What a sample is, by a classifier of its own; and the real sevens."""

    def __init__(self) -> None:
        train, test = (part.up_to(10_000) for part in (Digits().train(), Digits().test()))
        self.machine = SVC(gamma=0.02, C=10.0).fit(train["x_0"].flatten(1).numpy(), train["labels"].numpy())
        self.right = self.machine.score(test["x_0"].flatten(1).numpy(), test["labels"].numpy())
        self.sevens = torch.cat([part["x_0"][part["labels"] == 7] for part in (train, test)])
        self.held_out = test["x_0"][test["labels"] == 7]
        self.copying = Copying(train=train["x_0"][train["labels"] == 7])
        self.features = classifier_of(Digits(), None).classifier.all_features

    def share(self, x: Tensor) -> float:
        """The share of sevens."""
        return float((self.machine.predict(x.flatten(1).numpy()) == 7).mean())

    def numbers(self, x: Tensor) -> dict[str, float]:
        """Success, variety and distance to the real sevens."""
        found = {"sevens": self.share(x), "different": float(len(x.flatten(1).unique(dim=0)))}
        found |= VendiScore(features=self.features)(x, self.sevens)
        few = x[: len(self.sevens)]
        found["copying"] = self.copying(x, self.held_out)["copying"]
        found["coverage"] = PRDC(features=self.features)(few, self.sevens)["coverage"]
        return found | EnergyDistance()(x, self.sevens)


def steer(model: Model, method: SteeringMethod, reward: Reward, n: int, seed: int = 0) -> Any:
    """Samples of a method."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegeneracyWarning)
        return method(model, reward, n, torch.Generator().manual_seed(seed))


def rows_of(model: Model, judge: Judge, n: int, tuned: Path) -> dict[str, dict[str, Any]]:
    """A row for each method, the real sevens and the model as it is."""
    reward, _ = WISHES["7"]
    own = fewstep.sample(model, n, sampler=BASE, seed=5)
    r_own = reward(own)
    half = torch.randperm(len(judge.sevens), generator=torch.Generator().manual_seed(0))
    a, b = judge.sevens[half[::2]], judge.sevens[half[1::2]]
    rows = {
        "real sevens (half against half)": judge.numbers(a)
        | EnergyDistance()(a, b)
        | {"coverage": PRDC(features=judge.features)(a, b)["coverage"]},
        "the model as it is": judge.numbers(own) | {"reward": r_own.mean().item(), "nfe": BASE.nfe},
    }
    seven = own[torch.from_numpy(judge.machine.predict(own.flatten(1).numpy()) == 7)]
    rows["its own sevens, by rejection"] = judge.numbers(seven) | {"reward": reward(seven).mean().item()}
    for name, method in METHODS.items():
        found = steer(model, method, reward, n)
        x = found.unweighted(torch.Generator().manual_seed(1))
        paid = {
            "reward": found.mean_reward,
            "kl": found.kl,
            "kl_is_bound": found.kl_is_bound,
            "nfe": found.nfe,
            "ess": found.ess,
        }
        rows[name] = (
            judge.numbers(x) | paid | {"kl_at_least": kl_at_least(x, own, reward(x), r_own), "notes": found.notes}
        )
        print(name, rows[name], flush=True)
    for kind, name in TUNED.items():
        if (tuned / f"7-{kind}" / "finetune.json").exists():
            x = fewstep.sample(fewstep.load(tuned / f"7-{kind}"), n, sampler=BASE, seed=5)
            r = reward(x)
            paid = {"reward": r.mean().item(), "nfe": BASE.nfe, "kl_at_least": kl_at_least(x, own, r, r_own)}
            rows[name] = judge.numbers(x) | paid
    return rows


def curves(model: Model, n: int, samples: int = 4000) -> dict[str, Any]:
    """Mean reward against divergence over temperatures, at equal evaluations; and the least that any method can pay.

    The divergence is what a weighted method estimates; of the others what their samples show, at least.
    """
    reward, _ = WISHES["7"]
    own = fewstep.sample(model, samples, sampler=BASE, seed=6)
    r = reward(own).double()
    frontier = []
    for t in torch.logspace(2, -0.5, 40).tolist():
        w, log_z = (r / t).softmax(0), (r / t).logsumexp(0) - math.log(samples)
        mean = (w * r).sum()
        frontier.append(((mean / t - log_z).item(), mean.item()))
    lines: dict[str, list] = {}
    for name, method in METHODS.items():
        for t in TEMPERATURES if name != "best of 4" else (1.0,):
            found = steer(model, replace(method, temperature=t), reward, n)
            paid = found.kl if method.weighs else kl_at_least(found.x, own, found.rewards, r)
            lines.setdefault(name, []).append((paid, found.mean_reward, t))
    return {"frontier": frontier, "lines": lines}


def draw_curves(found: dict[str, Any], rows: dict[str, dict[str, Any]], path: Path) -> None:
    """The picture of the curves."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(*zip(*found["frontier"], strict=True), color="0.3", lw=1, label="the least possible (exponential tilt)")
    for name, points in found["lines"].items():
        x, y, _ = zip(*points, strict=True)
        axis.plot(x, y, "o-" if METHODS[name].weighs else "s--", ms=4, lw=1, label=name)
    for name, marker in zip(TUNED.values(), "*XP", strict=True):
        if name in rows:
            axis.plot(rows[name]["kl_at_least"], rows[name]["reward"], marker, ms=9, ls="", label=name)
    axis.set(
        xlabel="divergence from the model in nats (dashed and marks: at least)",
        ylabel="mean log p(7)",
        xlim=(-0.2, None),
    )
    axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw_methods(model: Model, tuned: Path, path: Path, shown: int = 8) -> None:
    """A row for each method, a block of samples for each wish."""
    kinds = {name: kind for kind, name in TUNED.items() if kind != "own"}
    names = ["the model as it is", *METHODS, *kinds]

    def samples(name: str, wish: str) -> Tensor | None:
        reward, t = WISHES[wish]
        if name in METHODS:
            found = steer(model, replace(METHODS[name], temperature=t), reward, 64)
            return found.unweighted(torch.Generator().manual_seed(1))[:: 64 // shown]
        run = tuned / f"{wish}-{kinds.get(name)}"
        if name in kinds and not run.exists():
            return None
        return fewstep.sample(fewstep.load(run) if name in kinds else model, shown, sampler=BASE, seed=2)

    figure = Figure(figsize=(13, 0.52 * len(names) + 0.4), layout="constrained")
    grid = figure.subplots(len(names), len(WISHES), squeeze=False)
    for axes, name in zip(grid, names, strict=True):
        for axis, wish in zip(axes, WISHES, strict=True):
            x = samples(name, wish)
            axis.set(xticks=[], yticks=[])
            if x is not None:
                axis.imshow(torch.cat(list(x[:, 0]), dim=1), cmap="gray", vmin=-1, vmax=1)
            if name == names[0]:
                axis.set_title(wish, fontsize=10)
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.savefig(path, dpi=110)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    show: dict[str, Callable[[dict[str, Any]], str]] = {
        "sevens, by the judge": lambda r: f"{r['sevens']:.3f}",
        "mean log p(7)": lambda r: f"{r['reward']:.3f}" if "reward" in r else "",
        "KL paid": lambda r: (
            f"{r['kl']:.2f}{' at most' if r['kl_is_bound'] else ''}" if r.get("kl") is not None else ""
        ),
        "KL at least": lambda r: f"{r['kl_at_least']:.2f}" if "kl_at_least" in r else "",
        "different": lambda r: f"{r['different']:.0f}",
        "Vendi, over the real sevens'": lambda r: f"{r['vendi_ratio']:.2f}",
        "coverage": lambda r: f"{r['coverage']:.2f}",
        "copying (.5 is new)": lambda r: f"{r['copying']:.2f}",
        "energy distance to them": lambda r: f"{r['energy_distance']:.3f}",
        "NFE": lambda r: f"{r['nfe']:.0f}" if "nfe" in r else "",
    }
    lines = ["| | " + " | ".join(show) + " |", "|---" * (len(show) + 1) + "|"]
    return "\n".join(
        [*lines, *(f"| {name} | " + " | ".join(f(row) for f in show.values()) + " |" for name, row in rows.items())]
    )


def main() -> None:
    """Measure, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tuned", type=Path, default=Path("runs/rw"))
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--n-curves", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/rewards"))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    model, judge = fewstep.load(flags.run), Judge()
    print(f"the judge is right on {judge.right:.3f} of held-out digits")
    rows = rows_of(model, judge, flags.n, flags.tuned)
    print(table(rows), flush=True)
    found = curves(model, flags.n_curves)
    flags.out.mkdir(parents=True, exist_ok=True)
    (flags.out / "rewards.json").write_text(json.dumps({"judge": judge.right, "rows": rows, "curves": found}, indent=1))
    draw_curves(found, rows, flags.out / "curves.png")
    draw_methods(model, flags.tuned, flags.out / "methods.png")


if __name__ == "__main__":
    main()
