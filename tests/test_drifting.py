"""Drifting objectives: what they compare, their queues, guidance, and that several processes are one."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep.draws import Shard, normal_like
from fewstep.drift import DriftingField
from fewstep.drift_regression import DriftRegression
from fewstep.encoders import Encoder, MapsModule
from fewstep.encoders.masked import _Maps
from fewstep.errors import UserError
from fewstep.kernels import Gaussian, Laplace
from fewstep.models import Generator, GeneratorConfig
from fewstep.networks import MLPConfig
from fewstep.networks.masked_autoencoder import MaskedAutoencoder
from fewstep.objectives import Drifting, GuidedDrifting
from fewstep.objectives.guided_drifting import strengths
from fewstep.ring_buffer import RingBuffer
from fewstep.samplers import OneStep
from fewstep.training import train
from fewstep.training.checkpoint import read_record
from fewstep.training.loop import LossModule
from problems import doubles, generator, normals, randomise, seeded
from test_training import assert_same_bits, options, weights
from tiny import tiny_recipe

FIELD = DriftingField(kernel=Laplace(bandwidth=0.5), normalisation="split")
PLAIN = DriftRegression(field=FIELD, temperatures=(1.0,), relative=False, equalise=False)


def small(item_shape=(3,), num_classes=0, max_strength=1.0) -> Generator:
    network = MLPConfig(width=16, depth=2, num_classes=num_classes)
    with seeded(0):
        model = GeneratorConfig(network=network, max_strength=max_strength).build(item_shape)
    return randomise(model.double())


BATCH = {"x_0": normals(10, 3, seed=1) + 0.5}


def test_the_loss_is_that_of_the_field_from_samples_to_data():
    model = small()
    loss = Drifting(regression=PLAIN)(model, BATCH, generator(0))
    x = model(normal_like(BATCH["x_0"], generator(0))).detach()
    drift = FIELD(x, BATCH["x_0"])
    assert_close(loss.per_sample, drift.square().mean(1), rtol=1e-10, atol=1e-12)
    assert_close(loss.raw, loss.per_sample.detach())
    assert_close(loss.logs["drift_rms_1"], drift.square().mean().sqrt().expand(10), rtol=1e-10, atol=0)
    with_data_as_samples = FIELD(BATCH["x_0"], x)
    assert (loss.per_sample - with_data_as_samples.square().mean(1)).abs().max() > 1e-3


def test_independent_negatives_are_other_samples_and_nobody_is_masked():
    model, source = small(), generator(0)
    loss = Drifting(regression=PLAIN, independent=True)(model, BATCH, generator(0))
    x, other = (model(normal_like(BATCH["x_0"], source)).detach() for _ in range(2))
    assert_close(loss.per_sample, FIELD(x, BATCH["x_0"], other).square().mean(1), rtol=1e-10, atol=1e-12)
    model.zero_grad()
    loss.per_sample.mean().backward()
    moved = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    still = model(normal_like(BATCH["x_0"], generator(0)))
    (still - (still + FIELD(x, BATCH["x_0"], other)).detach()).square().mean().backward()
    for name, p in model.named_parameters():
        assert_close(moved[name], p.grad, rtol=1e-9, atol=1e-14)


def test_a_queue_holds_samples_of_earlier_steps_beside_those_of_this_one():
    model = small()
    function = Drifting(regression=PLAIN, queue=15).build((3,))
    xs = []
    for step in range(3):
        loss = function(model, BATCH, generator(step))
        x = model(normal_like(BATCH["x_0"], generator(step))).detach()
        earlier = torch.cat(xs[-2:])[-15:] if xs else x[:0]
        expected = FIELD(x, BATCH["x_0"], torch.cat([x, earlier]), own=True)
        assert_close(loss.per_sample.detach(), expected.square().mean(1), rtol=1e-9, atol=1e-12)
        xs.append(x)


def test_ring_buffers():
    """The latest items of each row; draws without repetition; more than the whole at once; kept in the state."""
    queue = RingBuffer((2,), size=4, rows=2)
    items = torch.arange(12, dtype=torch.float32).reshape(6, 2)
    queue.push(items[:3], torch.tensor([0, 1, 0]))
    assert queue.held.tolist() == [2, 1]
    drawn = queue.draw(torch.tensor([0, 0, 1]), 1, generator(0))
    assert drawn.shape == (3, 1, 2)
    assert_close(drawn[2, 0], items[1])
    queue.push(items, torch.zeros(6, dtype=torch.int64))
    assert queue.held.tolist() == [4, 1]
    four = queue.draw(torch.tensor([0]), 4, generator(1))[0]
    assert sorted(four[:, 0].tolist()) == sorted(items[2:, 0].tolist())
    with pytest.raises(UserError, match="holds 1 items, 2 are asked for"):
        queue.draw(torch.tensor([0, 1]), 2, generator(0))
    other = RingBuffer((2,), size=4, rows=2)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.draw(torch.tensor([0]), 4, generator(1))[0], four)
    with pytest.raises(UserError, match="one item at least"):
        RingBuffer((2,), size=0)


def test_a_resumed_run_with_queues_ends_with_the_same_bits(tmp_path):
    config = GeneratorConfig(network=MLPConfig(width=16, depth=1))
    for objective in (
        Drifting(regression=PLAIN, queue=40),
        GuidedDrifting(regression=PLAIN, groups=2, draws=4, positives=4),
    ):
        recipe = tiny_recipe(model=config, objective=objective, sampler=OneStep())
        out = tmp_path / type(objective).__name__
        train(recipe, options(out / "whole"))
        train(recipe, options(out / "parts", stop_after=0.0))
        assert read_record(next((out / "parts" / "checkpoints").iterdir()))["step"] < recipe.steps
        train(recipe, options(out / "parts", resume=True))
        assert_same_bits(weights(out / "whole"), weights(out / "parts"))


class Halves(MapsModule):
    """A network whose maps are known: the image, and its mean over patches of 2 x 2, times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def maps(self, x):
        return [self.weight * x, nn.functional.avg_pool2d(x, 2)]


