"""The laws of every network: each file of the family is found, and each config in it is built and tried."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import fewstep.networks
from fewstep.networks import MLPConfig, NetworkConfig, UNetConfig
from problems import TINY_MLP, TINY_UNET, generator, gradients, members, normals, randomise, seeded

SMALL = {MLPConfig: TINY_MLP, UNetConfig: TINY_UNET}  # a network whose defaults are large has a small config here
CONFIGS = members(fewstep.networks, NetworkConfig)
ITEM, INPUTS, TIMES, BATCH = (1, 8, 8), 2, 3, 4


def build(config, seed=0):
    with seeded(seed):
        network = config.build(ITEM, inputs=INPUTS, times=TIMES)
    return randomise(network.double(), seed)


@pytest.fixture(params=CONFIGS, ids=lambda c: c.__name__)
def small(request):
    return SMALL.get(request.param) or request.param()


@pytest.fixture(params=[0, 5], ids=["unlabelled", "labelled"])
def config(request, small):
    return replace(small, num_classes=request.param)


def inputs(config, seed=0):
    x = normals(BATCH, INPUTS * ITEM[0], *ITEM[1:], seed=seed)
    times = torch.rand(BATCH, TIMES, generator=generator(seed), dtype=torch.float64)
    return x, times, torch.arange(BATCH) if config.num_classes else None


def test_the_family_is_found():
    assert {MLPConfig, UNetConfig} <= set(CONFIGS)


def test_the_result_is_an_item_and_the_config_is_kept(config):
    network = build(config)
    assert network(*inputs(config)).shape == (BATCH, *ITEM)
    assert network.config == config


def test_every_parameter_has_a_finite_gradient(config):
    network = build(config)
    (network(*inputs(config)) * normals(BATCH, *ITEM, seed=1)).sum().backward()
    assert gradients(network).isfinite().all()


def test_an_item_does_not_see_the_batch(config):
    network, (x, times, cond) = build(config).eval(), inputs(config)
    whole = network(x, times, cond)
    for i in range(BATCH):
        one = slice(i, i + 1)
        alone = network(x[one], times[one], None if cond is None else cond[one])
        assert_close(alone, whole[one], rtol=1e-9, atol=1e-9)
        assert (alone - whole[i - 1]).abs().amax() > 1e-3


def test_each_input_time_and_label_matters(config):
    network, (x, times, cond) = build(config), inputs(config)
    result = network(x, times, cond)
    for i in range(INPUTS):
        moved = x.clone()
        moved[:, i] += 1
        assert (network(moved, times, cond) - result).abs().amax() > 1e-3
    assert (network(x, times.roll(1, dims=1), cond) - result).abs().amax() > 1e-3
    for i in range(TIMES):
        moved = times.clone()
        moved[:, i] += 0.1
        assert (network(x, moved, cond) - result).abs().amax() > 1e-3
    if cond is not None:
        assert (network(x, times, cond.flip(0)) - result).abs().amax() > 1e-3


def test_forward_mode_is_the_transpose_of_reverse_mode(config):
    """`<c, J v> = <J' c, v>` for a tangent v of state and times and a cotangent c."""
    network, (x, times, cond) = build(config), inputs(config)
    tangents, cotangent = (normals(*x.shape, seed=2), normals(*times.shape, seed=3)), normals(BATCH, *ITEM, seed=4)

    def f(x, times):
        return network(x, times, cond)

    _, forward = torch.func.jvp(f, (x, times), tangents)
    _, pull = torch.func.vjp(f, x, times)
    reverse = sum((g * v).sum() for g, v in zip(pull(cotangent), tangents, strict=True))
    assert_close((forward * cotangent).sum(), reverse, rtol=1e-9, atol=1e-11)
    assert abs((forward * cotangent).sum() / (1.001 * reverse) - 1) > 1e-4


def test_weights_are_saved_and_loaded(config):
    network, other = build(config, seed=0), build(config, seed=1)
    arguments = inputs(config)
    assert not torch.allclose(network(*arguments), other(*arguments))
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(*arguments), other(*arguments))
