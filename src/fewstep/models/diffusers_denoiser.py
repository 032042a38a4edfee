"""A pretrained diffusion model of the diffusers library as a posterior model: a point mass at its predicted clean data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.files import parse_json
from fewstep.models.base import PosteriorModel
from fewstep.posterior import DiracPosterior
from fewstep.schedule import Schedule, Times
from fewstep.shapes import per_item

SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")  # trained as DDPM is


@dataclass(frozen=True)
class TabulatedSchedule(Schedule):
    """A diffusion given step by step: `alpha^2 = alphas_cumprod[i]` at `tau = (i + 1) / T`, `log alpha` linear in between.

    Raises `UserError` unless `1 > alphas_cumprod[0] > alphas_cumprod[1] > ... > 0`.
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        values = np.asarray((1.0, *self.alphas_cumprod))
        if len(values) < 2 or not (np.diff(values) < 0).all() or values[-1] <= 0:
            raise UserError(
                "alphas_cumprod decrease strictly, below 1 and above 0 (a terminal signal of 0 has no log-SNR)"
            )

    def _knots(self, like: Tensor) -> tuple[Tensor, Tensor]:
        values = torch.tensor((1.0, *self.alphas_cumprod), dtype=torch.float64, device=like.device)
        return torch.linspace(0, 1, len(values), dtype=torch.float64, device=like.device), 0.5 * values.log()

    def log_alpha(self, tau: Times) -> Times:
        times, values = self._knots(tau)
        return _interpolate(tau.double(), times, values).to(tau.dtype)

    def beta(self, tau: Times | float) -> Times:
        tau = torch.as_tensor(tau)
        times, values = self._knots(tau)
        step = (tau.double() * (len(times) - 1)).ceil().long().clamp(1, len(times) - 1)
        return (-2 * (values[step] - values[step - 1]) * (len(times) - 1)).to(tau.dtype)

    def tau_at(self, log_snr: Times) -> Times:
        times, values = self._knots(log_snr)
        log_alpha = (
            -0.5 * torch.logaddexp(torch.zeros_like(log_snr), -log_snr).double()
        )  # log(1 + 1/SNR) = -2 log alpha
        return _interpolate(-log_alpha, -values, times).to(log_snr.dtype)


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Linear between increasing knots, constant outside."""
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    share = ((x - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0, 1)
    return values[right - 1] + share * (values[right] - values[right - 1])


class DiffusersDenoiser(PosteriorModel):
    """`model(x_tau, tau)` is a point mass at `E[x_0 | x_tau]` by a `UNet2DModel`, `x_tau` in the VP scaling of its training.

    `prediction` says what its output is: `epsilon`, `sample` or `v_prediction` (Salimans and Ho 2022, arXiv 2202.00512).
    The network is asked at the step `T tau - 1`, between steps too, and at step 0 below it.
    """

    schedule: TabulatedSchedule

    def __init__(
        self, network: nn.Module, alphas_cumprod: tuple[float, ...], prediction: str, item_shape: tuple[int, ...]
    ):
        if prediction not in ("epsilon", "sample", "v_prediction"):
            raise UserError(f"the network predicts {prediction!r}: epsilon, sample and v_prediction are known")
        super().__init__(TabulatedSchedule(tuple(alphas_cumprod)), item_shape)
        self.network, self.prediction = network, prediction

    @property
    def evaluated(self) -> nn.Module:
        return self.network

    def forward(self, x_tau: Tensor, tau: Tensor | float) -> DiracPosterior:
        tau = self.times(x_tau, tau)
        steps = len(self.schedule.alphas_cumprod)
        out = self.network(x_tau, (steps * tau - 1).clamp_min(0), return_dict=False)[0]
        alpha, sigma = per_item(self.schedule.alpha(tau), x_tau), per_item(self.schedule.sigma(tau), x_tau)
        if self.prediction == "epsilon":
            return DiracPosterior((x_tau - sigma * out) / alpha)
        return DiracPosterior(out if self.prediction == "sample" else alpha * x_tau - sigma * out)


def load_diffusers(folder: str | Path) -> DiffusersDenoiser:
    """An unconditional DDPM as diffusers saves it (`unet/` and `scheduler/scheduler_config.json`), in eval mode; no download.

    Raises `UserError` where a part is missing, the scheduler is of another kind than those whose training is DDPM's, the
    diffusion ends in no signal at all, or the network is conditional or predicts more than the noise (a variance).
    """
    from diffusers import DDPMScheduler, UNet2DModel

    folder = Path(folder)
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    if not scheduler_file.exists() or not (folder / "unet").is_dir():
        raise UserError(f"{folder} holds no unet/ and scheduler/: give the folder of a diffusers DDPM pipeline")
    config = parse_json(scheduler_file.read_bytes(), scheduler_file)
    if config.get("_class_name") not in SCHEDULERS:
        raise UserError(
            f"{scheduler_file}: a {config.get('_class_name')}, expected one of {', '.join(SCHEDULERS)}: its diffusion is "
            "no table of alphas_cumprod that we know"
        )
    scheduler: Any = DDPMScheduler.from_config(config)
    network: Any = UNet2DModel.from_pretrained(folder / "unet", local_files_only=True)
    if network.config.class_embed_type is not None or network.config.num_class_embeds is not None:
        raise UserError(f"{folder}: the network wants class labels: take an unconditional one")
    if network.config.out_channels != network.config.in_channels:
        raise UserError(
            f"{folder}: the network maps {network.config.in_channels} channels to {network.config.out_channels}, as many "
            "expected: a learned variance or a concatenated condition is not supported"
        )
    size = network.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (network.config.in_channels, height, width)
    model = DiffusersDenoiser(
        network, tuple(scheduler.alphas_cumprod.tolist()), scheduler.config.prediction_type, shape
    )
    return model.eval().requires_grad_(False)