@dataclass(frozen=True, kw_only=True)
class Known(Encoder):
    trains: bool = False
    poison: bool = False

    def build(self, item_shape=(), data=None):
        network = Halves().double().eval().requires_grad_(self.trains)
        if self.poison:
            network.weight.data.fill_(torch.nan)
        return network


IMAGES = {"x_0": normals(6, 1, 4, 4, seed=2)}


def test_with_an_encoder_the_losses_of_all_features_are_summed():
    """Places of a map share their scale; the items are a feature too; and the gradient goes through the frozen encoder."""
    model = small((1, 4, 4))
    regression = DriftRegression(field=DriftingField(kernel=Laplace(bandwidth=1.0), floor=1e-6))
    loss = Drifting(regression=regression, encoder=Known())(model, IMAGES, generator(0))
    x, y = model(normal_like(IMAGES["x_0"], generator(0))), IMAGES["x_0"]
    features = {"items": lambda h: h.flatten(1)[None], "rms": lambda h: (h.square().mean((2, 3)) + 1e-6).sqrt()[None]}
    for k, of in enumerate((lambda h: h, lambda h: nn.functional.avg_pool2d(h, 2))):
        features[f"map {k}"] = lambda h, of=of: of(h).flatten(2).permute(2, 0, 1)
        features[f"mean {k}"] = lambda h, of=of: of(h).mean((2, 3))[None]
        features[f"std {k}"] = lambda h, of=of: (of(h).var((2, 3), correction=0) + 1e-6).sqrt()[None]

    def patch(h):
        return nn.functional.avg_pool2d(h, 2)

    features["means of patches"] = lambda h: patch(h).flatten(2).permute(2, 0, 1)
    features["stds of patches"] = lambda h: (
        (patch(h.square()) - patch(h).square() + 1e-6).sqrt().flatten(2).permute(2, 0, 1)
    )
    expected = sum(regression(f(x.detach().float()), f(y.float())).per_point.mean() for f in features.values())
    assert_close(loss.per_sample.mean().float(), expected, rtol=1e-3, atol=0)
    fewer = Drifting(regression=regression, encoder=Known(), most_places=4)(model, IMAGES, generator(0))
    largest = features["map 0"]  # 16 places
    left = expected - regression(largest(x.detach().float()), largest(y.float())).per_point.mean()
    assert_close(fewer.per_sample.mean().float(), left, rtol=1e-3, atol=0)
    assert expected - left > 1
    loss.per_sample.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_encoder_is_neither_trained_nor_stored():
    losses = LossModule(small((1, 4, 4)), Drifting(encoder=Known()))
    assert not any("weight" in name and "network" not in name for name, _ in losses.named_parameters())
    assert losses.objective.state_dict() == {}


