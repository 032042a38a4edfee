"""Frozen encoders: pooling at several scales, and the masked autoencoder that the library trains and keeps."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fewstep.datasets import Digits, Ring
from fewstep.encoders import Masked, pooled
from fewstep.encoders.base import check_frozen
from fewstep.errors import UserError
from fewstep.networks.masked_autoencoder import MaskedAutoencoder
from problems import generator, normals, seeded

SMALL = Masked(width=8, blocks=(1, 1, 1), steps=6, batch_size=16)


def test_pooling_by_hand():
    """Vectors of all places, means and deviations of the map and of its patches, and the input's root mean square."""
    x, h = normals(2, 1, 8, 8, seed=0), normals(2, 3, 8, 8, seed=1)
    found = pooled(x, [h])
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes == {
        "input": (1, 2, 1),
        "map 0": (64, 2, 3),
        "mean 0": (1, 2, 3),
        "deviation 0": (1, 2, 3),
        "mean 0, 2 x 2": (16, 2, 3),
        "deviation 0, 2 x 2": (16, 2, 3),
        "mean 0, 4 x 4": (4, 2, 3),
        "deviation 0, 4 x 4": (4, 2, 3),
    }
    assert_close(found["input"][0], (x.square().mean((2, 3)) + 1e-6).sqrt())
    assert_close(found["map 0"][8 * 2 + 5], h[:, :, 2, 5])
    assert_close(found["mean 0, 4 x 4"][1], h[:, :, :4, 4:].mean((2, 3)))
    assert_close(
        found["deviation 0, 2 x 2"][4 * 1 + 3],
        (h[:, :, 2:4, 6:].var((2, 3), correction=0) + 1e-6).sqrt(),
        rtol=1e-6,
        atol=1e-9,
    )
    assert set(pooled(x, [h], most_places=4)) == {name for name, shape in shapes.items() if shape[0] <= 4}


def test_patches_cover_a_map_that_they_do_not_divide():
    """Of 7 x 7, those of 4 x 4 at the far edges are 3 wide; a map of one place has no mean and no deviation of its own."""
    h = normals(2, 3, 7, 7, seed=1)
    found = pooled(h[:, :1], [h, h[:, :, :1, :1]])
    assert_close(found["mean 0, 4 x 4"][3], h[:, :, 4:, 4:].mean((2, 3)))
    corner = h[:, :, 4:, 4:].flatten(2)
    assert_close(found["deviation 0, 4 x 4"][3], (corner.var(2, correction=0) + 1e-6).sqrt(), rtol=1e-6, atol=1e-9)
    assert found["mean 0, 2 x 2"].shape == (16, 2, 3)
    assert {name for name in found if " 1" in name} == {"map 1"}


def test_a_constant_patch_has_a_finite_gradient():
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    sum(value.sum() for value in pooled(x, [2 * x]).values()).backward()
    assert x.grad.isfinite().all()


def test_the_maps_are_those_of_stem_blocks_and_stages():
    with seeded(0):
        network = MaskedAutoencoder((1, 8, 8), width=8, blocks=(3, 1))
    shapes = [tuple(h.shape[1:]) for h in network.maps(torch.zeros(2, 1, 8, 8))]
    assert shapes == [(8, 8, 8), (8, 8, 8), (8, 8, 8), (16, 4, 4)]  # stem, second block, stages
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 1, 8, 8)
    with seeded(0):
        odd = MaskedAutoencoder((3, 7, 5), width=8, blocks=(1, 1, 1))
    assert odd(torch.zeros(2, 3, 7, 5)).shape == (2, 3, 7, 5)


def test_the_loss_is_of_what_is_hidden():
    """In patches of 2 x 2, half of them; what is not hidden counts for nothing."""
    seen = {}

    class Spy(MaskedAutoencoder):
        def forward(self, x):
            seen["x"] = x
            return torch.zeros_like(x)

    network = Spy((1, 8, 8), width=8, blocks=(1,))
    x = normals(200, 1, 8, 8, seed=0, dtype=torch.float32)
    loss = network.loss(x, generator(0))
    hidden = seen["x"] == 0
    patches = hidden.reshape(200, 4, 2, 4, 2).float().mean((2, 4))
    assert ((patches == 0) | (patches == 1)).all()
    assert patches.mean().item() == pytest.approx(0.5, abs=0.03)
    expected = torch.stack(
        [x[i][hidden[i]].square().mean() if hidden[i].any() else x.new_zeros(()) for i in range(200)]
    )
    assert_close(loss, expected)


def test_it_is_trained_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    first = SMALL.build((1, 8, 8))
    monkeypatch.setattr(Masked, "train", None)  # would fail
    again = SMALL.build((1, 8, 8))
    x = Digits().test().take(4)["x_0"]
    for a, b in zip(first.maps(x), again.maps(x), strict=True):
        assert torch.equal(a, b)
    check_frozen(again)
    (folder,) = (tmp_path / "encoders").iterdir()
    assert folder.name == f"digits-{SMALL.key()}"
    assert replace(SMALL, steps=7).key() != SMALL.key() != replace(SMALL, seed=1).key()
    (folder / "encoder.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"encoder\.safetensors"):
        SMALL.build((1, 8, 8))


def test_training_lowers_the_loss():
    with seeded(SMALL.seed):
        fresh = MaskedAutoencoder((1, 8, 8), 8, (1, 1, 1))
    trained = replace(SMALL, steps=60).train()
    x = Digits().test().take(200)["x_0"]
    before, after = (network.loss(x, generator(1)).mean().item() for network in (fresh, trained))
    assert after < 0.8 * before


def test_what_does_not_fit_is_told():
    with pytest.raises(UserError, match=r"the items are \(2,\)"):
        SMALL.build((2,))
    with pytest.raises(UserError, match="the encoder is of images"):
        SMALL.build((3, 32, 32))
    with pytest.raises(UserError, match="the encoder is of images"):
        Masked(dataset=Ring()).build((2,))
    for wrong in ({"width": 12}, {"blocks": (0,)}, {"steps": 0}, {"lr": 0.0}):
        with pytest.raises(UserError, match="a width that 8 divides"):
            Masked(**wrong)
