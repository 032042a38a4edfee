"""Train the classifier whose features the Frechet distance uses: fewstep classifier digits|mnist|cifar10 [flags]

Writes classifier.safetensors and classifier.json (accuracy on the test split, hash, recipe; docs/json.md) to --out. The
weights that come with the library were made by this command; it runs in one thread from a fixed seed, and on the same
machine gives the same bits.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fewstep.cli._parsing import parse
from fewstep.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What to train and where to put it."""

    dataset: tyro.conf.Positional[Literal["digits", "mnist", "cifar10"]]
    """The data set."""
    out: Path | None = None
    """Folder for the results, a new one or one that this command wrote; classifiers/NAME if left out."""
    data: Path | None = None
    """Folder of the data sets; FEWSTEP_DATA if left out."""
    steps: int | None = None
    """Steps of training; the usual number if left out."""


def run(arguments: list[str]) -> int:
    """Train and write."""
    flags = parse(Flags, arguments, "classifier", __doc__)

    from dataclasses import replace

    from fewstep.datasets import CIFAR10, MNIST, Digits
    from fewstep.features import RECORD, training_of, write_classifier

    dataset = {"digits": Digits(), "mnist": MNIST(), "cifar10": CIFAR10()}[flags.dataset]
    training = training_of(dataset)
    if flags.steps is not None:
        training = replace(training, steps=flags.steps)
    out = flags.out or Path("classifiers") / flags.dataset
    if out.exists() and not (out / RECORD).exists():
        raise UserError(f"--out {out} exists and holds no classifier: give a folder that does not exist")
    if training.steps < 1:
        raise UserError(f"--steps counts from 1 up, not {training.steps}")
    record = write_classifier(dataset, training, out, flags.data, quiet=False)
    sys.stdout.write(f"accuracy {record['accuracy']:.2%} on the test split, sha256 {record['sha256']}\n")
    sys.stdout.write(f"written to {out}\n")
    return 0