def test_bad_encoders_and_batches_are_told():
    model = small((1, 4, 4))
    with pytest.raises(UserError, match="ask for gradients"):
        Drifting(encoder=Known(trains=True))(model, IMAGES, generator(0))
    with pytest.raises(UserError, match=r"features .* hold NaN"):
        Drifting(encoder=Known(poison=True))(model, IMAGES, generator(0))
    with pytest.raises(UserError, match="looks at images"):
        Drifting(encoder=Known())(small(), BATCH, generator(0))
    with pytest.raises(UserError, match="needs 2 or more"):
        Drifting()(small(), {"x_0": BATCH["x_0"][:1]}, generator(0))
    same = small()
    for p in same.parameters():
        p.data.zero_()
    with pytest.raises(UserError, match="all points are one"):
        Drifting()(same, {"x_0": torch.zeros(4, 3, dtype=torch.float64)}, generator(0))
    for unfit in (small(num_classes=2), small(max_strength=2.0)):
        with pytest.raises(UserError, match=r"take objectives\.GuidedDrifting"):
            Drifting()(unfit, BATCH, generator(0))
    with pytest.raises(UserError, match="hold NaN"):
        Drifting()(small(), {"x_0": torch.full((4, 3), torch.nan, dtype=torch.float64)}, generator(0))
    for wrong in ({"queue": -1}, {"most_places": 0}):
        with pytest.raises(UserError):
            Drifting(**wrong)
    for wrong in (
        {"draws": 1},
        {"groups": 0},
        {"class_queue": 4},
        {"queue": 1},
        {"plain_share": 1.5},
        {"num_classes": -1},
    ):
        with pytest.raises(UserError):
            GuidedDrifting(**wrong)
    with pytest.raises(UserError, match="the generator of 0"):
        GuidedDrifting(num_classes=2)(small(), BATCH, generator(0))
    with pytest.raises(UserError, match="no labels"):
        GuidedDrifting(num_classes=2)(small(num_classes=2), BATCH, generator(0))
    with pytest.raises(UserError, match=r"labels 5 \.\. 5, the objective 2"):
        GuidedDrifting(num_classes=2)(small(num_classes=2), BATCH | {"labels": torch.full((10,), 5)}, generator(0))


def test_samples_that_are_not_finite_are_a_step_to_skip():
    """As for every objective: the loss is NaN with a graph, and the loop decides; no error from inside a field."""
    model = small()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.inf)
    loss = Drifting()(model, BATCH, generator(0))
    assert loss.per_sample.isnan().all()
    assert loss.per_sample.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_encoder_of_the_library_sees_items_of_any_precision(dtype):
    with seeded(0):
        network = MaskedAutoencoder((1, 4, 4), width=8, blocks=(1, 1, 1))

    @dataclass(frozen=True, kw_only=True)
    class Fresh(Encoder):
        def build(self, item_shape=(), data=None):
            maps = _Maps(network)
            return maps.eval().requires_grad_(False)

    model = small((1, 4, 4)).to(dtype)
    loss = Drifting(encoder=Fresh())(model, {"x_0": IMAGES["x_0"].to(dtype)}, generator(0))
    assert loss.per_sample.isfinite().all()


class Constant(Halves):
    """Its second map is dead, its third of one place."""

    def maps(self, x):
        return [x, torch.zeros_like(x), x.mean((2, 3), keepdim=True)]


def test_a_constant_feature_contributes_nothing_and_is_told():
    @dataclass(frozen=True, kw_only=True)
    class Dead(Encoder):
        def build(self, item_shape=(), data=None):
            return Constant().double().eval().requires_grad_(False)

    loss = Drifting(encoder=Dead())(small((1, 4, 4)), IMAGES, generator(0))
    assert loss.per_sample.isfinite().all()
    assert (loss.logs["constant_features"] == 5).all()  # places, mean, deviation; of patches, mean and deviation


