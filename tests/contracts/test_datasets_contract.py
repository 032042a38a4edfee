"""What every data set of the package obeys, found by looking through the family's files."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep import datasets
from fewstep.datasets import CIFAR10, MNIST, Arrays, Dataset, Digits, Examples, Images, TensorExamples, Tilted
from fewstep.draws import Shard
from fewstep.errors import UserError
from problems import generator, generators
from test_cifar10 import small_sheets
from test_datasets import small_mnist, small_pictures

MODULES = [
    importlib.import_module(f"{datasets.__name__}.{info.name}") for info in pkgutil.iter_modules(datasets.__path__)
]
MEMBERS = sorted(
    {
        member
        for module in MODULES
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, Dataset) and not inspect.isabstract(member)
    },
    key=lambda member: member.__name__,
)


def small_arrays(folder: Path) -> str:
    path = folder / "arrays.npz"
    np.savez(path, x_0=np.random.default_rng(1).normal(size=(25, 3)), labels=np.arange(25) % 4)
    return str(path)


def small_pool(folder: Path) -> str:
    """Items of the digits' kind with weights, and some that were held out."""
    path, x_0 = folder / "weighted.npz", Digits().train().take(60)["x_0"].numpy()
    np.savez(path, x_0=x_0[:40], weights=np.linspace(0.1, 1, 40), x_0_test=x_0[40:], levels=np.array(17))
    return str(path)


MADE: dict[type[Dataset], Callable[[Path], Dataset]] = {  # members that need files
    CIFAR10: lambda folder: small_sheets(folder) and CIFAR10(check_md5=False),
    MNIST: lambda folder: small_mnist(folder) and MNIST(check_md5=False),
    Images: lambda folder: Images(folder=str(small_pictures(folder / "pictures")), size=8, test_share=0.3),
    Tilted: lambda folder: Tilted(base=Digits(), path=small_pool(folder)),
    Arrays: lambda folder: Arrays(path=small_arrays(folder), test_share=0.2),
}


@pytest.fixture(scope="module", params=MEMBERS, ids=lambda member: member.__name__)
def dataset_and_root(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return MADE.get(request.param, lambda folder: request.param())(root), root


@pytest.fixture(scope="module")
def dataset(dataset_and_root) -> Dataset:
    return dataset_and_root[0]


@pytest.fixture(scope="module")
def sides(dataset_and_root) -> tuple[Examples, Examples]:
    dataset, root = dataset_and_root
    return dataset.train(root), dataset.test(root)


def test_the_family_is_found():
    assert {"Ring", "T2", "Digits", "MNIST", "CIFAR10", "Images", "Arrays"} <= {member.__name__ for member in MEMBERS}


def test_a_member_is_a_frozen_value(dataset):
    assert is_dataclass(dataset)
    assert dataset == type(dataset)(**{field.name: getattr(dataset, field.name) for field in fields(dataset)})
    with pytest.raises((FrozenInstanceError, AttributeError)):
        dataset.item_shape = (1,)


def test_batches_have_the_form_that_the_data_set_names(dataset, sides):
    assert len(dataset.item_shape) in (1, 3)
    for side in sides:
        for found in (side.batch(7, generator(0)), side.take(2)):
            n = len(found["x_0"])
            assert found["x_0"].shape == (n, *dataset.item_shape)
            assert found["x_0"].dtype == torch.float32
            assert found["x_0"].isfinite().all()
            assert found["x_0"].std() > 0.01
            if len(dataset.item_shape) == 3:
                assert found["x_0"].abs().max() <= 1
            assert ("labels" in found) == (dataset.num_classes > 0)
            if dataset.num_classes:
                assert found["labels"].shape == (n,)
                assert found["labels"].dtype == torch.int64
                assert found["labels"].min() >= 0
                assert found["labels"].max() < dataset.num_classes


def test_the_generator_alone_determines_a_batch(dataset_and_root, sides):
    dataset, root = dataset_and_root
    for side, again in zip(sides, (dataset.train(root), dataset.test(root)), strict=True):
        first = side.batch(20, generator(1))
        state = torch.get_rng_state()
        side.take(2)
        source = generator(2)
        assert not torch.equal(side.batch(20, source)["x_0"], side.batch(20, source)["x_0"])
        for key, value in again.batch(20, generator(1)).items():
            assert torch.equal(value, first[key])
        assert torch.equal(state, torch.get_rng_state())


def test_processes_see_slices_of_the_joint_batch(sides):
    for side in sides:
        source = generator(3)
        joint = [side.batch(12, source), side.batch(12, source)]
        for rank in range(3):
            shard = Shard(generator=generator(3), rank=rank, count=3)
            for whole in joint:
                for key, value in side.batch(4, shard).items():
                    assert torch.equal(value, whole[key][4 * rank : 4 * rank + 4])


def test_an_item_with_its_own_generator_does_not_see_the_batch(sides):
    for side in sides:
        whole = side.batch(6, generators(*range(6)))["x_0"]
        assert torch.equal(side.batch(1, generators(4))["x_0"][0], whole[4])


def test_taken_items_are_different_and_follow_the_seed(sides):
    for side in sides:
        n = min(side.size or 50, 50)
        taken = side.take(n, seed=5)["x_0"]
        weighted = isinstance(side, TensorExamples) and side.weights is not None
        assert len(taken.flatten(1).unique(dim=0)) == n or weighted  # by weight, some come more than once
        assert torch.equal(taken, side.take(n, seed=5)["x_0"])
        assert n == 1 or not torch.equal(taken, side.take(n, seed=6)["x_0"])


def test_more_than_there_are_is_refused(sides):
    for side in sides:
        if side.size is None:
            continue
        with pytest.raises(UserError, match=f"there are {side.size}"):
            side.take(side.size + 1)


def test_train_and_test_share_no_item(sides):
    """Every item of the finite data used here occurs once (weighted ones more than once in training): a common row is one."""
    train, test = (side.take(side.size or 1000)["x_0"].flatten(1) for side in sides)
    both = torch.cat([train, test])
    assert len(both.unique(dim=0)) == len(train.unique(dim=0)) + len(test)
