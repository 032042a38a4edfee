"""The classifiers behind the Frechet distance: shipped, reproducible, read with their hash, trained where there is none."""

import hashlib
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep import features
from fewstep.datasets import MNIST, Arrays, Digits
from fewstep.errors import UserError
from fewstep.features import COLOUR, GREY, augment, classifier_of, read_classifier, train_classifier, write_classifier
from fewstep.networks.classifier import Classifier, FeatureClassifier, ResNetClassifier
from problems import generator, normals, seeded

SHIPPED = sorted(path for path in Path(str(resources.files("fewstep") / "weights")).iterdir())
QUICK = replace(GREY, steps=60, warmup_steps=10)


@pytest.fixture
def own_digits(tmp_path, monkeypatch) -> Arrays:
    """The digits as a file of one's own, for which no classifier is shipped."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    examples = Digits().train().take(600)
    np.savez(tmp_path / "own.npz", x_0=examples["x_0"].numpy(), labels=examples["labels"].numpy())
    return Arrays(path=str(tmp_path / "own.npz"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_what_is_shipped_is_small_and_says_how_it_was_made(folder):
    content = (folder / "classifier.safetensors").read_bytes()
    record = json.loads((folder / "classifier.json").read_text())
    assert len(content) < 2e6
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert record["accuracy"] >= (0.85 if folder.name == "cifar10" else 0.985)
    assert {"dataset", "training", "torch"} <= record.keys()


def test_the_shipped_digits_classifier_is_as_accurate_as_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    extractor = classifier_of(Digits(), None)
    assert features.accuracy(extractor.classifier, Digits().test().take(500)) == extractor.accuracy
    assert not (tmp_path / "cache").exists()
    flipped = Digits().test().take(500)
    flipped["x_0"] = flipped["x_0"].flip(2)
    assert features.accuracy(extractor.classifier, flipped) < 0.7


def test_the_shipped_mnist_classifier_is_as_accurate_as_it_says(mnist_files):
    extractor = classifier_of(MNIST(), mnist_files)
    assert features.accuracy(extractor.classifier, MNIST().test(mnist_files).take(10_000)) == extractor.accuracy


@pytest.fixture
def mnist_files() -> None:
    import os

    if not os.environ.get("FEWSTEP_DATA") or not (Path(os.environ["FEWSTEP_DATA"]) / "mnist").is_dir():
        pytest.skip("needs the original files of MNIST in FEWSTEP_DATA")


def test_other_images_are_trained_on_once_and_then_read_from_the_cache(own_digits, monkeypatch, tmp_path):
    calls: list[str] = []

    def counted(dataset, training, *rest):
        calls.append("trained")
        return train_classifier(dataset, QUICK, *rest)

    monkeypatch.setattr(features, "train_classifier", counted)
    first, second = classifier_of(own_digits, None), classifier_of(own_digits, None)
    assert calls == ["trained"]
    assert first.sha256 == second.sha256
    assert first.accuracy > 0.5
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}

    (weights,) = (tmp_path / "cache").rglob("classifier.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="damaged"):
        classifier_of(own_digits, None)


def test_the_training_is_a_function_of_the_data_alone():
    """Neither the global stream nor the number of threads matters, and both are left as they were."""
    few = replace(GREY, steps=3, warmup_steps=1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    a = train_classifier(Digits(), few).state_dict()
    torch.set_num_threads(2)
    torch.manual_seed(5)
    b = train_classifier(Digits(), few).state_dict()
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = train_classifier(Digits(), replace(few, lr=1e-3)).state_dict()
    assert not all(torch.equal(a[name], other[name]) for name in a)


def test_a_classifier_of_other_images_is_refused(tmp_path):
    write_classifier(Digits(), replace(GREY, steps=2, warmup_steps=1), tmp_path / "c")
    with pytest.raises(UserError, match="takes images"):
        read_classifier(MNIST(), tmp_path / "c")


def test_every_image_is_shifted_and_mirrored_by_itself():
    """With no limit but zero an image stays itself; else each is the image moved by some whole number of pixels."""
    x = torch.rand(64, 1, 6, 6, generator=generator(0))
    still = replace(GREY, shift=0)
    assert torch.equal(augment(x, still, generator(1)), x)
    mirrored = augment(x, replace(still, mirror=True), generator(1))
    turned = (mirrored == x.flip(3)).flatten(1).all(1)
    assert ((mirrored == x).flatten(1).all(1) ^ turned).all()
    assert 16 < turned.sum() < 48
    moved = augment(x, replace(GREY, shift=1), generator(1))
    inner = moved[:, :, 1:-1, 1:-1]
    matches = torch.stack(
        [
            (inner == x[:, :, 1 + down : 5 + down, 1 + right : 5 + right]).flatten(1).all(1)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
        ]
    )
    assert (matches.sum(0) == 1).all()
    assert (matches.sum(1) > 0).all()


@pytest.mark.parametrize("cls", [Classifier, ResNetClassifier])
def test_features_are_what_the_last_layer_reads(cls):
    with seeded(0):
        classifier: FeatureClassifier = cls((3, 8, 8), 10).eval()
    x = normals(5, 3, 8, 8, seed=0, dtype=torch.float32)
    found = classifier.all_features(x, block=2)
    assert found.shape == (5, 128)
    assert not found.requires_grad
    torch.testing.assert_close(classifier.last(found.relu()), classifier(x))
    assert (found < 0).any()  # before the ReLU


def test_colour_takes_the_residual_network():
    with seeded(0):
        network = ResNetClassifier((3, 32, 32), 10)
    assert COLOUR.residual
    assert not GREY.residual
    assert 4 * sum(p.numel() for p in network.parameters()) < 2e6
