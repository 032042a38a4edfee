"""Another sampler with the posterior's mean in place of its draws: DDPM and DDIM on every posterior model."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.draws import Source
from fewstep.errors import UserError
from fewstep.models.base import PosteriorModel
from fewstep.models.mean_only import MeanOnly
from fewstep.samplers.ancestral import Ancestral
from fewstep.samplers.base import Sampler, check_model


@dataclass(frozen=True, kw_only=True)
class OfMeans(Sampler):
    """`sampler` on `MeanOnly(model)`: with `Ancestral()` it is DDPM, with `Ancestral(kernel=1.0)` DDIM.

    A mean that is estimated (by `u(z, 1, 1)` of a Mean Flow of the posterior) takes `draws` >= 1 evaluations. A denoiser
    knows nothing but means, so that here nothing changes. Sources: Ho et al. 2020 (arXiv 2006.11239, Algorithm 2), Song
    et al. 2021 (arXiv 2010.02502, eq. 12).
    """

    draws_from = PosteriorModel

    sampler: Sampler = Ancestral()
    draws: int = 1

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UserError(f"a mean is estimated from at least 1 draw, not {self.draws}")
        if vars(self.sampler).get("flow_steps", 1) != 1:
            raise UserError("a mean takes no flow steps: leave flow_steps of the sampler inside at 1")
        if self.sampler.draws_from is not PosteriorModel:
            raise UserError(f"{type(self.sampler).__name__} draws from no posterior: there is no mean to give it")

    @property
    def nfe(self) -> int:
        return self.sampler.nfe * self.draws

    def __call__(self, model: PosteriorModel, noise: Tensor, generator: Source = None) -> Tensor:
        check_model(self, model)
        return self.sampler(MeanOnly(model, self.draws), noise, generator)
