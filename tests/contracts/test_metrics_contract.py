"""What every metric of the package obeys, found by looking through the family's files."""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest
import torch
from torch import Tensor

from fewstep import metrics
from fewstep.errors import UserError
from fewstep.metrics import FrechetDistance, KernelDistance, Metric
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
MADE: dict[type[Metric], Callable[[], Metric]] = {
    FrechetDistance: lambda: FrechetDistance(features=flat),
    KernelDistance: lambda: KernelDistance(features=flat),
}
WITH_ORIGIN = {KernelDistance: "(x . y / d + 1)^3 looks at the origin: it compares moments about 0"}
NAN = float("nan")


@pytest.fixture(params=MEMBERS, ids=lambda member: member.__name__)
def metric(request) -> Metric:
    return MADE.get(request.param, request.param)()


def inputs(metric: Metric, item: tuple[int, ...] = (3,)) -> tuple[Tensor, Tensor]:
    """Two samples of different sizes for a distance, draws and cases for a score, which refuses two samples."""
    samples, reference = normals(30, *item, seed=0), normals(20, *item, seed=1) + 0.3
    try:
        metric(samples, reference)
    except UserError:
        return normals(7, 20, *item, seed=0), reference
    return samples, reference


def is_score(metric: Metric) -> bool:
    samples, reference = inputs(metric)
    return samples.ndim > reference.ndim


def same(a: dict[str, float], b: dict[str, float], tolerance: float = 1e-9) -> bool:
    return a.keys() == b.keys() and all(math.isclose(a[k], b[k], rel_tol=tolerance, abs_tol=tolerance) for k in a)


def test_the_family_is_found():
    assert {member.__name__ for member in MEMBERS} >= {
        "C2ST",
        "EnergyDistance",
        "EnergyScore",
        "FrechetDistance",
        "KernelDistance",
        "MMD",
        "PRDC",
        "SlicedWasserstein",
        "SpreadSkill",
        "VendiScore",
        "Wasserstein",
    }
    assert {member.__name__ for member in MEMBERS} <= set(metrics.__all__)


def test_it_is_a_frozen_dataclass(metric):
    assert is_dataclass(metric)
    for field in fields(metric):
        with pytest.raises(FrozenInstanceError):
            setattr(metric, field.name, None)


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
    for bad in (reference[:, :2], torch.cat([reference, reference], dim=1)):
        with pytest.raises(UserError):
            metric(samples, bad)


def test_the_order_does_not_matter(metric):
    """Of the items in a distance, of the draws and of the cases in a score; unpaired cases are another forecast."""
    samples, reference = inputs(metric)
    result = metric(samples, reference)
    assert same(metric(samples.flip(0), reference), result)
    if is_score(metric):
        assert same(metric(samples.flip(1), reference.flip(0)), result)
        assert not same(metric(samples, reference.flip(0)), result)
    else:
        assert same(metric(samples, reference.flip(0)), result)


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
    samples, reference = inputs(metric, (1,))
    assert same(metric(samples[..., 0], reference[..., 0]), metric(samples, reference))


def test_the_checks_can_fail():
    a = {"x": 1.0}
    assert not same(a, {"x": 1.0 + 1e-6})
    assert not same(a, {"y": 1.0})
    assert not same(a, {"x": NAN})