def test_generators_tell_what_does_not_fit():
    model = small(num_classes=3, max_strength=2.0)
    z, labels = normals(4, 3, seed=0), torch.tensor([0, 1, 2, 0])
    assert model(z, labels, 1.5).shape == (4, 3)
    assert (model(z, labels, 1.5) - model(z, labels, 1.0)).abs().max() > 1e-3
    assert (model(z, labels) - model(z, labels.flip(0))).abs().max() > 1e-3
    for bad in ((z, None, 1.0), (z, labels + 1, 1.0), (z, labels[:2], 1.0), (z, labels, 2.5), (z[:, :2], labels, 1.0)):
        with pytest.raises(UserError):
            model(*bad)
    with pytest.raises(UserError, match="max_strength"):
        GeneratorConfig(network=MLPConfig(width=8, depth=1), max_strength=0.5).build((3,))
    with pytest.raises(UserError, match="no classes"):
        OneStep(label=1)(small(), z)
    with pytest.raises(UserError, match="no class 3"):
        OneStep(label=3)(model, z)
    with pytest.raises(UserError, match="trained without it"):
        small()(z, None, 2.0)
    with pytest.raises(UserError, match=r"strengths \(3,\) for 4"):
        model(z, labels, torch.ones(3))
    stronger = OneStep(label=1, strength=2.0)(model, z)
    assert_close(stronger, model(z, torch.ones(4, dtype=torch.int64), 2.0).detach())
    seen = []
    model.network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    model(z, labels, torch.tensor([1.0, 1.25, 1.5, 2.0]))
    assert_close(seen[0], doubles(0, 0.25, 0.5, 1)[:, None])  # what the documentation says
    both = [OneStep(label=1)(model, z), OneStep()(model, z, generator(0))]
    assert_close(both[0], model(z, torch.ones(4, dtype=torch.int64)).detach())
    assert not torch.equal(*both)


@pytest.mark.parametrize("normalisation", ["split", "joint", "both", "sharp"])
@pytest.mark.parametrize("kernel", [Gaussian(bandwidth=0.4), Laplace(bandwidth=0.4)], ids=["gaussian", "laplace"])
def test_guidance_is_at_rest_at_the_extrapolated_law(normalisation, kernel):
    """Negatives of law `(q + (alpha - 1) p_0) / alpha`: at `q = alpha p - (alpha - 1) p_0` the field is 0, to 1e-12.

    Laws on the points of a line, with weights for probabilities; at q = p it is not at rest.
    """
    y = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    base, wavy = torch.full((61,), 1 / 61).double(), (1 + 0.5 * (2 * y[:, 0]).sin()) / 61
    p = wavy / wavy.sum()
    alpha = 1.5
    q = alpha * p - (alpha - 1) * base
    assert (q > 0).all()
    field = DriftingField(kernel=kernel, normalisation=normalisation, exclude_self=False)
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    at_rest, moved = (
        field(x, y, torch.cat([y, y]), p, torch.cat([law, (alpha - 1) * base])).abs().max() for law in (q, p)
    )
    assert at_rest < 1e-12
    assert moved > 1e6 * at_rest


