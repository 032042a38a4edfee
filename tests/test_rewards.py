"""Rewards that come with the library: what they give, that all have a derivative, and what they refuse."""

import io

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from fewstep.configuration import from_config, to_config
from fewstep.datasets import Digits, Ring
from fewstep.errors import UserError
from fewstep.rewards import (
    ClassProbability,
    FileReward,
    Ink,
    Likeness,
    Linear,
    Symmetry,
    WeightedRewards,
)
from fewstep.steering import kl_at_least
from problems import doubles, generator, normals, t2


@pytest.fixture
def picture(tmp_path):
    """A black picture of 8 x 8 with one white pixel."""
    image = Image.new("L", (8, 8), 0)
    image.putpixel((3, 2), 255)
    content = io.BytesIO()
    image.save(content, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(content.getvalue())
    return str(path)


def test_what_they_give(picture):
    white, black = torch.ones(1, 1, 8, 8), -torch.ones(1, 1, 8, 8)
    half = torch.cat([black[..., :4], white[..., 4:]], dim=-1)
    items = torch.cat([white, black, half])
    assert_close(Ink()(items), torch.tensor([1.0, 0.0, 0.5]))
    assert_close(Ink(sign=-1.0)(items), torch.tensor([-1.0, 0.0, -0.5]))
    assert_close(Symmetry()(items), torch.tensor([0.0, 0.0, -4.0]))
    assert_close(Symmetry(axis=-2)(items), torch.zeros(3))
    assert_close(Likeness(picture=picture)(black), torch.tensor([-4 / 64]))
    assert_close(Linear(slope=(1.0, -2.0))(doubles(3, 4)[None]), doubles(-5))
    both = WeightedRewards(rewards=(Ink(), Symmetry()), weights=(2.0, 0.5))
    assert_close(both(items), torch.tensor([2.0, 0.0, -1.0]))
    assert_close(WeightedRewards(rewards=(Ink(), Symmetry()))(items), torch.tensor([1.0, 0.0, -3.5]))


def test_the_class_of_real_digits():
    """Most sevens are sevens and nothing else is; the probabilities of the classes sum to 1."""
    test = Digits().test().up_to(100)
    seven = ClassProbability(label=7).for_data(Digits())
    found = seven(test["x_0"])
    assert (found[test["labels"] == 7] > -0.7).double().mean() > 0.8
    assert (found[test["labels"] != 7] < -0.7).double().mean() > 0.95
    every = torch.stack([ClassProbability(label=k, dataset=Digits())(test["x_0"]) for k in range(10)])
    assert_close(every.exp().sum(0), torch.ones(100))


def test_they_have_a_derivative_and_a_configuration(picture):
    rewards = [Ink(), Symmetry(), Likeness(picture=picture), ClassProbability(label=3, dataset=Digits())]
    rewards += [WeightedRewards(rewards=tuple(rewards)), Linear(slope=(0.5,) * 64)]
    for reward in rewards:
        x = normals(4, 1, 8, 8, seed=0, dtype=torch.float32).clamp(-1, 1).requires_grad_()
        assert torch.autograd.grad(reward(x).sum(), x)[0].norm() > 0
        assert from_config(to_config(reward)) == reward


def test_a_reward_of_a_file(tmp_path):
    path = tmp_path / "wish.py"
    path.write_text("def first(x):\n    return x[:, 0]\n\nnumber = 3\n")
    assert_close(FileReward(file=f"{path}:first")(doubles(3, 4)[None]), doubles(3))
    with pytest.raises(UserError, match="no function 'number'"):
        FileReward(file=f"{path}:number")(doubles(3, 4)[None])
    with pytest.raises(UserError, match="does not exist"):
        FileReward(file=f"{tmp_path}/other.py:first")(doubles(3, 4)[None])
    with pytest.raises(UserError, match=r"PATH\.py:FUNCTION"):
        FileReward(file="first")
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match="ModuleNotFoundError"):
        FileReward(file=f"{broken}:first")(doubles(3, 4)[None])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassProbability(label=7).for_data(Ring()), "no labelled images"),
        (lambda: ClassProbability(label=10).for_data(Digits()), "classes 0 .. 9"),
        (lambda: ClassProbability(label=7)(normals(2, 1, 8, 8, seed=0)), "data set"),
        (lambda: Symmetry(axis=0), "axis"),
        (lambda: Symmetry()(normals(2, 2, seed=0)), "of images"),
        (lambda: Likeness(picture="nowhere.png")(normals(2, 1, 8, 8, seed=0)), "no picture"),
        (lambda: Linear(slope=(1.0, 2.0))(normals(2, 3, seed=0)), "one for each"),
        (lambda: WeightedRewards(rewards=()), "at least one"),
        (lambda: WeightedRewards(rewards=(Ink(),), weights=(1.0, 2.0)), "weight for each"),
    ],
)
def test_what_they_refuse(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_picture_of_another_size_is_refused(picture):
    with pytest.raises(UserError, match="resize it"):
        Likeness(picture=picture)(normals(2, 1, 9, 9, seed=0))


def test_the_divergence_of_a_tilt_is_found():
    """KL .84841246 of the linear tilt of T2 within .05, from samples; 0 for the law itself; less where little is seen."""
    slope, n = doubles(0.5, -1.0), 20_000
    x, own = t2().tilt(slope)[0].sample((n,), generator(0)), t2().sample((n,), generator(1))
    assert kl_at_least(x, own) == pytest.approx(0.84841246, abs=0.05)
    assert kl_at_least(x, own, x @ slope, own @ slope) == pytest.approx(0.84841246, abs=0.05)
    assert kl_at_least(t2().sample((n,), generator(2)), own) < 0.005
    assert kl_at_least(x[:, :1], own[:, :1]) < 0.5
    few = (
        normals(100, 64, seed=3),
        normals(100, 64, seed=4),
    )  # asked of what it was learnt on, it would see a difference
    assert kl_at_least(*few) < 0.1
    with pytest.raises(UserError, match="20 samples"):
        kl_at_least(x[:10], own)
    with pytest.raises(UserError, match="of both"):
        kl_at_least(x, own, x @ slope)
