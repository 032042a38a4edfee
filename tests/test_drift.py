"""The drifting field: its structure, its links to scores, classifiers and optimal transport, and that blocks change nothing."""

import math
import resource

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fewstep.clouds import exp, log_sum_exp
from fewstep.drift import DriftingField
from fewstep.errors import UserError
from fewstep.kernels import Gaussian, InverseMultiquadric, Laplace, Matern
from fewstep.shapes import distances
from problems import doubles, generator, normals

KERNELS = [Gaussian(bandwidth=0.9), Laplace(bandwidth=0.6), Matern(bandwidth=0.8), InverseMultiquadric(bandwidth=0.9)]
EVERY = ["split", "joint", "both", "sharp", "sinkhorn"]
every_normalisation = pytest.mark.parametrize("normalisation", EVERY)
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)


def clouds(n=7, m=9, k=8, d=3):
    return normals(n, d, seed=0), normals(m, d, seed=1) + 0.5, normals(k, d, seed=2) - 0.3


def log_density(kernel, x: Tensor, y: Tensor, sharp=False) -> Tensor:
    """`log sum_j k(x_i, y_j)`."""
    r = distances(x, y)
    return (kernel.log_sharp(r) if sharp else kernel.log_k(r)).logsumexp(-1)


def gradient(function, x: Tensor) -> Tensor:
    at = x.clone().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


# --- what the fields are


@pytest.mark.parametrize("d", [1, 2, 8, 64])
def test_a_gaussian_field_is_a_difference_of_scores(d):
    """`V = h^2 (grad log p_h - grad log q_h)` of the kernel densities, to 1e-10; a Laplace field is not."""
    kernel, (x, pos, neg) = Gaussian(bandwidth=0.7 * d**0.5), clouds(d=d)
    scores = gradient(lambda z: log_density(kernel, z, pos) - log_density(kernel, z, neg), x)
    field = DriftingField(kernel=kernel, normalisation="split")
    assert_close(field(x, pos, neg), kernel.bandwidth**2 * scores, atol=1e-10, rtol=0)
    other = DriftingField(kernel=Laplace(bandwidth=0.7 * d**0.5), normalisation="split")
    assert (other(x, pos, neg) - kernel.bandwidth**2 * scores).abs().max() > 1e-3


def test_a_joint_gaussian_field_is_the_gradient_of_a_classifier():
    """`V = h^2 grad D`, `D = P p / (P p + M q)`, to 1e-12; split by rows alone it is not."""
    kernel, (x, pos, neg) = Gaussian(bandwidth=0.9), clouds()
    share = gradient(lambda z: (log_density(kernel, z, pos) - log_density(kernel, z, neg)).sigmoid(), x)
    assert_close(DriftingField(kernel=kernel, normalisation="joint")(x, pos, neg), 0.81 * share, atol=1e-12, rtol=0)
    assert (DriftingField(kernel=kernel, normalisation="split")(x, pos, neg) - 0.81 * share).abs().max() > 0.1


@every_kernel
def test_a_sharp_field_is_a_gradient(kernel):
    """`V = grad log(p_# / q_#)`, to 1e-10, for every kernel: so its Jacobian is symmetric, and that of `split` is not."""
    x, pos, neg = clouds()
    expected = gradient(lambda z: log_density(kernel, z, pos, True) - log_density(kernel, z, neg, True), x)
    assert_close(DriftingField(kernel=kernel, normalisation="sharp")(x, pos, neg), expected, atol=1e-10, rtol=0)
    if not isinstance(kernel, Gaussian):
        assert (DriftingField(kernel=kernel, normalisation="split")(x, pos, neg) - expected).abs().max() > 1e-3


