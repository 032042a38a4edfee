"""`fewstep restore`: objects from text, the files, the numbers, and what a user is told."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep import inverse, operators
from fewstep.cli import main
from fewstep.cli._expression import build, concrete
from fewstep.cli.restore import METHODS, OPERATORS, _picture_name
from fewstep.draws import item_generators
from fewstep.errors import UserError
from fewstep.inverse import DecoupledSIR, NestedSMC, SplitGibbs
from fewstep.metrics import CRPS
from fewstep.models import MixturePosterior
from fewstep.networks import MLPConfig
from fewstep.operators import Gaussian, HDRClip, Inpainting, Matrix, RandomMask
from fewstep.recipes import find_recipe
from fewstep.restoration import covered, interval, measure, numbers, picture, restore, ssim
from fewstep.restoration_benchmark import class_log_score
from fewstep.training import train
from problems import SCHEDULE, doubles, generator, t2
from stats import accepts, rejects, share
from test_training import options

pytestmark = pytest.mark.filterwarnings("ignore::fewstep.inverse.DegeneracyWarning")

CLASSES = concrete(operators)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A digits model after two steps: the path is real, the pictures are noise."""
    recipe = find_recipe("digits-stmd")
    recipe = replace(recipe, model=replace(recipe.model, network=MLPConfig(width=16, depth=1)), steps=2, batch_size=8)
    folder = tmp_path_factory.mktemp("restore") / "run"
    train(recipe, options(folder))
    return folder


