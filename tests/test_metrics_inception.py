"""Inception's features: what is said where something is missing, and the network itself where torch-fidelity can be used."""

import hashlib
import sys
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import torch

from fewstep.errors import UserError
from fewstep.metrics import KernelDistance, inception_features
from fewstep.metrics.inception import NAME, SHA256, InceptionFeatures
from problems import normals


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Recorder(torch.nn.Module):
    """Keeps what it is given; its features are the means of the channels."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        return self.scale * x.float().mean((2, 3))


def test_a_missing_file_is_named_with_its_source(tmp_path):
    with pytest.raises(UserError, match=rf"no weights file .*absent.pth: download {NAME} from https://"):
        inception_features(tmp_path / "absent.pth")
    with pytest.raises(UserError, match="no weights file"):
        inception_features(str(tmp_path))


def test_other_weights_are_refused_before_they_are_loaded(tmp_path):
    """The file is a pickle: what is in it runs when it is loaded."""
    file = tmp_path / NAME
    file.write_bytes(b"other weights")
    with (
        mock.patch("torch.load", side_effect=AssertionError),
        pytest.raises(UserError, match=rf"has SHA-256 {sha256_of(file)}, expected {SHA256}"),
    ):
        inception_features(file)
    with pytest.raises(UserError, match="1 or more at a time"):
        inception_features(file, batch=0)


@pytest.mark.parametrize(
    "error", [ImportError("no torchvision"), RuntimeError("operator torchvision::nms does not exist")]
)
def test_packages_that_cannot_be_imported(tmp_path, monkeypatch, error):
    """Also a torchvision of another build, which is no ImportError."""
    file = tmp_path / NAME
    file.write_bytes(b"weights of my own")
    monkeypatch.setattr("fewstep.metrics.inception.importlib.import_module", mock.Mock(side_effect=error))
    with pytest.raises(UserError, match=rf"could not be imported \({error}\): pip install 'fewstep\[inception\]'"):
        inception_features(file, sha256=sha256_of(file))


def test_nothing_optional_is_imported_with_the_metrics():
    import subprocess

    program = "import sys, fewstep.metrics; print([m for m in ('torchmetrics', 'sklearn', 'scipy', 'ot') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_images_are_quantised_and_grey_is_repeated():
    network = Recorder()
    features = InceptionFeatures(network=network, sha256="", batch=4)
    x = normals(10, 1, 6, 6, seed=0)
    found = features(x)
    assert [len(part) for part in network.seen] == [4, 4, 2]
    seen = torch.cat(network.seen)
    assert seen.dtype == torch.uint8
    assert seen.shape == (10, 3, 6, 6)
    assert torch.equal(seen[:, :1].double(), (127.5 * (x.clamp(-1, 1) + 1)).round())
    assert (seen == seen[:, :1]).all()
    assert not found.requires_grad
    assert torch.equal(found, seen.float().mean((2, 3)))
    assert torch.equal(features(x.repeat(1, 3, 1, 1)), found)


@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 8, 8), (5, 8, 8)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(UserError, match="features are of images only"):
        InceptionFeatures(network=Recorder(), sha256="", batch=4)(normals(*shape, seed=0))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Inception with random weights, its normalisation fitted to noise, and the file of its weights."""
    try:
        extractor = import_module("torch_fidelity.feature_extractor_inceptionv3")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torch-fidelity cannot be imported: {error}")
    kind = extractor.FeatureExtractorInceptionV3
    with (
        torch.random.fork_rng(),
        mock.patch.object(extractor, "load_state_dict_from_url", return_value={}),
        mock.patch.object(kind, "load_state_dict"),
    ):
        torch.manual_seed(0)
        made = kind("inception", ["2048"])
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        made.train()(torch.randint(256, (8, 3, 75, 75), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    file = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(made.state_dict(), file)
    yield made.eval(), file
    file.unlink()


def test_the_features_are_those_of_the_network(network):
    """To 2048 numbers, whatever the batch; and a distance comes out."""
    made, file = network
    features = inception_features(file, sha256=sha256_of(file), batch=3)
    assert features.sha256 == sha256_of(file)
    x = normals(8, 1, 28, 28, seed=0, dtype=torch.float32)
    found = features(x)
    assert found.shape == (8, 2048)
    quantised = (127.5 * (x.clamp(-1, 1) + 1)).round().byte().repeat(1, 3, 1, 1)
    expected = made(quantised)[0]
    assert expected.std() > 1e-3
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert (made(255 - quantised)[0] - expected).norm() > 1e-2 * expected.norm()
    distance = KernelDistance(features=features)
    assert distance(x, x.flip(0))["kid"] < distance(x, 0.3 * x)["kid"]


def test_weights_of_another_network(network, tmp_path):
    file = tmp_path / "other.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), file)
    with pytest.raises(UserError, match="no weights of this network"):
        inception_features(file, sha256=sha256_of(file))
