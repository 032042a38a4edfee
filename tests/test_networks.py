"""The paper's networks by size, and what a network asks of its shapes and labels."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from fewstep.errors import UserError
from fewstep.networks import MLPConfig, UNetConfig
from fewstep.networks.embedding import TimesEmbedding
from fewstep.networks.unet import CIFAR10_UNET, MNIST_UNET
from problems import TINY_MLP, TINY_UNET, doubles, generator, normals, randomise, seeded, tiny_network


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("config", "item_shape", "bare", "accuracy", "total"),
    [(MNIST_UNET, (1, 28, 28), 708_193, 0, 1.1e6), (CIFAR10_UNET, (3, 32, 32), 35.75e6, 5e-3, 37.5e6)],
    ids=["mnist", "cifar10"],
)
def test_the_networks_of_the_paper_by_size(config, item_shape, bare, accuracy, total):
    with torch.device("meta"):
        network = config.build(item_shape, inputs=2, times=3)
    assert size(network.unet) == pytest.approx(bare, rel=accuracy)
    assert size(network) == pytest.approx(total, rel=0.05)


@pytest.mark.parametrize("item_shape", [(1, 8, 8), (3, 16, 8)])
@pytest.mark.parametrize("config", [TINY_MLP, TINY_UNET], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize(("inputs", "times"), [(1, 1), (2, 3)])
def test_shapes(config, item_shape, inputs, times):
    network = config.build(item_shape, inputs=inputs, times=times)
    channels, *sides = item_shape
    assert network(torch.zeros(2, inputs * channels, *sides), torch.rand(2, times)).shape == (2, *item_shape)


def test_an_mlp_takes_vectors():
    network = TINY_MLP.build((5,), inputs=2, times=3)
    assert network(torch.zeros(4, 10), torch.rand(4, 3)).shape == (4, 5)


@pytest.mark.parametrize("config", [TINY_MLP, TINY_UNET], ids=lambda c: type(c).__name__)
def test_labels_go_with_networks_that_have_classes(config):
    x, times, labels = torch.zeros(2, 2, 8, 8), torch.rand(2, 3), torch.tensor([0, 4])
    with pytest.raises(UserError, match="labels"):
        config.build((1, 8, 8), inputs=2, times=3)(x, times, labels)
    with_classes = replace(config, num_classes=5).build((1, 8, 8), inputs=2, times=3)
    with pytest.raises(UserError, match="labels"):
        with_classes(x, times)
    one, two = with_classes(x[:1].expand(2, 2, 8, 8), times[:1].expand(2, 3), labels)
    assert not torch.allclose(one, two)


@pytest.mark.parametrize(
    ("config", "item_shape"),
    [(TINY_UNET, (1, 9, 8)), (UNetConfig(), (1, 30, 28)), (TINY_UNET, (64,)), (TINY_UNET, (8, 8))],
)
def test_what_a_u_net_refuses(config, item_shape):
    with pytest.raises(UserError, match="U-Net"):
        config.build(item_shape, inputs=2, times=3)


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_double_precision_is_double_throughout(name):
    """A difference of 1e-9 in the state is seen to the rounding of float64, not of float32."""
    network, item_shape = tiny_network(name, inputs=1, times=1)
    x, times = normals(1, *item_shape, seed=0), doubles(0.3)[None]
    step = normals(1, *item_shape, seed=1)

    def change(h):
        return ((network(x + h * step, times) - network(x, times)) / h).detach()

    assert (change(1e-7) - change(1e-8)).abs().amax() < 1e-4 * change(1e-7).abs().amax()


def test_the_derivative_in_time_survives_float32():
    """Low frequencies: the float32 derivative of the embedding has five digits; with those of `1000 t` it has not."""

    def relative_error(max_frequency):
        with seeded(0):
            embedding = randomise(TimesEmbedding(3, 8, width=32, max_frequency=max_frequency))
        times, tangent = torch.rand(64, 3, generator=generator(1)), torch.ones(64, 3)
        _, single = torch.func.jvp(embedding, (times,), (tangent,))
        _, double = torch.func.jvp(embedding.double(), (times.double(),), (tangent.double(),))
        return ((single - double).abs().amax() / double.abs().amax()).item()

    assert relative_error(100.0) < 2e-5
    assert relative_error(1e4) > 2e-5


def test_times_become_points_on_circles():
    """Sines and cosines: the features have constant length, turn with the time, and do not repeat in [0, 1]."""
    embedding, features = TimesEmbedding(2, 8, features=16).double(), []
    embedding.into.register_forward_pre_hook(lambda _, arguments: features.append(arguments[0]))
    times = torch.rand(50, 2, generator=generator(0), dtype=torch.float64)
    embedding(times)
    assert_close(features[0].square().sum(1), torch.full((50,), 16.0).double())
    assert (torch.pdist(features[0]) > 0.5 * torch.pdist(times)).all()


def test_a_config_rebuilds_its_network():
    network = MLPConfig(width=8, depth=1).build((2,), inputs=1, times=1)
    again = network.config.build((2,), inputs=1, times=1)
    again.load_state_dict(network.state_dict())
    x, times = torch.randn(3, 2, generator=generator(0)), torch.rand(3, 1, generator=generator(1))
    assert_close(again(x, times), network(x, times))