def status(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def test_objects_are_built_from_text():
    found = build(
        "Inpainting(mask=RandomMask(missing=0.8, seed=3))", CLASSES, OPERATORS, "--operator", {"item_shape": (1, 8, 8)}
    )
    assert found == Inpainting(item_shape=(1, 8, 8), mask=RandomMask(missing=0.8, seed=3))
    matrix = "Matrix(matrix=((1.0, 0.5), (0.0, 2.0)))"
    assert build(matrix, CLASSES, OPERATORS, "--operator", {"item_shape": (2,)}).y_shape == (2,)
    assert build("hdr", CLASSES, OPERATORS, "--operator", {"item_shape": (4,)}) == HDRClip(item_shape=(4,), gain=2.0)
    assert build("HDRClip", CLASSES, OPERATORS, "--operator", {"item_shape": (4,)}) == HDRClip(item_shape=(4,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sharpen", "called 'sharpen'"),
        ("a b", "one of inpaint-half"),
        ("3", "one of inpaint-half"),
        ("Sharpen()", "called 'Sharpen'"),
        ("AveragePool(2)", "takes its arguments by name: factor"),
        ("AveragePool(size=2)", "takes no size here: it takes factor"),
        ("AveragePool(item_shape=(1, 2, 2))", "takes no item_shape here"),
        ("AveragePool(factor=__import__('os'))", "nothing is called '__import__'"),
        ("AveragePool(factor=[x for x in (1, 2)])", "neither a number"),
        ("AveragePool(factor=factor)", "neither a number"),
        ("Mask", "called 'Mask'"),
        ("Noise()", "called 'Noise'"),
        ("TensorMask()", "cannot be made of this"),
        ("Matrix(matrix=((1, 2), (3,)))", "takes numbers, such as"),
    ],
)
def test_text_that_names_nothing_is_told(text, says):
    with pytest.raises(UserError, match="--operator") as error:
        build(text, CLASSES, OPERATORS, "--operator", {"item_shape": (1, 8, 8)})
    assert says in str(error.value)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_named_operator_works(name):
    shape = (3, 8, 8) if name == "grey" else (1, 8, 8)
    operator = build(name, CLASSES, OPERATORS, "--operator", {"item_shape": shape})
    assert operator.A(torch.zeros(2, *shape)).shape == (2, *operator.y_shape)


@pytest.mark.filterwarnings("ignore::fewstep.inverse.DegeneracyWarning")
@pytest.mark.parametrize("name", METHODS)
def test_every_named_method_restores(run, tmp_path, capsys, name):
    flags = ["--method", name, "--operator", "super-resolution", "--items", 2, "--n", 3]
    small = {"sir": "DecoupledSIR(levels=2, draws=4)", "smc": "NestedSMC(steps=2, draws=2)", "dps": "DPS(steps=3)"}
    flags[1] = small.get(name, name)
    assert status("restore", run, *flags, "--out", tmp_path) == 0
    assert "PSNR" in capsys.readouterr().out
    result = json.loads((tmp_path / "restoration.json").read_text())
    assert (result["problems"], result["n"], result["sigma"]) == (2, 3, 0.1)
    assert result["nfe"] > 0
    assert all(np.isfinite(result[key]) for key in ("psnr", "crps", "energy_score", "spread_skill", "misfit", "ess"))
    arrays = np.load(tmp_path / "restoration.npz")
    assert arrays["samples"].shape == (3, 2, 1, 8, 8)
    assert arrays["y"].shape == (2, 1, 4, 4)
    assert (arrays["low"] <= arrays["high"]).all()
    assert arrays["x_0"].shape == arrays["mean"].shape == arrays["std"].shape == (2, 1, 8, 8)
    assert Image.open(tmp_path / "restoration.png").size[0] >= 560


@pytest.mark.filterwarnings("ignore::fewstep.inverse.DegeneracyWarning")
def test_a_benchmark_is_a_table(run, tmp_path, capsys):
    """Tasks by methods by noises; what a method cannot take is told in its row, and the others go on."""
    flags = [
        "--benchmark",
        "--items",
        3,
        "--n",
        3,
        "--operator",
        "inpaint-half",
        "hdr",
        "--sigma",
        0.1,
        0.0,
        "--out",
        tmp_path,
    ]
    assert status("restore", run, *flags, "--method", "null-space", "SplitGibbs(anneal=1, steps=1)") == 0
    printed = capsys.readouterr().out
    assert "restorations of held-out items: 3 problems, 3 samples each" in printed
    rows = json.loads((tmp_path / "restoration-benchmark.json").read_text())["rows"]
    assert len(rows) == 8
    refused = {(row["task"], row["sigma"], row["method"]) for row in rows if "refused" in row}
    gibbs = "SplitGibbs(anneal=1, steps=1)"
    assert refused == {("hdr", s, m) for s in (0.1, 0.0) for m in ("null-space", gibbs)} | {
        ("inpaint-half", 0.0, gibbs)
    }
    assert "needs a linear operator" in printed
    pictures = [tmp_path / f"inpaint-half-sigma-{sigma}.png" for sigma in ("0.1", "0")]
    assert sorted(tmp_path.glob("*.png")) == sorted(pictures)  # no picture of a task that every method refused
    both, alone = (Image.open(path).size for path in pictures)  # without noise split Gibbs refuses: one row less
    assert both[0] == alone[0]
    assert both[1] > 1.5 * alone[1]
    for row in rows:
        if "refused" not in row:
            low, high = row["coverage_90_interval"]
            assert low <= row["coverage_90"] <= high
            assert row["class_log_score"] < 0
    assert status("restore", run, "--operator", "blur", "hdr") == 1
    assert "add --benchmark" in capsys.readouterr().err
    assert status("restore", run, "--benchmark", "--method", "magic") == 1
    assert "called 'magic'" in capsys.readouterr().err


def test_coverage_looks_at_what_was_not_seen_and_varies():
    """Of two components one is given: the other's coverage alone counts; rounded draws of equal images have uniform ranks."""
    truth, draws = torch.randn(600, 2, generator=generator(0)), torch.randn(31, 600, 2, generator=generator(1))
    draws[..., 0] = truth[:, 0] + 1e-3
    found = covered(draws, truth, torch.tensor([False, True]), None)
    assert abs(found["coverage_90"] - 0.9) < 0.03
    assert found["coverage_90_interval"][0] < 0.9 < found["coverage_90_interval"][1] + 0.02
    narrow = covered(0.6 * draws, truth, torch.tensor([False, True]), None)
    assert narrow["coverage_90_interval"][1] < 0.8
    assert covered(draws, truth, torch.tensor([False, False]), None)["coverage_90"] is None
    flat = torch.full((600, 2), -1.0)
    jittered = flat + 0.02 * torch.rand(31, 600, 2, generator=generator(2))
    assert abs(covered(jittered, flat, torch.tensor([True, True]), 1 / 8)["coverage_90"] - 0.9) < 0.02
    assert covered(jittered, flat, torch.tensor([True, True]), None)["coverage_90"] < 0.1


def test_pictures_of_different_tasks_have_different_names():
    """Though their calls are long and differ in signs or at their ends."""
    long = "Inpainting(mask=TensorMask(observed=(" + "True, " * 40
    names: list[str] = []
    for task in ("blur", "Blur()", f"{long}True)))", f"{long}False)))"):
        names.append(_picture_name(task, 0.1, names))
    assert names[:2] == ["blur-sigma-0.1.png", "blur-sigma-0.1-2.png"]
    assert len(set(names)) == 4
    assert max(len(name) for name in names) < 120


def test_structural_similarity_by_hand():
    """Constant images have no structure: `(2 a b + c) / (a^2 + b^2 + c)` in [0, 1], c = 1e-4; noise is unlike, the truth is 1."""
    dark, light = torch.full((2, 1, 12, 12), -0.2), torch.full((2, 1, 12, 12), 0.6)
    a, b = 0.4, 0.8
    assert ssim(dark, light) == pytest.approx((2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4), rel=1e-5)
    truth = torch.rand(3, 1, 28, 28, generator=generator(0)) * 2 - 1
    noise = 0.3 * torch.randn(3, 1, 28, 28, generator=generator(1))
    assert ssim(truth, truth) == pytest.approx(1)
    assert ssim(truth + 2 * noise, truth) < ssim(truth + noise, truth) < 0.95


def test_the_class_score_is_the_log_of_the_mean_probability():
    def classifier(x):
        return torch.stack([x[:, 0], torch.zeros(len(x))], dim=1)

    draws = torch.tensor([[[0.0], [2.0]], [[1.0], [-2.0]]])  # two draws of two problems
    p = torch.sigmoid(draws[..., 0]).mean(0)
    expected = (p[0].log() + (1 - p[1]).log()) / 2
    assert class_log_score(classifier, draws, torch.tensor([0, 1])) == pytest.approx(expected.item(), rel=1e-5)


def test_a_picture_is_measured_or_is_the_measurement(run, tmp_path):
    whole, small = tmp_path / "whole.png", tmp_path / "small.png"
    pixels = (torch.rand(8, 8, generator=generator(0)) * 255).byte().numpy()
    Image.fromarray(pixels).save(whole)
    Image.fromarray(pixels[:4, :4]).save(small)
    common = ["--operator", "super-resolution", "--method", "split-gibbs", "--n", 2, "--out", tmp_path]
    assert status("restore", run, "--image", whole, *common) == 0
    result = json.loads((tmp_path / "restoration.json").read_text())
    assert result["problems"] == 1
    assert "psnr" in result
    assert np.abs(np.load(tmp_path / "restoration.npz")["x_0"][0, 0] - (pixels / 127.5 - 1)).max() < 1e-6
    assert status("restore", run, "--image", small, "--observed", *common) == 0
    assert "psnr" not in json.loads((tmp_path / "restoration.json").read_text())
    assert np.abs(np.load(tmp_path / "restoration.npz")["y"][0, 0] - (pixels[:4, :4] / 127.5 - 1)).max() < 1e-6


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--sigma", "-1"], "not negative"),
        (["--items", "0"], "from 1 up"),
        (["--n", "1"], "2 samples or more"),
        (["--observed"], "give a picture"),
        (["--image", "nothing.png"], "does not exist"),
        (["--operator", "sharpen"], "is one of inpaint-half, inpaint-box"),
        (["--method", "PCN"], "is one of sir, sir-pcn, split-gibbs"),
        (["--method", "split-gibbs", "--sigma", "0"], "Gaussian noise"),
        (["--method", "sir", "--sigma", "0"], "no likelihood"),
        (["--method", "null-space", "--operator", "hdr"], "needs a linear operator"),
        (["--operator", "grey"], "channels"),
    ],
)
def test_mistakes_are_one_line(run, capsys, flags, says):
    assert status("restore", run, *flags) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("fewstep: error: ")
    assert says in error