@every_kernel
@pytest.mark.parametrize("normalisation", ["joint", "both"])
def test_the_product_structure(kernel, normalisation):
    """`V = p q (C+ - C-)` from affinities written out, to 1e-12."""
    x, pos, neg = clouds()
    logits = torch.cat([kernel.log_k(distances(x, y)) for y in (pos, neg)], dim=1)
    log_a = logits - logits.logsumexp(1, keepdim=True)
    if normalisation == "both":
        log_a = 0.5 * log_a + 0.5 * (logits - logits.logsumexp(0, keepdim=True))
    a, b = log_a.exp().split([len(pos), len(neg)], dim=1)
    p, q = a.sum(1, keepdim=True), b.sum(1, keepdim=True)
    expected = p * q * (a @ pos / p - b @ neg / q)
    assert_close(DriftingField(kernel=kernel, normalisation=normalisation)(x, pos, neg), expected, atol=1e-12, rtol=0)
    assert (expected - (a @ pos / p - b @ neg / q)).abs().max() > 0.1


@every_normalisation
def test_the_field_turns_round_and_rests(normalisation):
    """Positives and negatives exchanged it is the opposite; of equal clouds it is 0; moved and turned it goes along."""
    x, pos, neg = clouds(m=8, k=8)
    field = DriftingField(kernel=Laplace(bandwidth=0.6), normalisation=normalisation, exclude_self=False)
    there, back = field(x, pos, neg), field(x, neg, pos)
    assert_close(there, -back, atol=1e-12, rtol=0)
    assert_close(field(x, pos, pos), torch.zeros_like(x), atol=1e-12, rtol=0)
    assert there.norm(dim=1).min() > 1e-3
    rotation, shift = torch.linalg.qr(normals(3, 3, seed=5)).Q, doubles(30, -20, 10)
    moved = field(*(z @ rotation + shift for z in (x, pos, neg)))
    assert_close(moved, there @ rotation, atol=1e-9, rtol=0)


def test_one_round_of_sinkhorn_is_a_mean_shift_and_many_are_transport():
    """T = 1: the Gaussian split field with `h^2 = eps`. T = 1000: `-n grad S_eps` to 1e-5, by autograd through the dual."""
    x, pos = normals(6, 2, seed=0), normals(6, 2, seed=1) + 0.7
    eps = 0.5
    kernel = Gaussian(bandwidth=eps**0.5)
    one = DriftingField(kernel=kernel, normalisation="sinkhorn")(x, pos)
    split = DriftingField(kernel=kernel, normalisation="split", exclude_self=False)(x, pos)
    assert_close(one, split, atol=1e-12, rtol=0)

    def entropic(a, b):
        """`OT_eps` of uniform clouds by the dual; by the envelope theorem only the last evaluation has a gradient."""
        n, m = len(a), len(b)
        with torch.no_grad():
            cost, f, g = distances(a, b).square() / 2, torch.zeros(n).double(), torch.zeros(m).double()
            for _ in range(3000):
                f = -eps * ((g - cost) / eps - torch.tensor(float(m)).log()).logsumexp(1)
                g = -eps * ((f[:, None] - cost) / eps - torch.tensor(float(n)).log()).logsumexp(0)
        cost = (a[:, None] - b).square().sum(-1) / 2
        plan = ((f[:, None] + g - cost) / eps).exp() / (n * m)
        return f.mean() + g.mean() - eps * (plan.sum() - 1)

    at = x.clone().requires_grad_()
    divergence = entropic(at, pos) - 0.5 * entropic(at, at)
    expected = -len(x) * torch.autograd.grad(divergence, at)[0]
    many = DriftingField(kernel=kernel, normalisation="sinkhorn", rounds=1000)(x, pos)
    assert_close(many, expected, atol=1e-5, rtol=0)
    assert (one - expected).abs().max() > 0.01


# --- options


def test_a_point_does_not_see_itself():
    """Masked, the negatives of a point are the others; not masked, it is drawn to itself and the field is smaller."""
    x, pos, _ = clouds()
    for normalisation in ("split", "joint", "both", "sharp"):
        field = DriftingField(kernel=Laplace(bandwidth=0.3), normalisation=normalisation)
        open_ = DriftingField(kernel=Laplace(bandwidth=0.3), normalisation=normalisation, exclude_self=False)
        assert (field(x, pos) - open_(x, pos)).abs().max() > 1e-3
        assert_close(open_(x, pos), open_(x, pos, x))
    split = DriftingField(kernel=Laplace(bandwidth=0.3), normalisation="split")(x, pos)
    for i in range(len(x)):
        others = torch.cat([x[:i], x[i + 1 :]])
        alone = DriftingField(kernel=Laplace(bandwidth=0.3), normalisation="split")(x[i : i + 1], pos, others)
        assert_close(split[i : i + 1], alone)


