"""Operators and noise against scalar formulas, scipy and numpy: what the contract, which knows algebra alone, cannot see."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from fewstep.errors import UserError
from fewstep.operators import (
    AveragePool,
    Bicubic,
    BlockQuantisation,
    BoxMask,
    Gaussian,
    GaussianBlur,
    Grey,
    HalfMask,
    HDRClip,
    ImageMask,
    Inpainting,
    KernelBlur,
    LinearOperator,
    Mask,
    Matrix,
    MotionBlur,
    NoNoise,
    PhaseRetrieval,
    Poisson,
    Quantisation,
    RandomMask,
    TensorMask,
    check_observation,
    is_linear,
)
from fewstep.operators.conjugate_gradients import conjugate_gradients
from fewstep.operators.nonlinear import cosine_matrix
from fewstep.operators.super_resolution import cubic_matrix, keys_cubic
from problems import doubles, generator, generators, normals
from stats import accepts, rejects, z_tests

NAN = float("nan")


def close(a: Tensor, b: Tensor | np.ndarray, atol: float = 1e-12) -> bool:
    return torch.allclose(a, torch.as_tensor(b, dtype=a.dtype), rtol=0, atol=atol)


# ---- blur


@pytest.mark.parametrize("size", [(3, 3), (1, 4), (4, 3), (2, 2), (5, 1)])
def test_a_blur_is_the_convolution_on_a_torus(size):
    x, kernel = normals(2, 3, 7, 8, seed=0), normals(*size, seed=1)
    expected = np.stack([[scipy.ndimage.convolve(c.numpy(), kernel.numpy(), mode="wrap") for c in item] for item in x])
    assert close(KernelBlur(item_shape=(3, 7, 8), weights=kernel).A(x), expected)
    assert not close(KernelBlur(item_shape=(3, 7, 8), weights=kernel.flip(0, 1)).A(x), expected, atol=1e-2)


def test_a_kernel_larger_than_the_image_is_laid_round_it():
    x, kernel = normals(1, 1, 3, 4, seed=0), normals(5, 9, seed=1)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for i in range(3):
        for j in range(4):
            for p in range(5):
                for q in range(9):
                    expected[i, j] += kernel[p, q] * x[0, 0, (i - p + 2) % 3, (j - q + 4) % 4]
    assert close(KernelBlur(item_shape=(1, 3, 4), weights=kernel).A(x)[0, 0], expected)


@pytest.mark.parametrize("std", [0.5, 1.0, 2.0])
def test_gaussian_blur_is_that_of_scipy(std):
    x = normals(1, 1, 12, 9, seed=0)
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), std, mode="wrap", radius=math.ceil(4 * std))
    assert close(GaussianBlur(item_shape=(1, 12, 9), std=std).A(x)[0, 0], expected)
    assert not close(GaussianBlur(item_shape=(1, 12, 9), std=1.2 * std).A(x)[0, 0], expected, atol=1e-3)


def test_motion_blur_by_hand():
    def kernel(length: float, angle: float) -> Tensor:
        found = MotionBlur(item_shape=(1, 9, 9), length=length, angle=angle).kernel
        assert close(found.sum(), doubles(1.0)[0])
        return found

    assert close(kernel(3.0, 0.0), torch.nn.functional.pad(torch.ones(1, 3).double(), (1, 1, 2, 2)) / 3)
    assert close(kernel(3.0, 90.0), kernel(3.0, 0.0).T)
    assert close(kernel(5.0, 30.0), kernel(5.0, 210.0))
    rising = kernel(5.0, 45.0)  # to the right and upwards: columns grow as rows fall
    assert rising[2, 4] > 0.1
    assert rising[2, 2] < 1e-12
    assert close(rising, rising.T)
    assert close(kernel(1.0, 17.0)[1, 1], doubles(1.0)[0])


def test_what_a_blur_kills_stays_killed():
    """A mean of five at width 10 has zeros in its spectrum, to the rounding, which must not come back as 1e16."""
    blur = MotionBlur(item_shape=(1, 4, 10), length=5.0)
    assert (blur.singular_values.abs() < 1e-12).any()
    inverse = blur.A_dagger(normals(2, 1, 4, 10, seed=0))
    assert inverse.abs().max() < 100
    unguarded = dataclasses.replace(blur, cutoff=1e-300)
    assert unguarded.A_dagger(normals(2, 1, 4, 10, seed=0)).abs().max() > 1e6


def test_the_cutoff_is_what_is_lost():
    """A A_dagger A is A to the cut-off, and errors of y grow by at most its inverse."""
    blur = GaussianBlur(item_shape=(1, 32, 32), std=2.0, cutoff=1e-3)
    x = normals(4, 1, 32, 32, seed=0)
    gap = (blur.A(blur.A_dagger(blur.A(x))) - blur.A(x)).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert 1e-5 < gap.max() < 1e-3
    grown = blur.A_dagger(x).flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    assert 50 < grown.max() < 1e3
    single = (blur.A_dagger(blur.A(x).float()) - blur.A_dagger(blur.A(x))).abs().max()
    assert single < 1e-3


def test_bad_kernels_are_refused():
    shape = (1, 4, 4)
    for weights in (torch.ones(3), torch.zeros(3, 3), torch.full((3, 3), NAN), torch.ones(1, 1, 3, 3)):
        with pytest.raises(UserError, match=r"give finite numbers of the shape \(height, width\)"):
            KernelBlur(item_shape=shape, weights=weights)
    for make in (
        lambda: GaussianBlur(item_shape=shape, std=0.0),
        lambda: MotionBlur(item_shape=shape, length=0.5),
        lambda: GaussianBlur(item_shape=shape, cutoff=0.0),
        lambda: GaussianBlur(item_shape=(4,)),
    ):
        with pytest.raises(UserError):
            make()


# ---- super-resolution


def test_pooling_is_the_mean_of_blocks():
    x = normals(2, 3, 7, 9, seed=0)
    pooled = AveragePool(item_shape=(3, 7, 9), factor=3).A(x)
    assert pooled.shape == (2, 3, 2, 3)
    for i in range(2):
        for j in range(3):
            assert close(pooled[:, :, i, j], x[:, :, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].mean((2, 3)))


def test_pixels_that_no_block_holds_are_not_seen():
    pool = AveragePool(item_shape=(1, 5, 4), factor=2)
    y = normals(1, 1, 2, 2, seed=0)
    up = pool.A_dagger(y)
    assert (up[..., 4, :] == 0).all()
    assert close(up[..., :4, :], y.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_keys_kernel():
    """It is 1 at 0 and 0 at other whole numbers, its shifts sum to 1, and it interpolates parabolas; a = -3/4 does not."""
    u = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)
    scalar = [
        1.5 * v**3 - 2.5 * v**2 + 1 if v <= 1 else (-0.5 * v**3 + 2.5 * v**2 - 4 * v + 2 if v < 2 else 0.0)
        for v in u.abs().tolist()
    ]
    assert close(keys_cubic(u), doubles(*scalar))
    assert close(keys_cubic(doubles(0, 1, 2, 3)), doubles(1, 0, 0, 0))
    j = torch.arange(-5, 6, dtype=torch.float64)
    u = torch.linspace(-1, 1, 41, dtype=torch.float64)[:, None]

    def wrong(v: Tensor) -> Tensor:
        v, a = v.abs(), -0.75
        inner, outer = (a + 2) * v**3 - (a + 3) * v**2 + 1, a * (v**3 - 5 * v**2 + 8 * v - 4)
        return torch.where(v <= 1, inner, torch.where(v < 2, outer, 0))

    for power in (0, 1, 2):
        assert close((keys_cubic(j - u) * j**power).sum(1), u[:, 0] ** power)
    assert close(wrong(j - u).sum(1), torch.ones(41))
    assert not close((wrong(j - u) * j**2).sum(1), u[:, 0] ** 2, atol=1e-2)


@pytest.mark.parametrize(("n", "m"), [(8, 4), (9, 3), (7, 3), (5, 1), (6, 6), (16, 2)])
def test_rows_of_the_cubic_matrix(n, m):
    """By the definition, one weight at a time, over an image that goes on as in a mirror."""
    scale, expected = n / m, torch.zeros(m, n, dtype=torch.float64)
    for i in range(m):
        u = (i + 0.5) * scale - 0.5
        for j in range(-4 * n, 5 * n):
            seen = j % (2 * n)
            seen = seen if seen < n else 2 * n - 1 - seen
            expected[i, seen] += keys_cubic(doubles((j - u) / scale))[0]
    expected /= expected.sum(1, keepdim=True)
    assert close(cubic_matrix(n, m), expected)
    assert close(cubic_matrix(n, m).sum(1), torch.ones(m))
    assert close(cubic_matrix(n, m), cubic_matrix(n, m).flip(0, 1))  # no side is preferred


def test_bicubic():
    bicubic = Bicubic(item_shape=(3, 20, 24), factor=2)
    constant = torch.full((1, 3, 20, 24), 0.7, dtype=torch.float64)
    assert close(bicubic.A(constant), constant[..., :10, :12])
    x = normals(2, 3, 20, 24, seed=0)
    theirs = torch.nn.functional.interpolate(x, size=(10, 12), mode="bicubic", antialias=True)
    assert close(bicubic.A(x)[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2])  # at the edges they cut the kernel off
    assert not close(AveragePool(item_shape=(3, 20, 24)).A(x), bicubic.A(x), atol=0.1)
    assert close(Bicubic(item_shape=(3, 20, 24), factor=1).A(x), x)


def test_bad_factors_are_refused():
    for operator in (AveragePool, Bicubic):
        for factor in (0, 5):
            with pytest.raises(
                UserError, match=r"images of 4 x 6 pixels and a factor of .: give a whole number from 1 to 4"
            ):
                operator(item_shape=(1, 4, 6), factor=factor)
        with pytest.raises(UserError, match=r"is for images, given items \(6,\)"):
            operator(item_shape=(6,))


# ---- masks


def picture(*rows: str) -> Tensor:
    """True where a row has a 1."""
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


@pytest.mark.parametrize(
    ("mask", "observed"),
    [
        # the centres of the rows are at 1/12, 3/12, .., 11/12 of the height: the box from 3/12 takes in row 1, not row 4 at 9/12
        (BoxMask(), picture("1111", "1001", "1001", "1001", "1111", "1111")),
        (BoxMask(top=0.0, bottom=1.0, left=0.0, right=0.25), picture(*["0111"] * 6)),
        (BoxMask(top=0.5, bottom=0.5), picture(*["1111"] * 6)),
        (HalfMask(side="top"), picture(*["0000"] * 3, *["1111"] * 3)),
        (HalfMask(side="bottom"), picture(*["1111"] * 3, *["0000"] * 3)),
        (HalfMask(side="left"), picture(*["0011"] * 6)),
        (HalfMask(side="right"), picture(*["1100"] * 6)),
    ],
)
def test_masks_by_hand(mask, observed):
    assert torch.equal(mask((3, 6, 4)), observed)


def test_the_middle_of_an_odd_image_is_observed():
    assert [int(HalfMask(side=side)((1, 5, 7)).sum()) for side in ("top", "bottom", "left", "right")] == [
        21,
        21,
        20,
        20,
    ]


def test_random_masks():
    mask = RandomMask(missing=0.3, seed=1)
    assert torch.equal(mask((3, 10, 7)), mask((3, 10, 7)))
    assert mask((3, 10, 7)).shape == (10, 7)
    assert int(mask((3, 10, 7)).sum()) == 49
    assert not torch.equal(RandomMask(missing=0.3, seed=2)((3, 10, 7)), mask((3, 10, 7)))
    assert mask((20,)).shape == (20,)
    assert [int(RandomMask(missing=share)((20,)).sum()) for share in (0.0, 1.0)] == [20, 0]
    shares = torch.stack([RandomMask(missing=0.3, seed=seed)((1, 3, 3)).double() for seed in range(2000)])
    assert accepts(z_tests(shares, torch.full((9,), 6 / 9)))  # every pixel alike
    assert rejects(z_tests(shares, torch.full((9,), 0.7)))


def test_masks_from_files(tmp_path):
    levels = np.array([[0, 255, 127], [128, 10, 250]], dtype=np.uint8)
    expected = torch.tensor([[False, True, False], [True, False, True]])
    for name, image in {
        "grey": Image.fromarray(levels),
        "colour": Image.fromarray(levels).convert("RGB"),
        "bits": Image.fromarray(np.where(levels > 127, 255, 0).astype(np.uint8)).convert("1"),
    }.items():
        image.save(tmp_path / f"{name}.png")
        inpainting = Inpainting(item_shape=(3, 2, 3), mask=ImageMask(path=tmp_path / f"{name}.png"))
        assert torch.equal(inpainting.observed, expected)
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(levels.astype(np.uint16) * 200).save(tmp_path / "deep.png")
    for name, shape, message in (
        ("none.png", (1, 2, 3), "no mask .*none.png: give the path of a picture of 3 x 2 pixels"),
        ("text.png", (1, 2, 3), "text.png: not a whole picture"),
        ("deep.png", (1, 2, 3), "deep.png: a picture of mode I;16, 8 bits expected"),
        ("grey.png", (1, 3, 2), "grey.png: a mask of 3 x 2 pixels for images of 2 x 3: resize it"),
        ("grey.png", (6,), r"ImageMask is for images .*given items \(6,\): take RandomMask or TensorMask"),
    ):
        with pytest.raises(UserError, match=message):
            Inpainting(item_shape=shape, mask=ImageMask(path=tmp_path / name))


def test_given_masks():
    for observed in (torch.tensor([[1, 0], [0, 1]]), torch.eye(2), torch.eye(2).bool()):
        x = normals(2, 3, 2, 2, seed=0)
        assert torch.equal(Inpainting(item_shape=(3, 2, 2), mask=TensorMask(observed=observed)).A(x), x * torch.eye(2))
    for observed, message in (
        (torch.ones(3, 3), r"a mask \(3, 3\) for items \(3, 2, 2\)"),
        (torch.ones(1, 3, 2, 2), r"a mask \(1, 3, 2, 2\) for items"),
        (torch.full((2, 2), 0.5), "other numbers"),
        (torch.full((2, 2), NAN), "other numbers"),
    ):
        with pytest.raises(UserError, match=message):
            Inpainting(item_shape=(3, 2, 2), mask=TensorMask(observed=observed))


def test_bad_masks_are_refused():
    for make in (
        lambda: BoxMask(top=0.6, bottom=0.5),
        lambda: BoxMask(right=1.5),
        lambda: RandomMask(missing=1.5),
        lambda: Inpainting(item_shape=(5,), mask=HalfMask()),
        lambda: Inpainting(item_shape=(5,)),
        lambda: Inpainting(item_shape=(), mask=RandomMask()),
        lambda: Inpainting(item_shape=(1, 0, 3), mask=RandomMask()),
    ):
        with pytest.raises(UserError):
            make()


def test_nothing_and_everything_observed():
    x, y = normals(2, 1, 3, 3, seed=0), normals(2, 1, 3, 3, seed=1)
    nothing, everything = (Inpainting(item_shape=(1, 3, 3), mask=RandomMask(missing=m)) for m in (1.0, 0.0))
    assert (nothing.A_dagger(y) == 0).all()
    assert torch.equal(nothing.prox_l2(x, y, 3.0), x)
    assert torch.equal(everything.A_dagger(y), y)
    assert close(everything.prox_l2(x, y, 3.0), (x + 3 * y) / 4)


# ---- matrix, grey


def test_grey():
    x = normals(2, 3, 4, 5, seed=0)
    assert close(Grey(item_shape=(3, 4, 5)).A(x)[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])
    assert close(Grey(item_shape=(3, 4, 5), weights=(1 / 3,) * 3).A(x)[:, 0], x.mean(1))
    y = normals(2, 1, 4, 5, seed=1)
    assert close(Grey(item_shape=(3, 4, 5), weights=(1 / 3,) * 3).A_dagger(y), y.expand(2, 3, 4, 5))
    for weights in ((1.0,), (0.0, 0.0, 0.0)):
        with pytest.raises(UserError, match=r"images of 3 channels and weights .*: give 3 weights, and not only zeros"):
            Grey(item_shape=(3, 4, 5), weights=weights)


def test_matrix():
    m, x, y = normals(4, 6, seed=0), normals(3, 1, 2, 3, seed=1), normals(3, 4, seed=2)
    operator = Matrix(item_shape=(1, 2, 3), matrix=m)
    assert close(operator.A(x), np.einsum("md,bd->bm", m.numpy(), x.reshape(3, 6).numpy()))
    assert close(operator.A_dagger(y).flatten(1), y.numpy() @ np.linalg.pinv(m.numpy()).T)
    z = x.reshape(3, 6)
    solved = np.linalg.solve(np.eye(6) + 2 * (m.T @ m).numpy(), (z + 2 * y @ m).T.numpy()).T
    assert close(operator.prox_l2(x, y, 2.0).flatten(1), solved)
    for bad in (torch.ones(4, 5), torch.ones(6), torch.ones(0, 6)):
        with pytest.raises(UserError, match=r"for items \(1, 2, 3\): give one of shape \(m, 6\)"):
            Matrix(item_shape=(1, 2, 3), matrix=bad)
    with pytest.raises(UserError, match="NaN"):
        Matrix(item_shape=(2,), matrix=torch.tensor([[1.0, NAN]]))


def test_the_prox_is_the_mean_of_a_gaussian_posterior():
    """x ~ N(z, r^2 I), y ~ N(A x, sigma^2 I), gamma = r^2 / sigma^2: conditioned by the joint covariance."""
    a, z, y, r, sigma = normals(3, 5, seed=0), normals(1, 5, seed=1), normals(1, 3, seed=2), 0.7, 0.2
    gain = r**2 * a.T @ torch.linalg.inv(r**2 * a @ a.T + sigma**2 * torch.eye(3).double())
    operator = Matrix(item_shape=(5,), matrix=a)
    assert close(operator.prox_l2(z, y, r**2 / sigma**2), z + (y - z @ a.T) @ gain.T)
    assert not close(operator.prox_l2(z, y, sigma**2 / r**2), z + (y - z @ a.T) @ gain.T, atol=0.1)


# ---- not linear


def test_hdr_clip_by_hand():
    x = doubles(-1, -0.5, -0.2, 0.0, 0.4, 0.6)[None].requires_grad_()
    y = HDRClip(item_shape=(6,), gain=2.0).A(x)
    assert close(y, doubles(-1, -1, -0.4, 0, 0.8, 1)[None])
    assert close(
        torch.autograd.grad(y.sum(), x)[0], doubles(0, 2, 2, 2, 2, 0)[None]
    )  # at the edge itself, the inside's
    with pytest.raises(UserError, match="gain"):
        HDRClip(item_shape=(6,), gain=0.0)


def test_phase_retrieval():
    x = normals(2, 3, 4, 5, seed=0)
    operator = PhaseRetrieval(item_shape=(3, 4, 5), oversampling=1.5)
    assert operator.y_shape == (3, 6, 8)
    assert close(operator.A(x), np.abs(np.fft.fft2(x.numpy(), s=(6, 8))) / math.sqrt(48))
    for same in (-x, x.flip(-1, -2)):
        assert close(operator.A(same), operator.A(x))
    assert not close(operator.A(x.flip(-1)), operator.A(x), atol=1e-2)
    assert close(operator.A(x).square().sum((-1, -2)), x.square().sum((-1, -2)))  # the transform is unitary
    vector = PhaseRetrieval(item_shape=(7,))
    assert close(vector.A(x[:, 0, 0, :1].repeat(1, 7)), np.abs(np.fft.fft(x[:, 0, 0, :1].repeat(1, 7), n=14)) / 14**0.5)
    zero = torch.zeros(1, 7, dtype=torch.float64, requires_grad=True)
    assert (torch.autograd.grad(vector.A(zero).sum(), zero)[0] == 0).all()
    with pytest.raises(UserError, match="oversampling"):
        PhaseRetrieval(item_shape=(7,), oversampling=0.5)


@pytest.mark.parametrize("levels", [2, 3, 8, 256])
def test_quantisation_takes_the_nearest_level(levels):
    x = (normals(1, 500, seed=0)).requires_grad_()
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    nearest = grid[(x.detach().clamp(-1, 1)[0, :, None] - grid).abs().argmin(1)][None]
    y = Quantisation(item_shape=(500,), levels=levels).A(x)
    assert close(y, nearest)
    assert close(torch.autograd.grad(y.sum(), x)[0], (x.abs() <= 1).double())
    with pytest.raises(UserError, match="2 levels"):
        Quantisation(item_shape=(500,), levels=1)


def test_block_quantisation_against_scipy():
    x = normals(2, 3, 16, 24, seed=0).requires_grad_()
    expected = np.empty((2, 3, 16, 24))
    for i in range(0, 16, 8):
        for j in range(0, 24, 8):
            block = x.detach()[..., i : i + 8, j : j + 8].numpy()
            rounded = np.round(scipy.fft.dctn(block, axes=(-2, -1), norm="ortho") / 0.7) * 0.7
            expected[..., i : i + 8, j : j + 8] = scipy.fft.idctn(rounded, axes=(-2, -1), norm="ortho")
    y = BlockQuantisation(item_shape=(3, 16, 24), step=0.7).A(x)
    assert close(y, expected)
    v = normals(2, 3, 16, 24, seed=1)
    assert close(torch.autograd.grad((y * v).sum(), x)[0], v)  # straight through
    assert close(cosine_matrix(8) @ cosine_matrix(8).T, torch.eye(8))


def test_block_quantisation_fills_up_what_is_no_multiple_of_eight():
    x = normals(1, 1, 5, 11, seed=0)
    filled = torch.nn.functional.pad(x, (0, 5, 0, 3), mode="replicate")
    small, large = BlockQuantisation(item_shape=(1, 5, 11)), BlockQuantisation(item_shape=(1, 8, 16))
    assert close(small.A(x), large.A(filled)[..., :5, :11])
    assert close(BlockQuantisation(item_shape=(1, 5, 11), step=1e-9).A(x), x, atol=1e-7)
    with pytest.raises(UserError, match="step"):
        BlockQuantisation(item_shape=(1, 5, 11), step=0.0)


# ---- what is common


def test_wrong_shapes_are_told():
    pool = AveragePool(item_shape=(1, 8, 8))
    for call, message in (
        (lambda: pool.A(torch.zeros(2, 1, 9, 8)), r"Pool for items \(1, 8, 8\), given \(2, 1, 9, 8\): give \(batch, 1, 8, 8\)"),
        (lambda: pool.A_dagger(torch.zeros(2, 1, 8, 8)), r"measurements \(1, 4, 4\), given \(2, 1, 8, 8\): give \(batch, 1"),
        (lambda: pool.A(torch.zeros(2, 1, 8, 8).long()), "given torch.int64: give floating-point numbers"),
        (lambda: pool.prox_l2(torch.zeros(2, 1, 8, 8), torch.zeros(3, 1, 4, 4), 1.0), "2 items and 3 measurements"),
        (lambda: pool.prox_l2(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 4, 4), -1.0), "gamma is a finite number from 0 up"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            call()


def test_what_is_linear():
    def nothing(*_: object) -> None:
        return None

    assert is_linear(Grey(item_shape=(3, 2, 2)))
    assert not is_linear(HDRClip(item_shape=(3, 2, 2)))
    foreign = SimpleNamespace(A=nothing, A_adjoint=nothing, A_dagger=nothing, prox_l2=nothing)
    assert is_linear(foreign)
    for name in ("A_adjoint", "A_dagger", "prox_l2"):
        assert not is_linear(SimpleNamespace(**{k: v for k, v in vars(foreign).items() if k != name}))
        assert not is_linear(SimpleNamespace(**{**vars(foreign), name: None}))


def test_observations_are_checked():
    operator, foreign = AveragePool(item_shape=(1, 4, 4)), SimpleNamespace(A=lambda x: x)
    y = torch.zeros(3, 1, 2, 2)
    check_observation(operator, y)
    check_observation(foreign, y)
    with pytest.raises(UserError, match=r"given \(3, 1, 2, 1\)"):
        check_observation(operator, y[..., :1])
    for bad in (NAN, math.inf):
        y = torch.zeros(3, 1, 2, 2)
        y[1, 0, 1, 1] = bad
        for either in (operator, foreign):
            with pytest.raises(
                UserError, match="1 of 3 measurements hold NaN or infinity, finite numbers expected: set"
            ):
                check_observation(either, y)


# ---- conjugate gradients


def test_conjugate_gradients_solve_item_by_item():
    """Items that differ by factors of 1e8 are all solved, each as if it were alone."""
    a = normals(6, 6, seed=0)
    m, b = a @ a.T + torch.eye(6), normals(3, 6, seed=1) * doubles(1, 1e-8, 0)[:, None]
    solved = conjugate_gradients(lambda x: x @ m, b, tolerance=1e-12, iterations=100)
    assert torch.allclose(solved, torch.linalg.solve(m, b.T).T, rtol=1e-9, atol=0)
    for i in range(3):
        alone = conjugate_gradients(lambda x: x @ m, b[i : i + 1], tolerance=1e-12, iterations=100)
        assert torch.allclose(alone, solved[i : i + 1], rtol=1e-12, atol=0)


def test_what_does_not_converge_is_told():
    m, b = torch.logspace(0, 6, 40, dtype=torch.float64), normals(2, 40, seed=0)
    with pytest.warns(
        UserWarning, match=r"2 of 2 items have a residual of up to .* after 5 iterations, 1.0e-10 expected: raise"
    ):
        conjugate_gradients(lambda x: x * m, b, tolerance=1e-10, iterations=5)


def test_nan_comes_out_as_nan():
    b = torch.ones(2, 3, dtype=torch.float64)
    b[1, 1] = NAN
    solved = conjugate_gradients(lambda x: 2 * x, b, tolerance=1e-10, iterations=20)
    assert close(solved[0], torch.full((3,), 0.5))
    assert solved[1].isnan().all()


def test_what_cannot_be_reached_in_single_precision_does_no_harm():
    """Where the matrix is singular, rounding leads away after a while; the best is kept."""
    a = normals(8, 3, seed=0).float()
    m, b = a @ a.T, normals(2, 8, seed=1).float() @ a @ a.T
    solved = conjugate_gradients(lambda x: x @ m, b, tolerance=0.0, iterations=300)
    assert ((solved @ m - b).norm(dim=1) < 1e-4 * b.norm(dim=1)).all()


def test_gradients_of_the_iteration_are_those_of_the_closed_form():
    class Iterated(Matrix):
        tolerance = 1e-13
        prox_l2 = LinearOperator.prox_l2
        A_dagger = LinearOperator.A_dagger

    a = normals(3, 5, seed=0)
    z, y, v = normals(2, 5, seed=1), normals(2, 3, seed=2), normals(2, 5, seed=3)
    y[1] = 0  # an item that is solved at once
    gradients = []
    for kind in (Matrix, Iterated):
        operator = kind(item_shape=(5,), matrix=a)
        at = z.clone().requires_grad_(), y.clone().requires_grad_()
        value = (operator.prox_l2(*at, 2.0) * v).sum() + (operator.A_dagger(at[1]) * v).sum()
        gradients.append(torch.autograd.grad(value, at))
    closed, iterated = gradients
    assert close(iterated[0], closed[0], atol=1e-8)
    assert close(iterated[1][0], closed[1][0], atol=1e-8)
    assert all(gradient.isfinite().all() for gradient in iterated)


# ---- noise


@pytest.mark.parametrize("noise", [Gaussian(sigma=0.3), Poisson(gain=20.0)], ids=lambda noise: type(noise).__name__)
def test_moments_of_noise(noise):
    """Mean and variance of every entry; a variance wrong by a fifth is rejected."""
    clean = doubles(-0.9, -0.2, 0.5, 1.0).expand(20000, 4)
    y = noise.sample(clean, generator(0))
    variance = torch.full((4,), 0.09) if isinstance(noise, Gaussian) else 2 / 20 * (clean[0] + 1)
    squared = (y - clean).square()
    assert accepts(z_tests(y, clean[0]))
    assert accepts(z_tests(squared, variance))
    assert rejects(z_tests(squared, 1.2 * variance))
    assert rejects(z_tests(y, clean[0] + 0.02))


def test_counts_are_poisson():
    y = Poisson(gain=5.0).sample(torch.full((20000, 1), 0.2, dtype=torch.float64), generator(1))
    counts = (5 * (y[:, 0] + 1) / 2).numpy()
    assert np.allclose(counts, counts.round())
    seen = np.bincount(counts.round().astype(int), minlength=12)
    for rate, judge in ((3.0, accepts), (3.3, rejects)):
        law = stats.poisson(rate)
        expected = 20000 * np.append(law.pmf(np.arange(11)), law.sf(10))
        assert judge(stats.chisquare(np.append(seen[:11], seen[11:].sum()), expected).pvalue)


@pytest.mark.parametrize("noise", [Gaussian(sigma=0.3), NoNoise(), Poisson(gain=20.0)], ids=lambda n: type(n).__name__)
def test_draws_of_noise(noise):
    clean = 0.5 * normals(3, 1, 2, 2, seed=0).clamp(-2, 2)
    before = torch.get_rng_state()
    for dtype in (torch.float32, torch.float64):
        y = noise.sample(clean.to(dtype), generator(0))
        assert y.dtype == dtype
        assert y.shape == clean.shape
        assert torch.equal(y, noise.sample(clean.to(dtype), generator(0)))
    together = noise.sample(clean, generators(1, 2, 3))
    assert torch.equal(together[1:2], noise.sample(clean[1:2], generators(2)))
    assert torch.equal(before, torch.get_rng_state())
    assert (Poisson(gain=3.0).sample(torch.full((1, 5), -7.0), generator(0)) == -1).all()  # no light, no photon


def test_log_likelihoods_are_those_of_scipy():
    clean = torch.rand(4, 3, 1, 2, 2, generator=generator(0), dtype=torch.float64) * 2 - 1
    y = Gaussian(sigma=0.3).sample(clean[0], generator(1))
    expected = stats.norm.logpdf(y.numpy(), clean.numpy(), 0.3).sum((2, 3, 4))
    assert close(Gaussian(sigma=0.3).log_likelihood(y, clean), expected)
    noise = Poisson(gain=20.0)
    y = noise.sample(clean[0], generator(1))
    counts = (20 * (y + 1) / 2).round().numpy()
    expected = stats.poisson.logpmf(counts, (20 * (clean + 1) / 2).numpy()).sum((2, 3, 4))
    assert close(noise.log_likelihood(y, clean), expected, atol=1e-9)
    assert close(noise.log_likelihood(y.float(), clean.float()), expected, atol=1e-2)
    assert not close(Poisson(gain=10.0).log_likelihood(y, clean), expected, atol=1.0)


@pytest.mark.parametrize("noise", [Gaussian(sigma=0.3), Poisson(gain=20.0)], ids=lambda noise: type(noise).__name__)
def test_axes_of_a_log_likelihood(noise):
    clean = torch.rand(5, 4, 3, 2, generator=generator(0), dtype=torch.float64)
    y = noise.sample(clean[0, 0], generator(1))  # (3, 2): a batch of three
    found = noise.log_likelihood(y, clean)
    assert found.shape == (5, 4, 3)
    assert close(found[2, 1], noise.log_likelihood(y, clean[2, 1]))
    assert close(found[2, 1, 2], noise.log_likelihood(y[2:], clean[2, 1, 2:])[0])
    one = noise.log_likelihood(y[:1], clean)  # one observation for all
    assert close(one[..., 1], noise.log_likelihood(y[:1].expand(3, 2), clean)[..., 1])
    for bad_y, bad_clean in ((y[:2], clean), (y[:, :1], clean), (y, clean[0, 0, 0]), (y[None], clean[0, 0])):
        with pytest.raises(UserError, match=r"give .batch, .... and .draws, batch, ...."):
            noise.log_likelihood(bad_y, bad_clean)


def test_the_dark_has_a_likelihood_and_gradients():
    clean = doubles(-1.0, -1.5, -1.0, 0.0)[:, None].requires_grad_()
    y = doubles(-1.0, -1.0, 1.0, 0.0)[:, None]
    found = Poisson(gain=2.0).log_likelihood(y, clean)
    assert close(found[[0, 1, 3]], doubles(0, 0, stats.poisson.logpmf(1, 1)))
    assert found[2] == -math.inf
    gradient = torch.autograd.grad(found[[0, 1, 3]].sum(), clean)[0]
    assert gradient.isfinite().all()
    assert gradient[1] == 0


def test_noise_that_cannot_be():
    with pytest.raises(UserError, match=r"sigma > 0, not 0.0: take NoNoise"):
        Gaussian(sigma=0.0)
    with pytest.raises(UserError, match="gain above 0"):
        Poisson(gain=0.0)
    with pytest.raises(UserError, match="y has values down to -2"):
        Poisson(gain=3.0).log_likelihood(torch.full((1, 2), -2.0), torch.zeros(1, 2))
    with pytest.raises(
        UserError, match=r"take NullSpace or DPS, which need none, or give a small noise, Gaussian\(sigma=...\)"
    ):
        NoNoise().log_likelihood(torch.zeros(1, 2), torch.zeros(1, 2))


def test_a_mask_of_the_users_own():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Chessboard(Mask):
        def __call__(self, item_shape: tuple[int, ...]) -> Tensor:
            return (torch.arange(item_shape[1])[:, None] + torch.arange(item_shape[2])) % 2 == 0

    x = normals(1, 1, 3, 3, seed=0)
    assert int((Inpainting(item_shape=(1, 3, 3), mask=Chessboard()).A(x) != 0).sum()) == 5