def test_a_picture_of_another_size_and_no_picture_are_told(run, tmp_path, capsys):
    Image.new("L", (9, 8)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no picture")
    assert status("restore", run, "--image", tmp_path / "large.png") == 1
    assert "8 x 9 pixels, 8 x 8 expected" in capsys.readouterr().err
    assert status("restore", run, "--image", tmp_path / "text.png") == 1
    assert "not a picture" in capsys.readouterr().err
    (tmp_path / "cut.png").write_bytes((tmp_path / "large.png").read_bytes()[:45])
    assert status("restore", run, "--image", tmp_path / "cut.png") == 1
    assert "a whole picture expected" in capsys.readouterr().err


def test_a_picture_of_16_bits_is_not_clipped(run, tmp_path):
    levels = torch.arange(64).reshape(8, 8) * 1000
    Image.fromarray(levels.numpy().astype(np.uint16)).save(tmp_path / "deep.png")
    flags = ["--operator", "blur", "--method", "split-gibbs", "--n", 2, "--out", tmp_path]
    assert status("restore", run, "--image", tmp_path / "deep.png", *flags) == 0
    found = np.load(tmp_path / "restoration.npz")["x_0"][0, 0]
    assert np.abs(found - (levels.numpy() / 65535 * 2 - 1)).max() < 0.01


def test_the_numbers_are_those_of_the_known_posterior():
    """T2, exact model: draws of SIR are calibrated; narrowed ones are not, and score worse."""
    A, noise = Matrix(item_shape=(2,), matrix=doubles(1.0, 0.5)[None]), Gaussian(sigma=0.5)
    truth = t2().sample((300,), generator(0))
    y = noise.sample(A.A(truth), generator(1))
    model = MixturePosterior(t2(), SCHEDULE)
    found = restore(model, A, DecoupledSIR(noise=noise, max_batch=10**6), y, 31)
    result = numbers(found, A, truth)
    every = torch.tensor([True, True])
    assert abs(covered(found.draws, truth, every)["coverage_90"] - 0.9) < 0.03
    assert 0.93 < result["spread_skill"] < 1.07
    assert result["crps"] == pytest.approx(CRPS()(found.draws, truth)["crps"])
    error = (found.found.mean - truth).square().mean(1)
    assert result["psnr"] == pytest.approx((10 * (4 / error).log10()).mean().item())
    assert result["misfit"] == pytest.approx(
        (y - A.A(found.draws.flatten(0, 1)).reshape(31, 300, 1)).square().mean().sqrt().item()
    )
    narrow = replace(found, draws=found.draws.mean(0) + 0.6 * (found.draws - found.draws.mean(0)))
    worse = numbers(narrow, A, truth)
    assert covered(narrow.draws, truth, every)["coverage_90"] < 0.8
    assert worse["crps"] > result["crps"]


@pytest.mark.parametrize("k", [3, 16, 31])
def test_the_interval_holds_a_further_draw_as_often_as_it_says(k):
    """90 % from 19 draws on, (k - 1) / (k + 1) below; the usual sample quantiles, a wrong twin, hold it less often."""
    draws, more = torch.randn(k, 20000, generator=generator(0)), torch.randn(20000, generator=generator(1))
    low, high, level = interval(draws)
    assert level == pytest.approx(min(0.9, (k - 1) / (k + 1)))
    assert accepts(share((low <= more) & (more <= high), level))
    ends = draws.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2]), dim=0)
    assert rejects(share((ends[0] <= more) & (more <= ends[1]), level))


