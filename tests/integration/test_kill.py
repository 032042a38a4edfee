"""A process killed at any moment loses no checkpoint, and the resumed run ends with the same bits."""

import multiprocessing
import os
import random
import signal
import time

import pytest

from fewstep import files
from fewstep.pretrained import newest_checkpoint
from fewstep.training import train
from fewstep.training.checkpoint import read_record
from test_training import assert_same_bits, options, weights
from tiny import tiny_recipe

FORK = multiprocessing.get_context("fork")
RECIPE = tiny_recipe(steps=400)


def _train(out, pause: float = 0.0) -> None:
    if pause:  # a slow disk, so that kills fall into writes too
        write = files._write_flushed
        files._write_flushed = lambda path, content: (time.sleep(pause), write(path, content))
    train(RECIPE, options(out, resume=True, checkpoint_every=5))


def _die_in_write(out, at: int) -> None:
    """Train, and be killed half-way through the file number `at` that is written."""
    count = {"n": 0}

    def write(path, content):
        with path.open("wb") as file:
            count["n"] += 1
            if count["n"] == at:
                file.write(content[: len(content) // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            file.write(content)

    files._write_flushed = write
    _train(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    train(RECIPE, options(out))
    return weights(out)


def test_ten_kills_at_random_moments(tmp_path, whole):
    chance = random.Random(0)
    reached, kills = 0, 0
    while kills < 10:
        process = FORK.Process(target=_train, args=(tmp_path, 0.01))
        process.start()
        time.sleep(chance.uniform(0.05, 0.5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it had finished: give it more steps"
        kills += 1
        newest = newest_checkpoint(tmp_path)
        step = read_record(newest)["step"] if newest else 0
        assert step >= reached, "a checkpoint was lost"
        reached = step
    train(RECIPE, options(tmp_path, resume=True))
    assert_same_bits(whole, weights(tmp_path))


@pytest.mark.parametrize("at", [1, 2, 4, 8, 13])
def test_a_kill_in_the_middle_of_a_write(tmp_path, whole, at):
    process = FORK.Process(target=_die_in_write, args=(tmp_path, at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    train(RECIPE, options(tmp_path, resume=True))
    assert_same_bits(whole, weights(tmp_path))
    assert not list(tmp_path.rglob(files.PARTIAL + "*"))


def _stopped(out) -> None:
    outcome = train(RECIPE, options(out, checkpoint_every=1000))
    os._exit(0 if outcome.reason == "interrupted" else 1)


def test_a_polite_signal_ends_with_a_checkpoint(tmp_path, whole):
    process = FORK.Process(target=_stopped, args=(tmp_path,))
    process.start()
    while not (tmp_path / "log.jsonl").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 0
    assert 0 < read_record(newest_checkpoint(tmp_path))["step"] < RECIPE.steps
    train(RECIPE, options(tmp_path, resume=True))
    assert_same_bits(whole, weights(tmp_path))