@pytest.mark.parametrize("normalisation", ["split", "sharp"])
def test_whole_weights_are_repetitions(normalisation):
    x, pos, neg = clouds()
    counts = torch.tensor([2, 1, 3, 1, 1, 0, 2, 1, 1])
    field = DriftingField(kernel=Laplace(bandwidth=0.6), normalisation=normalisation)
    assert_close(field(x, pos, neg, counts.double()), field(x, pos.repeat_interleave(counts, 0), neg))
    assert (field(x, pos, neg, counts.double()) - field(x, pos, neg)).abs().max() > 1e-3


def test_weights_multiply_after_the_softmaxes():
    """As in the authors' code: the normalisers do not see them. Twice the negatives' weight doubles the whole field."""
    x, pos, neg = clouds()
    for normalisation in ("joint", "both"):
        field = DriftingField(kernel=Laplace(bandwidth=0.6), normalisation=normalisation)
        assert_close(field(x, pos, neg, None, torch.full((8,), 2.0)), 2 * field(x, pos, neg))


def test_the_floor_keeps_the_field_alive_in_float32():
    """A swarm far from the data: without the floor it underflows to 0, with it the field is finite, not 0, and points home."""
    x, pos = normals(16, 2, seed=0).float() + 40, normals(16, 2, seed=1).float()
    plain = DriftingField(kernel=Laplace(bandwidth=0.2))(x, pos)
    floored = DriftingField(kernel=Laplace(bandwidth=0.2), floor=1e-6)(x, pos)
    assert plain.isfinite().all()
    assert plain.norm(dim=1).max() < 1e-9
    assert floored.isfinite().all()
    assert floored.norm(dim=1).min() > 1e-5
    assert ((floored * -x).sum(1) > 0).all()
    split = DriftingField(kernel=Laplace(bandwidth=0.2), normalisation="split")(x, pos)
    assert (split.norm(dim=1) > 10).all()  # by itself each cloud has a nearest point however far it is


def test_the_floor_draws_a_narrow_cloud_together():
    """Narrower than its distance to the data: its own field spreads it; with every affinity at the floor the data are one point.

    `test_recipes.py` has the same of a new network, whose training then ends in one image (docs/drifting.md).
    """
    y = normals(64, 64, seed=0)
    x = y.mean(0) + 0.3 * normals(64, 64, seed=1)
    rho = distances(x, torch.cat([x, y])).mean().item()

    def spreading(floor: float) -> float:
        drift = DriftingField(kernel=Laplace(bandwidth=0.05 * rho), floor=floor)(x, y)
        centred, drift = x - x.mean(0), drift - drift.mean(0)
        return ((centred * drift).sum() / (centred.norm() * drift.norm())).item()

    assert spreading(0.0) > 0.2
    assert spreading(1e-6) < -0.2


def test_the_bias_of_a_centroid_falls_twice_as_fast_corrected():
    """N(0, 1) seen from .8 by a Gaussian kernel of variance .25, centroid .64: slopes of its log bias in the number of points."""
    at, zero, runs, slopes = doubles(0.8)[:, None], torch.zeros(1, 1).double(), 800_000, []
    for corrected, sizes in ((False, (16, 32)), (True, (8, 16))):
        field = DriftingField(
            kernel=Gaussian(bandwidth=0.5), normalisation="split", correct_bias=corrected, block=1 << 24
        )
        biases = []
        for m in sizes:
            found = field(at.expand(runs, 1, 1), normals(runs, m, 1, seed=m), zero.expand(runs, 1, 1))
            biases.append(abs(found.mean().item() - 0.64))
        slopes.append((doubles(*biases).log().diff() / torch.tensor(2.0).log()).mean().item())
    assert -1.3 < slopes[0] < -0.9
    assert slopes[1] < -1.6  # at these numbers faster than its -2: the next order has the other sign


