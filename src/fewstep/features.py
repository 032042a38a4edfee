"""The feature extractor of the Frechet distance: a small classifier of the data set.

For digits, MNIST and CIFAR-10 its weights come with the library (`fewstep/weights`), so that a distance means the same
everywhere; `fewstep classifier NAME` is what made them. For other labelled images it is trained where it is first
needed, and kept. The training runs in one thread from a fixed seed and is deterministic on a CPU (up to the rounding of
its kernels). The accuracy and the hash of the weights go into every result, because distances in different features
cannot be compared.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from fewstep.configuration import to_config
from fewstep.datasets.base import Dataset
from fewstep.errors import UserError
from fewstep.files import CHECKSUMS, cache_folder, read_checked, write_folder
from fewstep.networks.classifier import Classifier, FeatureClassifier, ResNetClassifier
from fewstep.pretrained import tensor_bytes
from fewstep.processes import one_thread
from fewstep.progress import Meter

WEIGHTS, RECORD = "classifier.safetensors", "classifier.json"


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """How a classifier is trained: AdamW with a linear warm-up and a cosine to 0 on shifted (and mirrored) images.

    `shift` is the largest shift in pixels along each axis; `residual` takes the residual network.
    """

    residual: bool = False
    steps: int = 1500
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 50
    shift: int = 1
    mirror: bool = False


GREY = ClassifierTraining()
COLOUR = replace(
    GREY, residual=True, steps=6250, lr=3e-3, weight_decay=5e-2, warmup_steps=400, shift=4, mirror=True
)  # sixteen passes over CIFAR-10


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A classifier of a data set, its share of right answers on the test split, and the hash of its weights."""

    classifier: FeatureClassifier
    accuracy: float
    sha256: str


def classifier_of(dataset: Dataset, data: Path | None, quiet: bool = True) -> Extractor:
    """The classifier of labelled images: shipped, from the cache (`FEWSTEP_CACHE` or ~/.cache/fewstep), or trained now."""
    shipped = Path(str(resources.files("fewstep"))) / "weights" / type(dataset).__name__.lower()
    if shipped.is_dir() and _made_for(dataset, shipped):
        return read_classifier(dataset, shipped)
    training = training_of(dataset)
    train = dataset.train(data).up_to(10_000)
    content = (
        repr((to_config(dataset), to_config(training), torch.__version__)).encode() + train["x_0"].numpy().tobytes()
    )
    key = hashlib.sha256(content).hexdigest()[:12]
    folder = cache_folder() / "classifiers" / f"{type(dataset).__name__.lower()}-{key}"
    if not (folder / CHECKSUMS).exists():
        write_classifier(dataset, training, folder, data, quiet)
    return read_classifier(dataset, folder)


def _made_for(dataset: Dataset, folder: Path) -> bool:
    """Whether the classifier in this folder is of this class of data, not of another one with the same name."""
    return json.loads(read_checked(folder, RECORD))["dataset"]["class"] == to_config(dataset)["class"]


def training_of(dataset: Dataset) -> ClassifierTraining:
    """The usual training for images of this kind: colour images take the residual network."""
    return COLOUR if dataset.item_shape[0] == 3 else GREY


def read_classifier(dataset: Dataset, folder: Path) -> Extractor:
    """The classifier in this folder, frozen. Raises `UserError` where its files are damaged or it is of other images."""
    content = read_checked(folder, WEIGHTS)
    record = json.loads(read_checked(folder, RECORD))
    if tuple(record["item_shape"]) != dataset.item_shape:
        raise UserError(
            f"the classifier in {folder} takes images {tuple(record['item_shape'])}, not {dataset.item_shape}"
        )
    cls = ResNetClassifier if record["training"]["residual"] else Classifier
    classifier = cls(dataset.item_shape, record["num_classes"])
    classifier.load_state_dict(safetensors.torch.load(content))
    classifier.eval().requires_grad_(False)
    return Extractor(classifier=classifier, accuracy=record["accuracy"], sha256=hashlib.sha256(content).hexdigest())


def write_classifier(
    dataset: Dataset, training: ClassifierTraining, folder: Path, data: Path | None = None, quiet: bool = True
) -> dict[str, Any]:
    """Train a classifier and write it to a folder with its record, which is returned: accuracy, hash and recipe."""
    classifier = train_classifier(dataset, training, data, quiet)
    content = tensor_bytes(classifier.state_dict())
    record = {
        "dataset": to_config(dataset),
        "item_shape": list(dataset.item_shape),
        "num_classes": dataset.num_classes,
        "training": to_config(training),
        "accuracy": accuracy(classifier, dataset.test(data).up_to(10_000)),
        "sha256": hashlib.sha256(content).hexdigest(),
        "torch": torch.__version__,
    }
    write_folder(folder, {WEIGHTS: content, RECORD: json.dumps(record, indent=1).encode()})
    return record


def train_classifier(
    dataset: Dataset, training: ClassifierTraining, data: Path | None = None, quiet: bool = True
) -> FeatureClassifier:
    """The trained classifier, in eval mode; one thread, because their number changes the rounding."""
    cls = ResNetClassifier if training.residual else Classifier
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = cls(dataset.item_shape, dataset.num_classes)
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    examples, generator = dataset.train(data), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=training.lr, weight_decay=training.weight_decay)
    rise = min(training.warmup_steps, training.steps // 2)
    warm = torch.optim.lr_scheduler.LinearLR(optimiser, 0.01, total_iters=rise)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.steps - rise)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimiser, [warm, cosine], [rise])
    with one_thread(), Meter("classifier for the Frechet distance", training.steps, quiet=quiet) as meter:
        for step in range(training.steps):
            batch = examples.batch(training.batch_size, generator)
            x = augment(batch["x_0"], training, generator)
            loss = cross_entropy(classifier(x), batch["labels"])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            meter.update(step + 1, f"loss {loss.item():.3g}")
    return classifier.eval()


def augment(x: Tensor, training: ClassifierTraining, generator: torch.Generator) -> Tensor:
    """Every image shifted by a random whole number of pixels, its edge repeated, and perhaps mirrored left to right."""
    n, channels, height, width = x.shape
    padded = pad(x, [training.shift] * 4, mode="replicate")
    down, right = torch.randint(2 * training.shift + 1, (2, n), generator=generator)
    columns = right[:, None] + torch.arange(width)
    if training.mirror:
        flip = torch.randint(2, (n, 1), generator=generator).bool()
        columns = torch.where(flip, columns.flip(1), columns)
    rows = down[:, None] + torch.arange(height)
    item, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
    return padded[item, channel, rows[:, None, :, None], columns[:, None, None, :]]


def accuracy(classifier: FeatureClassifier, examples: dict[str, Tensor]) -> float:
    """The share of right answers."""
    right = classifier.last(classifier.all_features(examples["x_0"]).relu()).argmax(1) == examples["labels"]
    return right.double().mean().item()
