"""The feature extractor of the Frechet distance: a small classifier, trained by the command that needs it, and kept.

The training is deterministic on a CPU (up to the rounding of its kernels), so the same data gives the same classifier;
its accuracy and the hash of its weights go into every result, because distances in different features cannot be
compared.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch.nn.functional import cross_entropy

from fewstep.configuration import to_config
from fewstep.datasets.base import Dataset
from fewstep.files import CHECKSUMS, cache_folder, read_checked, write_folder
from fewstep.networks.classifier import Classifier
from fewstep.pretrained import tensor_bytes
from fewstep.progress import Meter

WEIGHTS = "classifier.safetensors"
CLASSIFIER_STEPS = 1500


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A classifier of a data set, its share of right answers on the test split, and the hash of its weights."""

    classifier: Classifier
    accuracy: float
    sha256: str


def classifier_of(dataset: Dataset, data: Path | None, quiet: bool = True) -> Extractor:
    """The classifier of a labelled image data set, from the cache (`FEWSTEP_CACHE` or ~/.cache/fewstep) or trained now."""
    train = dataset.train(data)
    everything = train.take(train.size or 10_000)
    content = (
        repr((to_config(dataset), CLASSIFIER_STEPS, torch.__version__)).encode() + everything["x_0"].numpy().tobytes()
    )
    key = hashlib.sha256(content).hexdigest()[:12]
    name = type(dataset).__name__.lower()
    folder = cache_folder() / "classifiers" / f"{name}-{key}"
    classifier = Classifier(dataset.item_shape, dataset.num_classes)
    if (folder / CHECKSUMS).exists():
        content = read_checked(folder, WEIGHTS)
        classifier.load_state_dict(safetensors.torch.load(content))
    else:
        classifier = train_classifier(dataset, data, quiet)
        content = tensor_bytes(classifier.state_dict())
        write_folder(folder, {WEIGHTS: content})
    classifier.eval().requires_grad_(False)
    held_out = dataset.test(data).up_to(10_000)
    right = classifier.last(classifier.all_features(held_out["x_0"]).relu()).argmax(1) == held_out["labels"]
    return Extractor(
        classifier=classifier, accuracy=right.double().mean().item(), sha256=hashlib.sha256(content).hexdigest()
    )


def train_classifier(
    dataset: Dataset, data: Path | None, quiet: bool = True, steps: int = CLASSIFIER_STEPS, batch_size: int = 128
) -> Classifier:
    """Adam with a cosine schedule from a fixed seed; images are shifted by up to one pixel, so that edges do not decide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(dataset.item_shape, dataset.num_classes)
    examples, generator = dataset.train(data), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with Meter("classifier for the Frechet distance", steps, quiet=quiet) as meter:
        for step in range(steps):
            batch = examples.batch(batch_size, generator)
            shifts = torch.randint(-1, 2, (2,), generator=generator).tolist()
            loss = cross_entropy(classifier(torch.roll(batch["x_0"], shifts, dims=(2, 3))), batch["labels"])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            meter.update(step + 1)
    return classifier