# --- blocks, batches, precision


@every_normalisation
@pytest.mark.parametrize("size", [1, 300])
def test_blocks_change_nothing(normalisation, size):
    x, pos, neg = normals(50, 4, seed=0), normals(70, 4, seed=1), normals(60, 4, seed=2)
    rounds = 4 if normalisation == "sinkhorn" else 1
    whole, parts = (
        DriftingField(kernel=Laplace(bandwidth=0.6), normalisation=normalisation, rounds=rounds, block=block)
        for block in (1 << 22, size)
    )
    assert_close(parts(x, pos, neg), whole(x, pos, neg), atol=1e-12, rtol=0)
    assert_close(parts(x, pos), whole(x, pos), atol=1e-12, rtol=0)  # the mask knows its rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exponentials_are_those_of_torch_until_they_underflow(dtype):
    low = math.log(torch.finfo(dtype).tiny)
    kept = torch.linspace(low + 2, 50, 1000, dtype=dtype)
    assert_close(exp(kept), kept.exp(), atol=0, rtol=1e-6 if dtype == torch.float32 else 1e-13)
    gone = torch.tensor([low + 0.5, low, low - 5, 10 * low, -math.inf], dtype=dtype)
    assert (exp(gone) == 0).all()  # exactly: a floor would pull
    assert exp(torch.tensor([math.nan], dtype=dtype)).isnan().all()
    rows = torch.randn(20, 30, dtype=dtype, generator=generator(0)) * torch.logspace(-2, 4, 20, dtype=dtype)[:, None]
    rows[3] = -math.inf
    rows[4, 5:] = -math.inf
    for dim in (0, 1):
        assert_close(log_sum_exp(rows, dim), rows.logsumexp(dim, keepdim=True), rtol=1e-6, atol=1e-5)
    rows[7, 7] = math.nan
    assert log_sum_exp(rows, 1)[7].isnan().all()


def test_a_single_point_sees_the_others_and_not_itself():
    """Its column has no row at all."""
    x, pos, neg = clouds()
    for floor in (0.0, 1e-6):
        field = DriftingField(kernel=Laplace(bandwidth=0.6), floor=floor)
        found = field(x[:1], pos, torch.cat([x[:1], neg]), own=True)
        assert found.isfinite().all()
        assert_close(found, field(x[:1], pos, neg), atol=1e-12, rtol=0)


@every_normalisation
def test_groups_are_by_themselves(normalisation):
    x, pos, neg = normals(3, 10, 2, seed=0), normals(3, 12, 2, seed=1), normals(3, 11, 2, seed=2)
    field = DriftingField(kernel=Laplace(bandwidth=0.6), normalisation=normalisation, rounds=1)
    together = field(x, pos, neg)
    for i in range(3):
        assert_close(field(x[i], pos[i], neg[i]), together[i], atol=1e-12, rtol=0)


def test_bfloat16_is_computed_in_float32():
    x, pos, neg = (z.bfloat16() for z in clouds(n=40, m=50, k=45))
    field = DriftingField(kernel=Laplace(bandwidth=0.6))
    found = field(x, pos, neg)
    assert found.dtype == torch.bfloat16
    assert_close(found, field(x.float(), pos.float(), neg.float()).bfloat16())


def test_large_clouds_take_little_memory():
    """30 000 by 30 000 distances would take 3.6 GB in float32."""
    x, pos = normals(30_000, 2, seed=0).float()[:2000], normals(30_000, 2, seed=1).float()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    DriftingField(kernel=Laplace(bandwidth=0.2), block=1 << 20)(x, pos)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


