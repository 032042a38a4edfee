"""A model of the diffusers library as a teacher: its predicted clean data, its schedule, and what is refused."""

import json

import pytest
import torch
from torch.testing import assert_close

from fewstep.errors import UserError
from fewstep.models import DiffusersDenoiser, PosteriorFlow, load_diffusers
from fewstep.models.diffusers_denoiser import TabulatedSchedule
from fewstep.objectives import Distillation
from fewstep.scaling import GaussianScaling
from fewstep.training.loop import LossModule
from problems import SCHEDULE, TINY_MLP, TINY_UNET, doubles, generator, gradients, normals, randomise, seeded


def pipeline(folder, prediction="epsilon", **options):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with seeded(0):
        unet = UNet2DModel(
            sample_size=8, in_channels=1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
            block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **{"out_channels": 1, **options},
        )  # fmt: skip
    scheduler = DDPMScheduler(100, 1e-3, 0.2, prediction_type=prediction, clip_sample=False)
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return unet.eval(), scheduler


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_its_mean_is_what_diffusers_predicts(tmp_path, prediction):
    """At the steps of the scheduler, to rounding; a neighbouring step gives another."""
    unet, scheduler = pipeline(tmp_path, prediction)
    model = load_diffusers(tmp_path)
    x = normals(2, 1, 8, 8, seed=0, dtype=torch.float32)
    for step in (0, 37, 99):
        with torch.no_grad():
            out = unet(x, step).sample
            expected = scheduler.step(out, step, x).pred_original_sample
        mean = model(x, (step + 1) / 100).mean()
        assert_close(mean, expected, rtol=1e-4, atol=1e-4)
        assert (model(x, min(1.0, (step + 2) / 100 if step < 99 else 0.99)).mean() - mean).abs().amax() > 1e-4


def test_the_schedule_goes_there_and_back():
    """alpha at the steps, the inverse of log-SNR, and beta as the slope of log alpha."""
    table = tuple(torch.linspace(0.99, 0.02, 50, dtype=torch.float64).tolist())
    schedule = TabulatedSchedule(table)
    steps = torch.arange(1, 51).double() / 50
    assert_close(schedule.alpha(steps) ** 2, doubles(*table))
    tau = torch.linspace(0.03, 1, 33, dtype=torch.float64)
    assert_close(schedule.tau_at(schedule.log_snr(tau)), tau)
    inside = doubles(0.113, 0.487, 0.951).requires_grad_()
    (slope,) = torch.autograd.grad(schedule.log_alpha(inside).sum(), inside)
    assert_close(schedule.beta(inside.detach()), -2 * slope)
    for wrong in ((), (0.5, 0.5), (0.9, 0.0), (1.0, 0.5), (0.5, 0.9)):
        with pytest.raises(UserError, match="alphas_cumprod"):
            TabulatedSchedule(wrong)


def test_it_teaches(tmp_path):
    """The folder of a pipeline is a teacher of images: a gradient for every weight of the pupil; of other items it is none."""
    pipeline(tmp_path)
    with seeded(0):
        network = randomise(TINY_UNET.build((1, 8, 8), inputs=2, times=3))
        points = randomise(TINY_MLP.build((3,), inputs=2, times=3))
    pupil = PosteriorFlow(network, SCHEDULE, GaussianScaling(), (1, 8, 8))
    losses = LossModule(pupil, Distillation(teacher=str(tmp_path), adaptive_power=0.0))
    per_sample, *_ = losses({"x_0": normals(4, 1, 8, 8, seed=0, dtype=torch.float32)}, generator(0))
    per_sample.mean().backward()
    assert gradients(network).isfinite().all()
    assert gradients(network).norm() > 0
    other = PosteriorFlow(points, SCHEDULE, GaussianScaling(), (3,))
    with pytest.raises(UserError, match="items of shape"):
        LossModule(other, Distillation(teacher=str(tmp_path)))({"x_0": normals(2, 3, seed=0).float()}, generator(0))


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_scheduler_of_another_diffusion_is_refused(tmp_path):
    pipeline(tmp_path)
    changed(tmp_path / "scheduler" / "scheduler_config.json", _class_name="ScoreSdeVeScheduler")
    with pytest.raises(UserError, match="a ScoreSdeVeScheduler, expected one of DDPMScheduler"):
        load_diffusers(tmp_path)


def test_a_scheduler_of_the_same_diffusion_is_not(tmp_path):
    pipeline(tmp_path)
    before = load_diffusers(tmp_path).schedule
    changed(tmp_path / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler")
    assert load_diffusers(tmp_path).schedule == before


@pytest.mark.parametrize(
    ("options", "says"),
    [({"out_channels": 2}, "1 channels to 2"), ({"num_class_embeds": 3}, "class labels")],
    ids=["learned variance", "labels"],
)
def test_a_network_of_another_kind_is_refused(tmp_path, options, says):
    pipeline(tmp_path, **options)
    with pytest.raises(UserError, match=says):
        load_diffusers(tmp_path)


def test_what_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(UserError, match="no unet/ and scheduler/"):
        load_diffusers(tmp_path)
    with pytest.raises(UserError, match="epsilon, sample and v_prediction"):
        DiffusersDenoiser(torch.nn.Identity(), (0.9, 0.5), "score", (1,))