@pytest.mark.parametrize("masked", [True, False])
def test_groups_have_their_class_and_the_unconditional_negatives_their_weight(masked):
    """`w = (alpha - 1)(N - 1) / U`, N without a mask, in each of four groups; recomputed by hand, group by group."""
    model = small(num_classes=3, max_strength=3.0)
    field = replace(FIELD, exclude_self=masked)
    regression = replace(PLAIN, field=field)
    objective = GuidedDrifting(
        regression=regression, num_classes=3, groups=4, draws=5, positives=3, unconditional=4, queue=20, class_queue=9
    )
    function = objective.build((3,))
    batch = {"x_0": normals(30, 3, seed=1), "labels": torch.arange(30) % 3}
    seen = []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments))
    loss = function(model, batch, generator(3))
    (z, labels, alpha), *_ = seen
    labels, alpha = labels.reshape(4, 5), alpha.reshape(4, 5)
    assert (labels == labels[:, :1]).all()
    assert len(labels.unique()) > 1
    assert ((alpha > 1) & (alpha <= 3) & (alpha == alpha[:, :1])).all()
    assert len(alpha.unique()) == 4
    x = model(z, labels.flatten(), alpha.flatten()).detach().reshape(4, 5, 3)
    source = generator(3)
    for _ in range(3):  # the classes, the strengths, and who has none
        torch.rand(4, generator=source, dtype=torch.float64)
    torch.randn(4, 5, 3, generator=source, dtype=torch.float64)
    positives = function.by_class.draw(labels[:, 0], 3, source)
    beside = function.of_all.draw(torch.zeros(4, dtype=torch.int64), 4, source)
    for k in range(4):
        w = torch.cat([torch.ones(5).double(), ((alpha[k, 0] - 1) * (4 if masked else 5) / 4).expand(4)])
        expected = field(x[k], positives[k], torch.cat([x[k], beside[k]]), None, w, own=True).square().mean()
        assert_close(loss.per_sample[k], expected, rtol=1e-9, atol=1e-12)
        of_class = {tuple(p.tolist()) for p in batch["x_0"][batch["labels"] == labels[k, 0]]}
        assert {tuple(p.tolist()) for p in positives[k]} <= of_class
    latest = {tuple(p.tolist()) for p in batch["x_0"][-20:]}
    assert {tuple(p.tolist()) for p in function.of_all.all()} == latest


def test_a_rare_class_starves_no_other():
    """Groups are of classes that hold the positives asked for; only while there is none, of those that hold any."""
    model = small(num_classes=2)
    function = GuidedDrifting(regression=PLAIN, num_classes=2, groups=6, draws=4, positives=8).build((3,))
    seen = []
    model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    labels = torch.zeros(30, dtype=torch.int64)
    labels[7] = 1
    function(model, {"x_0": normals(30, 3, seed=1), "labels": labels}, generator(0))
    assert (seen[0] == 0).all()
    for _ in range(8):
        function(model, {"x_0": normals(30, 3, seed=2), "labels": labels}, generator(1))
    assert len(seen[-1].unique()) == 2
    few = GuidedDrifting(regression=PLAIN, num_classes=2, groups=6, draws=4, positives=8).build((3,))
    few(model, {"x_0": normals(6, 3, seed=1), "labels": torch.arange(6) % 2}, generator(0))
    assert len(seen[-1].unique()) == 2


@pytest.mark.parametrize(
    "labels",
    [torch.full((10,), -1), torch.zeros(10), torch.zeros(9, dtype=torch.int64), torch.zeros(10, 1, dtype=torch.int64)],
)
def test_labels_that_are_none_are_told(labels):
    with pytest.raises(UserError, match=r"labels"):
        GuidedDrifting(num_classes=2)(small(num_classes=2), BATCH | {"labels": labels}, generator(0))


@pytest.mark.parametrize("power", [1.0, 3.0, 5.0])
def test_strengths_follow_their_power_law(power):
    """The distribution function on [1, 4], and the share of those without guidance."""
    alpha = strengths(40_000, 4.0, power, 0.0, generator(0), doubles(0.0))
    for a in (1.2, 2.0, 3.0):
        expected = math.log(a) / math.log(4) if power == 1 else (1 - a ** (1 - power)) / (1 - 4 ** (1 - power))
        assert (alpha < a).double().mean().item() == pytest.approx(expected, abs=0.012)
    assert ((alpha >= 1) & (alpha <= 4)).all()
    plain = strengths(40_000, 4.0, power, 0.3, generator(0), doubles(0.0))
    assert (plain == 1).double().mean().item() == pytest.approx(0.3, abs=0.012)
    assert (strengths(10, 1.0, power, 0.0, generator(0), doubles(0.0)) == 1).all()


def test_groups_that_processes_do_not_divide_are_told():
    function = GuidedDrifting(groups=3).build((3,))
    with pytest.raises(UserError, match="3 groups are not divisible by the 2 processes"):
        function._own_groups(Shard(generator=generator(0), rank=0, count=2))
