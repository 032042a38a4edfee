"""The features of the Frechet inception distance: 2048 activations of the network that it was defined with.

The network and its resize to 299 x 299 are torch-fidelity's (bilinear without antialiasing, as in TensorFlow 1, where
the distance comes from), reached through torchmetrics; both are optional, and nothing is downloaded.
"""

import hashlib
import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.pictures import to_uint8

NAME = "weights-inception-2015-12-05-6726825d.pth"
SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
CHANNELS = (1, 3)


@dataclass(frozen=True, kw_only=True)
class InceptionFeatures:
    """Images `(n, 1 or 3, height, width)` in [-1, 1] to features `(n, 2048)`, `batch` images at a time.

    Images are rounded to the 256 levels of a byte first, `round(127.5 (x + 1))`, what lies outside is cut off, and grey
    is repeated to three channels. `sha256` is the weights' hash: compare distances only where it agrees. Raises
    `UserError` for anything but images.
    """

    network: nn.Module
    sha256: str
    batch: int

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in CHANNELS:
            raise UserError(
                f"items of shape {tuple(images.shape[1:])}, expected images (1 or 3, height, width) in [-1, 1]: "
                "Inception's features are of images only"
            )
        device = next(self.network.parameters()).device
        parts = [to_uint8(part).expand(-1, 3, -1, -1).to(device) for part in images.split(self.batch)]
        return torch.cat([self.network(part).to(images.device) for part in parts])


def inception_features(
    weights: str | Path, *, sha256: str = SHA256, batch: int = 64, device: str = "cpu"
) -> InceptionFeatures:
    """The features with the weights of this file: `FrechetDistance(features=inception_features(path))`.

    Raises `UserError` where the file is missing or its hash is not `sha256` (the file is a pickle: loading it runs what
    is in it), where it holds no weights of this network, and where torchmetrics or torch-fidelity cannot be imported.
    """
    weights = Path(weights)
    if batch < 1:
        raise UserError(f"images are taken 1 or more at a time, not batch = {batch}")
    if not weights.is_file():
        raise UserError(f"no weights file {weights}: download {NAME} from {SOURCE} and give its path")
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != sha256:
        raise UserError(
            f"{weights} has SHA-256 {found}, expected {sha256}: download {NAME} from {SOURCE}; for weights of your own, "
            "which run what is in them, give their hash as sha256"
        )
    try:
        importlib.import_module("torch_fidelity")
        from torchmetrics.image.fid import FrechetInceptionDistance
    except (ImportError, RuntimeError) as error:  # torchvision next to another build of torch is a RuntimeError
        raise UserError(
            f"Inception's features need torchmetrics and torch-fidelity, which could not be imported ({error}): "
            "pip install 'fewstep[inception]', with a torchvision from the same index as torch (docs/metrics.md)"
        ) from error
    try:
        distance = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(weights), antialias=False)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{weights} holds no weights of this network: give {NAME} from {SOURCE}") from error
    return InceptionFeatures(network=distance.inception.to(device), sha256=found, batch=batch)
