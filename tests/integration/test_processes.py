"""Two processes give the gradient of one process with the joint batch, and train to the same weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from two_processes import run

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[int, Path]:
    """The results of one process (this one) and of two, launched by accelerate with gloo."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [*launcher, str(SCRIPT), str(two)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    run(one)
    return {1: one, 2: two}


@pytest.mark.parametrize(
    ("case", "items"), {"hybrid": (64, 32), "drifting": (64, 32), "independent": (64, 32), "guided": (4, 2)}.items()
)
def test_the_gradient_is_that_of_the_joint_batch(folders, case, items):
    """Also where the field is a statistic of the batch, with queues, and where processes share groups out."""
    one, two = (
        {
            name.removeprefix(f"{case}."): g
            for name, g in safetensors.torch.load_file(path).items()
            if name.startswith(case)
        }
        for path in (folders[count] / "gradients" for count in (1, 2))
    )
    assert (one.pop("items"), two.pop("items")) == items
    assert max(g.abs().max() for g in one.values()) > 1e-3
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-10, atol=1e-12)


def test_training_reaches_the_same_weights(folders):
    path = "run/checkpoints/step-000000005/model.safetensors"
    one, two = (safetensors.torch.load_file(folders[count] / path) for count in (1, 2))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-4, atol=1e-5)