def test_the_noise_of_a_measurement_is_not_that_of_its_restoration():
    """With one seed: else the samples would know the noise."""
    mask = operators.TensorMask(observed=torch.tensor([True, True]))
    whole, noise, x_0 = Inpainting(item_shape=(2,), mask=mask), Gaussian(sigma=1.0), torch.zeros(4, 2).double()
    y = measure(whole, noise, x_0, 7)
    assert torch.equal(y, measure(whole, noise, x_0, 7))
    assert torch.equal(y[:2], measure(whole, noise, x_0[:2], 7))
    starts = torch.stack([torch.randn(2, generator=g, dtype=torch.float64) for g in item_generators(4, 7)])
    assert (starts - y).abs().min() > 1e-3


def test_weights_count():
    """Samples of SMC carry weights: the mean and the draws follow them."""
    A, noise = Matrix(item_shape=(2,), matrix=doubles(1.0, 0.5)[None]), Gaussian(sigma=0.5)
    found = restore(
        MixturePosterior(t2(), SCHEDULE),
        A,
        NestedSMC(noise=noise, resample=0.0, prior_variance=3.0),
        doubles(0.5)[None],
        500,
    )
    heaviest = found.found.x[found.found.log_w.argmax(0)[0], 0]
    copies = (found.draws[:, 0] == heaviest).all(1).sum().item()
    assert copies == pytest.approx(500 * found.found.log_w.max().exp().item(), abs=1)
    assert numbers(found, A)["log_z"][0] == pytest.approx(-3.57, abs=0.5)


def test_seeds_of_problems():
    """Problem i is restored the same whatever the others are."""
    A, noise = Matrix(item_shape=(2,), matrix=doubles(1.0, 0.5)[None]), Gaussian(sigma=0.5)
    model, y = MixturePosterior(t2(), SCHEDULE), doubles(0.5, -1.0, 2.0)[:, None]
    method = SplitGibbs(noise=noise, anneal=3, steps=3)
    assert torch.allclose(restore(model, A, method, y, 4).draws[:, :2], restore(model, A, method, y[:2], 4).draws)


def test_what_is_seen_of_a_measurement():
    """Through the inverse where A is linear: what was not observed is grey."""
    model = find_recipe("digits-stmd").model.build((1, 8, 8)).eval()
    mask = Inpainting(item_shape=(1, 8, 8), mask=operators.HalfMask(side="bottom"))
    y = torch.ones(1, 1, 8, 8)
    found = restore(model, mask, inverse.NullSpace(noise=Gaussian(sigma=0.1), steps=1), y, 2)
    shown = np.asarray(Image.open(io.BytesIO(picture(found, mask))))
    side = shown.shape[0]
    assert shown[side // 4, side // 2] == 255
    assert shown[3 * side // 4, side // 2] == 128
