"""What every metric of the package obeys, found by looking through the family's files."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass

import pytest
import torch
from torch import Tensor

from fewstep import metrics
from fewstep.errors import UserError
from fewstep.metrics import TARP, Copying, FrechetDistance, KernelDistance, Metric, VarianceRatio, VariogramScore
from fewstep.shapes import flat
from problems import normals

MODULES = [
    importlib.import_module(f"{metrics.__name__}.{info.name}") for info in pkgutil.iter_modules(metrics.__path__)
]
MEMBERS = sorted(
    {
        member
        for module in MODULES
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, Metric) and not inspect.isabstract(member)
    },
    key=lambda member: member.__name__,
)


@dataclass(frozen=True)
class TravellingTARP(Metric):
    """TARP with points that go where its inputs go: the means of the draws, which no order of the draws changes."""

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        return TARP(references=samples.mean(0))(samples, reference)


@dataclass(frozen=True)
class TravellingCopying(Metric):
    """Copying with training items that go where its inputs go: the held-out ones, twice as far from their mean."""

    def __call__(self, samples: Tensor, reference: Tensor) -> dict[str, float]:
        return Copying(train=2 * reference - reference.mean(0))(samples, reference)


MADE: dict[type[Metric], Callable[[], Metric]] = {
    FrechetDistance: lambda: FrechetDistance(features=flat),
    KernelDistance: lambda: KernelDistance(features=flat),
    TARP: TravellingTARP,
    Copying: TravellingCopying,
}
WITH_ORIGIN = {KernelDistance: "(x . y / d + 1)^3 looks at the origin: it compares moments about 0"}
UNPAIRED = {VarianceRatio: "it averages the covariances of model and truth, each over its cases"}
OF_PAIRS = {VariogramScore: "it compares components with each other, and a number has one"}
DISTANCE, SCORE, CONDITIONAL = (
    "two samples of a law",
    "draws and what happened",
    "draws of two laws for the same cases",
)
NAN = float("nan")


@pytest.fixture(params=MEMBERS, ids=lambda member: member.__name__)
def metric(request) -> Metric:
    return MADE.get(request.param, request.param)()


def kind(metric: Metric) -> str:
    """By what it accepts: only a score takes draws and cases; only a distance takes samples of numbers, without cases."""
    offers = {SCORE: (normals(7, 20, 2, seed=0), normals(20, 2, seed=1)), DISTANCE: (*normals(2, 20, seed=0),)}
    for name, (samples, reference) in offers.items():
        try:
            metric(samples, reference)
        except UserError:
            continue
        return name
    return CONDITIONAL


def inputs(metric: Metric, item: tuple[int, ...] = (3,)) -> tuple[Tensor, Tensor]:
    """Two samples of different sizes, draws and cases, or different numbers of draws for the same cases."""
    samples, reference = {
        DISTANCE: ((30, *item), (20, *item)),
        SCORE: ((7, 20, *item), (20, *item)),
        CONDITIONAL: ((7, 20, *item), (5, 20, *item)),
    }[kind(metric)]
    return normals(*samples, seed=0), normals(*reference, seed=1) + 0.3


def same(a: dict[str, float], b: dict[str, float], tolerance: float = 1e-9) -> bool:
    return a.keys() == b.keys() and all(math.isclose(a[k], b[k], rel_tol=tolerance, abs_tol=tolerance) for k in a)


def test_the_family_is_found():
    assert {member.__name__ for member in MEMBERS} >= {
        "C2ST",
        "CRPS",
        "ConditionalEnergyDistance",
        "Copying",
        "EnergyDistance",
        "EnergyScore",
        "FrechetDistance",
        "IntervalCoverage",
        "KernelDistance",
        "MMD",
        "PRDC",
        "SBC",
        "SlicedWasserstein",
        "SpreadSkill",
        "TARP",
        "VarianceRatio",
        "VariogramScore",
        "VendiScore",
        "Wasserstein",
    }
    assert {member.__name__ for member in MEMBERS} <= set(metrics.__all__)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__name__)
def test_it_is_a_frozen_dataclass(member):
    fixed = {TARP: {"references": normals(20, 3, seed=2)}, Copying: {"train": normals(20, 3, seed=2)}}
    made = member(**fixed[member]) if member in fixed else MADE.get(member, member)()
    assert type(made) is member
    assert is_dataclass(made)
    for field in fields(made):
        with pytest.raises(FrozenInstanceError):
            setattr(made, field.name, None)


def test_every_kind_is_found():
    kinds = {member.__name__: kind(MADE.get(member, member)()) for member in MEMBERS}
    assert {name for name, found in kinds.items() if found == CONDITIONAL} >= {
        "ConditionalEnergyDistance",
        "VarianceRatio",
    }
    assert {name for name, found in kinds.items() if found == SCORE} >= {"CRPS", "EnergyScore", "SBC", "TARP"}
    assert {name for name, found in kinds.items() if found == DISTANCE} >= {"EnergyDistance", "FrechetDistance", "MMD"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_by_name(metric, dtype):
    samples, reference = (x.to(dtype) for x in inputs(metric))
    result = metric(samples, reference)
    assert result
    for name, value in result.items():
        assert type(name) is str
        assert type(value) is float
        assert math.isfinite(value)
    assert result == metric(samples, reference)


def test_it_leaves_its_inputs_and_the_global_stream_alone(metric):
    samples, reference = inputs(metric)
    before = samples.clone(), reference.clone(), torch.get_rng_state()
    metric(samples, reference)
    assert all(torch.equal(a, b) for a, b in zip(before, (samples, reference, torch.get_rng_state()), strict=True))


def test_shapes_that_do_not_fit_are_refused(metric):
    samples, reference = inputs(metric)
    for bad in (reference[..., :2], torch.cat([reference, reference], dim=-1)):
        with pytest.raises(UserError):
            metric(samples, bad)
    if kind(metric) != DISTANCE:
        for bad in (samples[:, :-1], samples[0], torch.cat([samples, samples], dim=1), samples[:1]):
            with pytest.raises(UserError):
                metric(bad, reference)


def test_divergence_is_told(metric):
    """A sample that is not finite is an error and not a number."""
    for bad in (NAN, math.inf):
        samples, reference = inputs(metric)
        samples.view(-1)[4] = bad
        with pytest.raises(UserError, match="diverged"):
            metric(samples, reference)


def test_the_order_does_not_matter(metric):
    """Of the items of a sample, of the draws and of the cases; but cases that are not paired are another forecast."""
    samples, reference = inputs(metric)
    result, cases = metric(samples, reference), {SCORE: 0, CONDITIONAL: 1}.get(kind(metric))
    assert same(metric(samples.flip(0), reference), result)
    if kind(metric) != SCORE:
        assert same(metric(samples, reference.flip(0)), result)
    if cases is not None:
        assert same(metric(samples.flip(1), reference.flip(cases)), result)
        assert same(metric(samples, reference.flip(cases)), result) == (type(metric) in UNPAIRED)


def test_only_the_components_of_an_item_count(metric):
    """Items may have any shape."""
    samples, reference = inputs(metric, (4,))
    result = metric(samples, reference)
    assert same(metric(samples.unflatten(-1, (1, 2, 2)), reference.unflatten(-1, (1, 2, 2))), result)


def test_a_shift_common_to_samples_and_reference_changes_nothing(metric):
    """But for the members of `WITH_ORIGIN`, which must be found to change."""
    samples, reference = inputs(metric, (4,))
    shifted = same(metric(samples + 2.5, reference + 2.5), metric(samples, reference), tolerance=1e-6)
    assert shifted == (type(metric) not in WITH_ORIGIN)


def test_gradients_are_not_kept(metric):
    """Samples may come out of a network that is being trained."""
    samples, reference = inputs(metric)
    assert metric(samples.requires_grad_(), reference) == metric(samples.detach(), reference)


def test_items_may_be_numbers(metric):
    """But for the members of `OF_PAIRS`, which must refuse them."""
    samples, reference = inputs(metric, (1,))
    if type(metric) in OF_PAIRS:
        for x, y in ((samples, reference), (samples[..., 0], reference[..., 0])):
            with pytest.raises(UserError, match="component"):
                metric(x, y)
        return
    assert same(metric(samples[..., 0], reference[..., 0]), metric(samples, reference))


def test_the_checks_can_fail():
    a = {"x": 1.0}
    assert not same(a, {"x": 1.0 + 1e-6})
    assert not same(a, {"y": 1.0})
    assert not same(a, {"x": NAN})