# --- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f(normals(1, 2, seed=0), normals(4, 2, seed=1)), "needs 2 or more"),
        (lambda f: f(normals(4, 2, seed=0), normals(4, 3, seed=1)), "all alike but points"),
        (lambda f: f(normals(4, 2, seed=0), normals(0, 2, seed=1)), "needs 1 or more"),
        (lambda f: f(normals(4, 2, seed=0), normals(4, 2, seed=1) * torch.nan), "NaN or infinity"),
        (lambda f: f(normals(4, 2, seed=0), normals(4, 2, seed=1), None, -torch.ones(4)), "not negative"),
        (lambda f: DriftingField(kernel=KERNELS[0], rounds=3), "sinkhorn"),
        (lambda f: DriftingField(kernel=KERNELS[0], normalisation="split", floor=0.1), "both"),
        (lambda f: DriftingField(kernel=KERNELS[0], correct_bias=True), "split"),
    ],
)
def test_bad_clouds_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make(DriftingField(kernel=Laplace(bandwidth=0.5)))


@every_normalisation
def test_identical_points_are_no_accident(normalisation):
    """All points in one place: the field is 0 and finite."""
    x = torch.ones(5, 2).double()
    found = DriftingField(kernel=Laplace(bandwidth=0.5), normalisation=normalisation)(x, x.clone())
    assert_close(found, torch.zeros_like(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("normalisation", ["split", "joint", "both", "sharp", "sinkhorn"])
def test_no_more_than_a_block_is_held(monkeypatch, normalisation):
    """Of groups, rows and columns together; a single row of all groups at the least. Only what fits is kept for other kernels."""
    seen = []

    def spy(x, y):
        found = distances(x, y)
        seen.append(found.numel())
        return found

    monkeypatch.setattr("fewstep.clouds.distances", spy)
    x, y = normals(3, 40, 2, seed=0), normals(3, 50, 2, seed=1)
    field = DriftingField(kernel=Laplace(bandwidth=0.5), normalisation=normalisation, block=3000)
    pair = field.pair(x, y)
    assert pair.pos.kept is None
    streamed = field.of(pair)
    assert max(seen) <= 3000
    assert sum(seen) >= 3 * 40 * 90
    seen.clear()
    dense = DriftingField(kernel=field.kernel, normalisation=normalisation)(x, y)
    assert max(seen) == 3 * 40 * 50
    assert len(seen) == 2  # the distances to each cloud, once
    assert_close(streamed, dense, atol=1e-12, rtol=1e-9)


def test_the_floor_is_under_the_weights_and_not_under_own_pairs():
    """By hand: `w max(a, sqrt(floor))`, and 0 where a point would see itself."""
    x, pos = normals(5, 2, seed=0), normals(6, 2, seed=1) + 9  # far: everything is at the floor
    w = torch.linspace(0.5, 3, 6, dtype=torch.float64)
    floor = 1e-4
    field = DriftingField(kernel=Laplace(bandwidth=0.05), floor=floor)
    logits = torch.cat([-distances(x, pos), -distances(x, x)], dim=1) / 0.05
    logits[torch.arange(5), 6 + torch.arange(5)] = -torch.inf
    a = (logits - 0.5 * logits.logsumexp(1, keepdim=True) - 0.5 * logits.logsumexp(0, keepdim=True)).exp()
    a = a.clamp_min(floor**0.5)
    a[torch.arange(5), 6 + torch.arange(5)] = 0
    plus, minus = a[:, :6] * w, a[:, 6:]
    expected = minus.sum(1, keepdim=True) * (plus @ pos) - plus.sum(1, keepdim=True) * (minus @ x)
    assert_close(field(x, pos, positive_weights=w), expected, rtol=1e-9, atol=1e-12)


def test_weights_of_sinkhorn_are_copies():
    """A point of weight 2 beside those of weight 1 is two points, in rows and in columns, at 1 and at 7 half-steps."""
    x, pos = normals(5, 2, seed=0), normals(4, 2, seed=1)
    w = torch.tensor([1.0, 2.0, 1.0, 1.0]).double()
    for rounds in (1, 7):
        field = DriftingField(kernel=Gaussian(bandwidth=0.8), normalisation="sinkhorn", rounds=rounds)
        weighted = field(x, pos, positive_weights=w)
        assert_close(weighted, field(x, pos[[0, 1, 1, 2, 3]]), atol=1e-10, rtol=1e-9)
        assert (weighted - field(x, pos)).abs().max() > 1e-3
