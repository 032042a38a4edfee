"""What guidance of a drifting generator buys and costs: classes that are right, and spread, by strength (docs/drifting.md).

python benchmarks/drifting_guidance.py digits-drifting-guided --seeds 0

For each strength, 100 items of each class by one evaluation: the share that the data set's classifier (fewstep/features.py,
trained on the training split) puts into the class asked for, the mean distance between items of a class as a share of that of
held-out items, and the Frechet distance of all of them together to held-out items, beside as many training items. A run that is
there is not trained again.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import fewstep
from fewstep.datasets.base import Dataset
from fewstep.features import Extractor, classifier_of
from fewstep.metrics import FrechetDistance
from fewstep.recipes import find_recipe
from fewstep.samplers import OneStep
from fewstep.training import TrainingOptions, train

STRENGTHS = (1.0, 1.5, 2.0, 3.0, 4.0)
OF_A_CLASS = 100


def spread(x_0: Tensor, labels: Tensor) -> float:
    """The mean distance between two items of one class."""
    return statistics.fmean(torch.pdist(x_0[labels == c].flatten(1)).mean().item() for c in labels.unique().tolist())


@torch.no_grad()
def row(name: str, x_0: Tensor, labels: Tensor, real: tuple[Tensor, Tensor], extractor: Extractor) -> str:
    """A row of the table."""
    right = (extractor.classifier(x_0).argmax(1) == labels).float().mean().item()
    frechet = FrechetDistance(features=extractor.classifier.all_features)(x_0, real[0])["frechet"]
    return f"| {name} | {right:.3f} | {spread(x_0, labels) / spread(*real):.2f} | {frechet:.1f} |"


def split(dataset: Dataset, test: bool) -> tuple[Tensor, Tensor]:
    """As many items as the table's rows have, or all where there are fewer, with their labels."""
    items = dataset.test() if test else dataset.train()
    items = items.up_to(items.num_classes * OF_A_CLASS)
    return items["x_0"], items["labels"]


def main() -> None:
    """Train where needed; a table for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="digits-drifting-guided")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--strengths", nargs="+", type=float, default=STRENGTHS)
    parser.add_argument("--steps", type=int, help="of training, in place of the recipe's")
    parser.add_argument("--out", type=Path, default=Path("runs/guidance"))
    flags = parser.parse_args()
    torch.set_num_threads(1)
    recipe = find_recipe(flags.recipe)
    extractor = classifier_of(recipe.dataset, None)
    real = split(recipe.dataset, test=True)
    for seed in flags.seeds:
        folder = flags.out / f"{recipe.name}-{seed}"
        options = TrainingOptions(out=folder, resume=True, quiet=True)
        outcome = train(replace(recipe, seed=seed, steps=flags.steps or recipe.steps), options)
        model = fewstep.load(folder)
        labels = torch.arange(model.num_classes).repeat_interleave(OF_A_CLASS)
        print(f"{recipe.name}, seed {seed}, {outcome.seconds:.0f} s\n")
        print("| | class is right | spread of a class, share of real | Frechet distance |\n|---|---|---|---|")
        for strength in flags.strengths:
            x_0 = torch.cat(
                [
                    fewstep.sample(model, OF_A_CLASS, sampler=OneStep(label=c, strength=strength), seed=c)
                    for c in range(model.num_classes)
                ]
            )
            print(row(f"strength {strength:g}", x_0, labels, real, extractor))
        print(row("real, training", *split(recipe.dataset, test=False), real, extractor) + "\n", flush=True)


if __name__ == "__main__":
    main()
