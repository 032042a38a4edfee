"""A masked autoencoder of a data set: trained where it is first needed, and kept."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from fewstep.configuration import to_config
from fewstep.datasets.base import Dataset
from fewstep.datasets.digits import Digits
from fewstep.encoders.base import Encoder, MapsModule
from fewstep.errors import UserError
from fewstep.files import CHECKSUMS, cache_folder, read_checked, write_folder
from fewstep.networks.masked_autoencoder import MaskedAutoencoder
from fewstep.pretrained import tensor_bytes
from fewstep.processes import first_process_first, one_thread
from fewstep.progress import Meter

WEIGHTS, RECORD = "encoder.safetensors", "encoder.json"


class _Maps(MapsModule):
    def __init__(self, network: MaskedAutoencoder):
        super().__init__()
        self.network = network

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.network.maps(x)


@dataclass(frozen=True, kw_only=True)
class Masked(Encoder):
    """A residual network that fills in hidden patches of 2 x 2 pixels of a data set's images, without labels.

    AdamW with a cosine to 0 over `steps` of `batch_size` images, from `seed`: on a GPU where there is one, else in one thread,
    with the same bits each time. It is kept in the cache (FEWSTEP_CACHE, else ~/.cache/fewstep) by what it was trained on and
    how, with checksums; of several processes the first trains it.
    Source: the ResNet-MAE of arXiv 2602.04770, appendix A.4, at a size for two cores. `UserError` for data without images.
    """

    dataset: Dataset = Digits()
    width: int = 32
    blocks: tuple[int, ...] = (2, 2, 2)
    steps: int = 1500
    batch_size: int = 64
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.width, self.steps, self.batch_size, *self.blocks) < 1 or not self.lr > 0 or self.width % 8:
            raise UserError(
                f"an encoder has a width that 8 divides, and blocks, steps, batch size and lr above 0: not {self}"
            )

    def build(self, item_shape: tuple[int, ...], data: Path | None = None) -> MapsModule:
        if len(item_shape) != 3 or tuple(item_shape) != self.dataset.item_shape:
            raise UserError(f"the encoder is of images {self.dataset.item_shape}, the items are {tuple(item_shape)}: name the "
                            "data set of the items (--objective.encoder.dataset), images with channels first")  # fmt: skip
        folder = cache_folder() / "encoders" / f"{type(self.dataset).__name__.lower()}-{self.key(data)}"
        with first_process_first():
            if not (folder / CHECKSUMS).exists():
                self._make(folder, item_shape, data)
        network = MaskedAutoencoder(item_shape, self.width, self.blocks)
        network.load_state_dict(safetensors.torch.load(read_checked(folder, WEIGHTS)))
        return _Maps(network).eval().requires_grad_(False)

    def _make(self, folder: Path, item_shape: tuple[int, ...], data: Path | None) -> None:
        network = self.train(data).cpu()
        record = {"encoder": to_config(self), "item_shape": list(item_shape), "torch": torch.__version__}
        files = {WEIGHTS: tensor_bytes(network.state_dict()), RECORD: json.dumps(record, indent=1).encode()}
        try:
            write_folder(folder, files)
        except OSError:  # another run was first, or there is no room
            if not (folder / CHECKSUMS).exists():
                raise

    def key(self, data: Path | None = None) -> str:
        """What tells apart encoders that were trained on other images or in another way."""
        first = self.dataset.train(data).up_to(1000)["x_0"].numpy().tobytes()
        return hashlib.sha256(repr((to_config(self), torch.__version__)).encode() + first).hexdigest()[:12]

    def train(self, data: Path | None = None, quiet: bool = False) -> MaskedAutoencoder:
        """The trained network: on a GPU where there is one, else in one thread."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = MaskedAutoencoder(self.dataset.item_shape, self.width, self.blocks).to(device)
        examples, generator = self.dataset.train(data), torch.Generator().manual_seed(self.seed)
        optimiser = torch.optim.AdamW(network.parameters(), lr=self.lr, betas=(0.9, 0.95), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        with one_thread(), Meter("masked autoencoder for the drifting field", self.steps, quiet=quiet) as meter:
            for step in range(self.steps):
                x_0 = examples.batch(self.batch_size, generator)["x_0"].to(device)
                loss = network.loss(x_0, generator).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
                meter.update(step + 1, f"loss {loss.item():.3g}")
        return network
