"""What every operator of the package obeys, found by looking through the family's files. All in float64, most as matrices."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass

import pytest
import torch
from torch import Tensor

from fewstep import operators
from fewstep.errors import UserError
from fewstep.operators import (
    AveragePool,
    Bicubic,
    GaussianBlur,
    Grey,
    HDRClip,
    Inpainting,
    KernelBlur,
    LinearOperator,
    Matrix,
    MotionBlur,
    RandomMask,
    ScaledIsometry,
    ShapedOperator,
    TensorMask,
    is_linear,
)
from fewstep.shapes import per_item
from problems import members, normals

Shape = tuple[int, ...]
SIZES: list[Shape] = [(1, 8, 8), (3, 7, 9), (2, 5, 12)]
GAMMAS = (0.0, 0.3, 1.0, 50.0)


def low_rank(shape: Shape) -> Matrix:
    """Eleven measurements of rank 4."""
    d = torch.Size(shape).numel()
    return Matrix(item_shape=shape, matrix=normals(11, 4, seed=1) @ normals(4, d, seed=2))


@dataclass(frozen=True, kw_only=True)
class Differences(LinearOperator):
    """Differences of neighbours along the last axis: an operator without closed forms, of rank one less than the width."""

    tolerance: float = 1e-13

    @property
    def y_shape(self) -> Shape:
        return *self.item_shape[:-1], self.item_shape[-1] - 1

    def A(self, x: Tensor) -> Tensor:
        self.check_items(x)
        return x.diff(dim=-1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        self.check_measurements(y)
        return -torch.nn.functional.pad(y, (1, 1)).diff(dim=-1)


MADE: dict[type[ShapedOperator], Callable[[Shape], ShapedOperator]] = {
    Grey: lambda shape: Grey(item_shape=shape, weights=(0.3, 0.6, 0.1)[: shape[0]]),
    KernelBlur: lambda shape: KernelBlur(item_shape=shape, weights=normals(4, 3, seed=0)),
    Matrix: low_rank,
    # the standard kernel has singular values below the cut-off, which is tested by itself
    GaussianBlur: lambda shape: GaussianBlur(item_shape=shape, std=0.6),
}
MEMBERS = sorted(members(operators, ShapedOperator), key=lambda member: member.__name__)
CASES = [MADE.get(member, lambda shape, m=member: m(item_shape=shape))(shape) for member in MEMBERS for shape in SIZES]
OTHERS = [
    AveragePool(item_shape=(2, 7, 9), factor=3),
    AveragePool(item_shape=(1, 3, 5), factor=1),
    Bicubic(item_shape=(2, 7, 9), factor=3),
    Bicubic(item_shape=(1, 5, 6), factor=5),
    Inpainting(item_shape=(3, 4, 5), mask=RandomMask(missing=1.0)),
    Inpainting(item_shape=(3, 4, 5), mask=RandomMask(missing=0.0)),
    Inpainting(item_shape=(7,), mask=RandomMask()),
    Inpainting(item_shape=(2, 3, 3), mask=TensorMask(observed=normals(2, 3, 3, seed=0) > 0)),
    KernelBlur(item_shape=(1, 8, 6), weights=torch.ones(2, 2)),  # zeros in the spectrum
    KernelBlur(item_shape=(1, 3, 4), weights=normals(5, 7, seed=1)),  # larger than the image
    MotionBlur(item_shape=(1, 8, 9), length=3.0),  # zeros in the spectrum
    Matrix(item_shape=(6,), matrix=normals(9, 6, seed=1)),
    Matrix(item_shape=(6,), matrix=torch.zeros(2, 6)),
    *(Differences(item_shape=shape) for shape in SIZES),
]
LINEAR = [operator for operator in CASES + OTHERS if isinstance(operator, LinearOperator)]


def name(operator: ShapedOperator) -> str:
    return f"{type(operator).__name__}-{'x'.join(map(str, operator.item_shape))}"


every_operator = pytest.mark.parametrize("operator", CASES + OTHERS, ids=name)
every_linear = pytest.mark.parametrize("operator", LINEAR, ids=name)


def items(operator: ShapedOperator, n: int = 3, seed: int = 0) -> Tensor:
    return normals(n, *operator.item_shape, seed=seed)


def measurements(operator: ShapedOperator, n: int = 3, seed: int = 5) -> Tensor:
    return normals(n, *operator.y_shape, seed=seed)


def matrix_of(function: Callable[[Tensor], Tensor], shape: Shape) -> Tensor:
    """The matrix of a linear function of items of this shape; its columns are the images of the unit vectors."""
    d = torch.Size(shape).numel()
    return function(torch.eye(d, dtype=torch.float64).reshape(d, *shape)).reshape(d, -1).T


def matrices(operator: LinearOperator) -> tuple[Tensor, Tensor]:
    return matrix_of(operator.A, operator.item_shape), matrix_of(operator.A_dagger, operator.y_shape)


def equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def adjoint(operator: LinearOperator) -> bool:
    return equal(matrix_of(operator.A, operator.item_shape).T, matrix_of(operator.A_adjoint, operator.y_shape))


def penrose_1(operator: LinearOperator) -> bool:
    a, g = matrices(operator)
    return equal(a @ g @ a, a)


def penrose_2(operator: LinearOperator) -> bool:
    a, g = matrices(operator)
    return equal(g @ a @ g, g)


def penrose_3(operator: LinearOperator) -> bool:
    a, g = matrices(operator)
    return equal(a @ g, (a @ g).T)


def penrose_4(operator: LinearOperator) -> bool:
    a, g = matrices(operator)
    return equal(g @ a, (g @ a).T)


def prox_is_stationary(operator: LinearOperator) -> bool:
    """`gamma A'(A x - y) + x - z = 0`, for one gamma and for one per item."""
    z, y = items(operator), measurements(operator)
    transposed = matrix_of(operator.A, operator.item_shape).T
    for gamma in (*GAMMAS, torch.tensor([0.1, 2.0, 7.0], dtype=torch.float64)):
        x = operator.prox_l2(z, y, gamma)
        pull = (transposed @ (operator.A(x) - y).flatten(1).T).T.reshape(z.shape)
        if not equal(per_item(torch.as_tensor(gamma, dtype=z.dtype), z) * pull + x, z):
            return False
    return True


def linear(operator: ShapedOperator) -> bool:
    x, w = items(operator, seed=1), items(operator, seed=2)
    return equal(operator.A(2 * x - 3 * w), 2 * operator.A(x) - 3 * operator.A(w))


def independent(operator: ShapedOperator) -> bool:
    """No item of a batch changes another."""
    x, y = items(operator), measurements(operator)
    calls: list[Callable[[int | slice], Tensor]] = [lambda i: operator.A(x[i])]
    if isinstance(operator, LinearOperator):
        calls += [lambda i: operator.A_dagger(y[i]), lambda i: operator.prox_l2(x[i], y[i], 2.0)]
    return all(equal(call(slice(0, 3))[i : i + 1], call(slice(i, i + 1))) for call in calls for i in range(3))


def keeps_the_dtype(operator: ShapedOperator) -> bool:
    results = []
    for dtype in (torch.float32, torch.float64):
        x, y = items(operator).to(dtype), measurements(operator).to(dtype)
        results.append(operator.A(x).dtype == dtype)
        if isinstance(operator, LinearOperator):
            found = (operator.A_adjoint(y), operator.A_dagger(y), operator.prox_l2(x, y, 2.0))
            results += [v.dtype == dtype for v in found]
    return all(results)


def stays_on_the_device(operator: ShapedOperator) -> bool:
    """The device without memory stands for any other: what is stored on the CPU does not meet it unless it is moved."""
    x, y = items(operator).to("meta"), measurements(operator).to("meta")
    try:
        found = [operator.A(x)]
        if isinstance(operator, LinearOperator) and not isinstance(operator, Differences):  # who looks at numbers
            found += [operator.A_adjoint(y), operator.A_dagger(y)]
    except (RuntimeError, NotImplementedError):
        return False
    return all(v.device.type == "meta" for v in found)


def refuses_other_shapes(operator: ShapedOperator) -> bool:
    x, y = items(operator), measurements(operator)
    calls = [lambda b=b: operator.A(b) for b in (x[..., :-1], x[0], x[None], x.long())]
    if isinstance(operator, LinearOperator):
        for function in (operator.A_adjoint, operator.A_dagger):
            calls += [lambda f=function, b=b: f(b) for b in (torch.cat([y, y], -1), y[0], y[None], y.long())]
        calls += [
            lambda: operator.prox_l2(x[..., :-1], y, 1.0),
            lambda: operator.prox_l2(x, torch.cat([y, y], -1), 1.0),
            lambda: operator.prox_l2(x[:2], y, 1.0),
            *(
                lambda g=g: operator.prox_l2(x, y, g)
                for g in (-1.0, float("nan"), float("inf"), torch.ones(2), torch.ones(3, 1))
            ),
        ]
    return all(_is_refused(call) for call in calls)


def _is_refused(call: Callable[[], Tensor]) -> bool:
    try:
        call()
    except UserError:
        return True
    except Exception:
        return False
    return False


def gradient_flows(operator: ShapedOperator) -> bool:
    """Through A, and for a linear one it is the adjoint."""
    x, v = 0.1 * items(operator), measurements(operator)
    measured = operator.A(x.requires_grad_())
    if not measured.requires_grad:
        return False
    gradient = torch.autograd.grad((measured * v).sum(), x)[0]
    if isinstance(operator, LinearOperator):
        return equal(gradient, operator.A_adjoint(v))
    return bool(gradient.isfinite().all() and (gradient != 0).any())


LAWS_OF_LINEAR = (adjoint, penrose_1, penrose_2, penrose_3, penrose_4, prox_is_stationary, linear)
LAWS = (independent, keeps_the_dtype, stays_on_the_device, refuses_other_shapes, gradient_flows)


def test_the_family_is_found():
    assert {member.__name__ for member in MEMBERS} >= {
        "AveragePool",
        "Bicubic",
        "BlockQuantisation",
        "GaussianBlur",
        "Grey",
        "HDRClip",
        "Inpainting",
        "KernelBlur",
        "Matrix",
        "MotionBlur",
        "PhaseRetrieval",
        "Quantisation",
    }
    assert {member.__name__ for member in MEMBERS} <= set(operators.__all__)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__name__)
def test_it_is_a_frozen_dataclass(member):
    made = next(operator for operator in CASES if type(operator) is member)
    assert is_dataclass(made)
    for field in fields(made):
        with pytest.raises(FrozenInstanceError):
            setattr(made, field.name, None)


@every_linear
@pytest.mark.parametrize("law", LAWS_OF_LINEAR, ids=lambda law: law.__name__)
def test_laws_of_linear_operators(operator, law):
    assert law(operator)


@every_operator
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws(operator, law):
    assert law(operator)


@every_operator
def test_shapes_are_as_announced(operator):
    assert operator.A(items(operator)).shape == (3, *operator.y_shape)
    assert is_linear(operator) == isinstance(operator, LinearOperator)
    if isinstance(operator, LinearOperator):
        assert operator.A_adjoint(measurements(operator)).shape == (3, *operator.item_shape)
        assert operator.A_dagger(measurements(operator)).shape == (3, *operator.item_shape)


@every_operator
def test_the_same_fields_give_the_same_operator(operator):
    again = type(operator)(**{field.name: getattr(operator, field.name) for field in fields(operator)})
    before = torch.get_rng_state()
    assert torch.equal(again.A(items(operator)), operator.A(items(operator)))
    assert torch.equal(before, torch.get_rng_state())


@every_linear
def test_the_inverse_is_the_one_that_linear_algebra_finds(operator):
    a, g = matrices(operator)
    assert torch.allclose(g, torch.linalg.pinv(a, rtol=1e-4), atol=1e-9)


@pytest.mark.parametrize("operator", [o for o in LINEAR if isinstance(o, ScaledIsometry)], ids=name)
def test_a_scaled_isometry_is_one(operator):
    a, _ = matrices(operator)
    assert equal(a @ a.T @ a, operator.gain * a)


class NotFlipped(KernelBlur):
    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.A(y)


class NotDivided(AveragePool):
    def A_dagger(self, y: Tensor) -> Tensor:
        return self.A_adjoint(y)


class Beside(Matrix):
    """`G = A_dagger + L B R`, R the projector beside the range of A or the identity, L that on its null space or the identity."""

    left: bool
    right: bool

    def A_dagger(self, y: Tensor) -> Tensor:
        g = super().A_dagger
        x = g(y)
        added = (y - self.A(x) if self.right else y) @ normals(*self.matrix.shape, seed=9, dtype=y.dtype)
        return x + (added - g(self.A(added)) if self.left else added)


class InBothNullSpaces(Beside):
    left, right = True, True


class InTheNullSpace(Beside):
    left, right = True, False


class BesideTheRange(Beside):
    left, right = False, True


class WithoutTheHalf(Grey):
    """The prox of `gamma ||A x - y||^2`."""

    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor) -> Tensor:
        return super().prox_l2(z, y, 2 * gamma)


class Affine(Grey):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x) + 1


class OfTheBatch(HDRClip):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x) - super().A(x).mean(0)


class Doubled(HDRClip):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x).double()


class OnTheCPU(HDRClip):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x) * torch.ones(self.item_shape, dtype=x.dtype)


class Unchecked(HDRClip):
    def A(self, x: Tensor) -> Tensor:
        return x


class Detached(HDRClip):
    def A(self, x: Tensor) -> Tensor:
        return super().A(x).detach()


LOW_RANK = {"item_shape": (8,), "matrix": low_rank((8,)).matrix}
IMAGE = {"item_shape": (2, 4, 4)}


@pytest.mark.parametrize(
    ("twin", "breaks"),
    [
        (NotFlipped(**IMAGE, weights=normals(3, 3, seed=0)), {adjoint, gradient_flows}),
        (NotDivided(**IMAGE), {penrose_1, penrose_2}),
        (InBothNullSpaces(**LOW_RANK), {penrose_2}),
        (InTheNullSpace(**LOW_RANK), {penrose_2, penrose_4}),
        (BesideTheRange(**LOW_RANK), {penrose_2, penrose_3}),
        (WithoutTheHalf(**IMAGE, weights=(1.0, 2.0)), {prox_is_stationary}),
        (OfTheBatch(**IMAGE), {independent}),
        (Doubled(**IMAGE), {keeps_the_dtype}),
        (OnTheCPU(**IMAGE), {stays_on_the_device}),
        (Unchecked(**IMAGE), {refuses_other_shapes}),
        (Detached(**IMAGE), {gradient_flows}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ShapedOperator) else "",
)
def test_the_laws_reject_wrong_twins(twin, breaks):
    laws = LAWS + (LAWS_OF_LINEAR if isinstance(twin, LinearOperator) else ())
    assert {law for law in laws if not law(twin)} == breaks


def test_what_is_not_linear_is_found_out():
    assert not linear(HDRClip(**IMAGE))
    assert not linear(Affine(**IMAGE, weights=(1.0, 2.0)))
