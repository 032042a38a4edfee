"""The command: what it writes, and that a user's mistake is one line on stderr and an exit status other than 0."""

import html
import importlib
import io
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep
from fewstep.cli import main
from fewstep.cli._parsing import parse_duration
from fewstep.configuration import to_config
from fewstep.errors import UserError
from fewstep.files import CHECKSUMS, write_folder
from fewstep.pretrained import newest_checkpoint
from fewstep.recipes import all_recipes

COMMANDS = [
    *(
        "calibrate",
        "checkpoint",
        "classifier",
        "compare",
        "diagnose",
        "evaluate",
        "finetune",
        "recipes",
        "report",
        "restore",
    ),
    *("sample", "steer", "train"),
]
SMALL = ["--batch-size", "8", "--model.network.width", "16", "--model.network.depth", "1", "--device", "cpu", "--quiet"]
MEASURE = ["-n", "60", "--steps", "1", "2", "--flow-steps", "1", "2", "--taus", "0.3", "--pairs", "20", "--draws", "3"]
HEAVY = ["diffusers", "accelerate", "torchmetrics", "sklearn", "matplotlib", "transformers", "tensorboard"]


def status(*arguments: str) -> int:
    """The exit status of a command, run in this process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return 0 if stop.code is None else int(stop.code)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of six steps on the ring."""
    folder = tmp_path_factory.mktemp("run") / "ring"
    assert status("train", "ring-stmd", "--steps", "6", *SMALL, "--out", folder) == 0
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    """What goes to a default place goes to a temporary one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWSTEP_DATA", raising=False)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))


def refused(capsys, *arguments: object, says: str = "") -> None:
    """Exit status not 0, one line on stderr, nothing on stdout, no traceback."""
    capsys.readouterr()
    assert status(*arguments) not in (0, None)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.startswith("fewstep: error: ")
    assert "Traceback" not in err
    assert says in err


@pytest.mark.parametrize("command", COMMANDS)
def test_help(capsys, command):
    assert status(command, "--help") == 0
    out, err = capsys.readouterr()
    assert f"fewstep {command}" in out
    assert err == ""


def test_help_of_all(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert status(*arguments) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {command}" in out for command in COMMANDS)
    assert status("--version") == 0
    assert capsys.readouterr().out == f"fewstep {fewstep.__version__}\n"


def test_the_flags_of_a_recipe_are_its_own(capsys):
    assert status("train", "ring-stmd", "--help") == 0
    stmd = capsys.readouterr().out
    assert status("train", "ring-ddpm", "--help") == 0
    ddpm = capsys.readouterr().out
    for flag in ("--steps", "--optimiser.lr", "--model.network.width", "--out", "--resume", "--stop-after"):
        assert flag in stmd
        assert flag in ddpm
    assert "--objective.terms.0.atom-t-1" in stmd
    assert "--objective.terms.2.draws" in stmd
    assert "--objective.weights" in stmd
    assert "atom-t-1" not in ddpm


def test_recipes(capsys):
    assert status("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(all_recipes())
    assert all(len(line.split()) > 3 for line in lines)


MISTAKES = {
    "an unknown command": (["tain"], "no command is called 'tain'"),
    "an unknown recipe": (["train", "ring"], "ring-stmd"),
    "no recipe": (["train", "--steps", "3"], "the recipe comes first"),
    "a flag of another objective": (["train", "ring-ddpm", "--objective.frac-r-below-t", "0.5"], "frac-r-below-t"),
    "an unknown flag": (["train", "ring-stmd", "--colour", "red"], "--colour"),
    "no steps": (["train", "ring-stmd", "--steps", "0"], "steps >= 1"),
    "no number": (["train", "ring-stmd", "--steps", "many"], "--steps"),
    "a learning rate of 0": (["train", "ring-stmd", "--optimiser.lr", "0"], "lr > 0"),
    "a share above 1": (["train", "ring-stmd-plain", "--objective.frac-r-below-t", "1.5"], "1.5"),
    "no log": (["train", "ring-stmd", "--log-every", "0"], "from 1 up"),
    "a bad duration": (["train", "ring-stmd", "--stop-after", "5 minutes"], "90s"),
    "a missing file": (["train", "nothing.py"], "nothing.py does not exist"),
    "a run of nothing": (["sample", "nothing"], "there is no folder nothing"),
    "an evaluation of nothing": (["evaluate", "nothing"], "there is no folder nothing"),
    "a report of nothing": (["report", "nothing"], "there is no folder nothing"),
    "no run": (["sample"], "sample --help"),
    "sample 0": (["sample", "RUN", "--n", "0"], "--n"),
    "sample in no steps": (["sample", "RUN", "--steps", "0"], "from 1 up"),
    "sample in no flow steps": (["sample", "RUN", "--flow-steps", "0"], "from 1 up"),
    "sample no items at a time": (["sample", "RUN", "--batch-size", "0"], "from 1 up"),
    "a grid of no name": (["sample", "RUN", "--grid", "log"], "--grid"),
    "a grid that does not end": (["sample", "RUN", "--grid", "1,0.5"], "from 1 to 0"),
    "a grid that rises": (["sample", "RUN", "--grid", "1,0.2,0.5,0"], "decreases"),
    "a grid of other steps": (["sample", "RUN", "--grid", "1,0.5,0", "--steps", "5"], "steps"),
    "a kernel of no name": (["sample", "RUN", "--kernel", "ddim"], "--kernel"),
    "a kernel beyond DDIM": (["sample", "RUN", "--kernel", "1.5"], "1.5"),
    "a report in no steps": (["report", "RUN", "--steps", "0"], "from 1 up"),
    "a report of nothing drawn": (["report", "RUN", "--n", "0"], "from 1 up"),
    "a sampler of no name": (["sample", "RUN", "--sampler", "dpm"], "no sampler is called 'dpm'"),
    "a sampler of another model": (["sample", "RUN", "--sampler", "flow-map"], "FlowMap draws from a MeanFlow"),
    "a kernel of Heun": (["sample", "RUN", "--sampler", "heun", "--kernel", "1"], "ProbabilityFlow has no --kernel"),
    "flow steps of Heun": (["sample", "RUN", "--sampler", "heun", "--flow-steps", "2"], "has no flow_steps"),
    "a sampler without a name": (["compare", "RUN@dpm"], "no sampler is called 'dpm'"),
    "compare nothing": (["compare"], "give the folders"),
    "compare what is not there": (["compare", "nothing"], "there is no folder nothing"),
    "two runs of one name": (["compare", "a/b", "c/b"], "one name"),
    "one seed": (["compare", "RUN", "--seeds", "1"], "at least 2"),
    "store no search": (["evaluate", "RUN", "--save-default"], "add --grid"),
    "search with no evaluation": (["evaluate", "RUN", "--grid", "--nfe", "0"], "from 1 up"),
    "a classifier of vectors": (["classifier", "ring"], "ring"),
    "no action": (["checkpoint"], "pack"),
    "an unknown action": (["checkpoint", "wrap", "RUN"], "pack"),
    "a bad size": (["checkpoint", "pack", "RUN", "parts", "--max-file-size", "16 blocks"], "is not a size"),
    "nothing to pack": (["checkpoint", "pack", "nothing", "parts"], "no checkpoint"),
    "nothing to unpack": (["checkpoint", "unpack", "nothing", "run"], "is missing"),
    "a device of no name": (["sample", "RUN", "--device", "gpu"], "gpu"),
    "evaluate on a device of no name": (["evaluate", "RUN", "--device", "gpu"], "gpu"),
    "a calibration of nothing": (["calibrate", "nothing"], "there is no folder nothing"),
    "a calibration of a few pairs": (["calibrate", "RUN", "--pairs", "20"], "at least 50"),
    "bins that do not divide": (["calibrate", "RUN", "--draws", "60"], "16 bins do not divide"),
    "calibrate at a time beyond the noise": (["calibrate", "RUN", "--taus", "1.5"], "not above 1"),
}


@pytest.mark.parametrize(("arguments", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(capsys, run, tmp_path, arguments, says):
    refused(capsys, *(argument.replace("RUN", str(run)) for argument in arguments), says=says)
    assert not list(tmp_path.iterdir())  # and nothing is begun


@pytest.mark.parametrize(
    "wrong",
    [
        ["-n", "0"],
        ["--taus", "1.5"],
        ["--taus", "-0.1"],
        ["--pairs", "0"],
        ["--draws", "1"],
        ["--steps", "0"],
        ["--batch-size", "0"],
    ],
    ids=" ".join,
)
def test_an_evaluation_out_of_range_is_refused(capsys, run, tmp_path, wrong):
    """Progress may have been told before, but the last line is the error, and no file is written."""
    assert status("evaluate", run, *MEASURE, *wrong, "--out", tmp_path / "evaluation.json") == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("fewstep: error: ")
    assert "Traceback" not in err
    assert not (tmp_path / "evaluation.json").exists()


def test_a_mistake_is_told_plainly_where_the_terminal_knows_no_boxes(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert status("train", "ring-ddpm", "--objective.frac-r-below-t", "0.5") == 1
    err = capsys.readouterr().err
    assert "--objective.frac-r-below-t" in err
    assert "----" not in err


def test_debug_shows_the_traceback(capsys):
    for arguments in (["--debug", "train", "ring"], ["train", "ring", "--debug"]):
        assert status(*arguments) == 1
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("fewstep: error: no recipe is called 'ring'")


def test_a_defect_keeps_its_traceback_and_an_interrupt_its_status(capsys, monkeypatch):
    command = importlib.import_module("fewstep.cli.recipes")

    def ends_in(error: BaseException):
        def run(arguments: list[str]) -> int:
            raise error

        return run

    monkeypatch.setattr(command, "run", ends_in(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        main(["recipes"])
    monkeypatch.setattr(command, "run", ends_in(KeyboardInterrupt()))
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(command, "run", ends_in(PermissionError(13, "Permission denied", "somewhere")))
    refused(capsys, "recipes", says="somewhere")


def test_training_leaves_a_run(run):
    assert json.loads((run / "recipe.json").read_text())["steps"] == 6
    assert newest_checkpoint(run).name == "step-000000006"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6


def test_a_run_is_not_trained_over(capsys, run):
    refused(capsys, "train", "ring-stmd", "--steps", "6", *SMALL, "--out", run, says="--resume")
    refused(capsys, "train", "ring-stmd", "--steps", "7", *SMALL, "--out", run, "--resume", says="steps: 6 -> 7")


def test_sample_writes_arrays_and_how_they_were_made(capsys, run, tmp_path):
    out = tmp_path / "out"
    assert status("sample", run, "-n", "5", "--steps", "3", "--flow-steps", "2", "--seed", "4", "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"samples.npz", "samples.json"}
    x_0 = np.load(out / "samples.npz")["x_0"]
    assert x_0.shape == (5, 2)
    assert np.isfinite(x_0).all()
    info = json.loads((out / "samples.json").read_text())
    expected = {"n", "checkpoint", "steps", "flow_steps", "sampler", "nfe", "seed", "seconds", "peak_memory"}
    assert info.keys() == expected
    expected = {"n": 5, "steps": 3, "flow_steps": 2, "nfe": 6, "seed": 4}
    assert {key: info[key] for key in expected} == expected
    assert "6 network evaluations" in capsys.readouterr().out


def test_sample_agrees_with_the_library_and_does_not_see_the_batch(run, tmp_path):
    model = fewstep.load(run)
    expected = fewstep.sample(model, 5, seed=0).numpy()
    for n, batch_size in ((5, 256), (3, 2)):
        assert status("sample", run, "--n", str(n), "--batch-size", str(batch_size), "--out", tmp_path) == 0
        x_0 = np.load(tmp_path / "samples.npz")["x_0"]
        np.testing.assert_allclose(x_0, expected[:n], rtol=1e-5, atol=1e-5)


def test_sample_from_a_checkpoint_to_the_default_place(run, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(newest_checkpoint(run), checkpoint)
    assert status("sample", checkpoint, "-n", "2", "--grid", "1,0.4,0.1,0", "--kernel", "0.5") == 0
    assert json.loads((checkpoint / "samples" / "samples.json").read_text())["steps"] == 3


def test_evaluate_then_report(capsys, run, tmp_path):
    """`evaluation.json` has its keys, and the page of the run shows it in one file that needs no other."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert status("evaluate", copy, *MEASURE) == 0
    assert "real vs real" in capsys.readouterr().out
    result = json.loads((copy / "evaluation.json").read_text())
    assert result.keys() == {
        "recipe",
        "command",
        "checkpoint",
        "training",
        "n",
        "reference",
        "seed",
        "sampler",
        "floor",
        "samples",
        "posterior",
    }
    assert result["training"]["images"] == 6 * 8
    assert result["training"].keys() == {"step", "images", "seconds", "parameters", "peak_memory"}
    assert result["training"]["peak_memory"] > 2**20
    assert result["recipe"] == "ring-stmd"
    assert result["n"] == 60
    assert [(row["steps"], row["flow_steps"], row["nfe"]) for row in result["samples"]] == [
        (1, 1, 1), (2, 1, 2), (1, 2, 2), (2, 2, 4),
    ]  # fmt: skip
    assert len(result["posterior"]) == 2

    before = {path.relative_to(copy) for path in copy.rglob("*")}
    assert status("report", copy, "--n", "9", "--steps", "1", "2") == 0
    assert {path.relative_to(copy) for path in copy.rglob("*")} - before == {Path("report.html")}
    page = (copy / "report.html").read_text()
    assert "real vs real" in page
    assert "spread/skill" in page


def test_other_samplers_of_a_run(run, tmp_path):
    """Each makes its own samples of the same noise; those that are the same by another name are the same."""
    found = {}
    for name in ("ancestral", "re-noising", "ddpm", "ddim", "euler", "heun", "euler-maruyama", "exponential"):
        assert status("sample", run, "-n", "4", "--steps", "3", "--sampler", name, "--out", tmp_path / name) == 0
        info = json.loads((tmp_path / name / "samples.json").read_text())
        assert (info["steps"], info["flow_steps"]) == (3, 1)
        assert info["nfe"] == (5 if name == "heun" else 3)
        found[name] = np.load(tmp_path / name / "samples.npz")["x_0"]
    assert len({x_0.tobytes() for x_0 in found.values()}) >= 7
    kernel = ("sample", run, "-n", "4", "--steps", "3", "--sampler", "ddpm", "--kernel", "1", "--out", tmp_path / "k")
    assert status(*kernel) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "k" / "samples.npz")["x_0"], found["ddim"])


def test_compare_writes_json_figure_and_page(capsys, run, tmp_path):
    out = tmp_path / "comparison"
    options = ["-n", "60", "--nfe", "1", "2", "--pairs", "10", "--taus", "0.3", "--seeds", "2", "--out", out]
    assert status("compare", run, f"{run}@ddim", *options) == 0
    assert {path.name for path in out.iterdir()} == {"comparison.json", "comparison.png", "comparison.html"}
    result = json.loads((out / "comparison.json").read_text())
    assert [r["name"] for r in result["runs"]] == ["ring", "ring@ddim"]
    assert result["runs"][0]["training"]["images"] == 48
    assert list(result["posterior"]) == ["ring"]
    printed = capsys.readouterr().out
    assert "ring@ddim" in printed
    assert "real vs real" in printed
    assert result["command"] in (out / "comparison.html").read_text()


def test_the_best_sampler_is_found_and_stored(capsys, run, tmp_path):
    """And nothing but the default sampler is changed; training goes on from the same checkpoint."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = fewstep.load(copy)
    assert status("evaluate", copy, "-n", "60", "--grid", "--nfe", "2", "--save-default") == 0
    assert "stored as the default sampler" in capsys.readouterr().out
    result = json.loads((copy / "tuning.json").read_text())
    after = fewstep.load(copy)
    assert to_config(after.sampler) == result["best"]["sampler"]
    assert after.sampler.nfe == 2
    assert after.sampler != before.sampler
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert status("train", "ring-stmd", "--steps", "6", *SMALL, "--out", copy, "--resume") == 0


def test_a_classifier_is_trained_and_written(capsys, tmp_path):
    out = tmp_path / "c"
    assert status("classifier", "digits", "--steps", "60", "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"classifier.json", "classifier.safetensors", "checksums.json"}
    record = json.loads((out / "classifier.json").read_text())
    assert record["sha256"] in capsys.readouterr().out
    assert record["accuracy"] > 0.3


def test_a_run_with_foreign_classes_is_not_evaluated_without_asking(capsys, run, tmp_path, monkeypatch):
    """`recipe.json` comes with the run, from wherever it comes: its names must not import a stranger's module."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (tmp_path / "stranger.py").write_text("import dataclasses\n@dataclasses.dataclass\nclass Data: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = json.loads((copy / "recipe.json").read_text()) | {"dataset": {"class": "stranger.Data"}}
    (copy / "recipe.json").write_text(json.dumps(recipe))
    try:
        for command in ("evaluate", "report"):
            with pytest.raises(UserError):
                importlib.import_module(f"fewstep.cli.{command}").run([str(copy)])
            assert "stranger" not in sys.modules
    finally:
        sys.modules.pop("stranger", None)


def test_a_model_with_foreign_classes_is_not_sampled_without_asking(capsys, run, tmp_path):
    checkpoint = newest_checkpoint(run)
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != CHECKSUMS}
    config = json.loads(files["config.json"])
    config["sampler"]["class"] = "stranger.Sampler"
    write_folder(tmp_path / "model", files | {"config.json": json.dumps(config).encode()})
    refused(capsys, "sample", tmp_path / "model", says="trust")


def test_pack_and_unpack(capsys, run, tmp_path):
    assert status("checkpoint", "pack", run, "parts", "--max-file-size", "8kB") == 0
    assert status("checkpoint", "unpack", "parts", "again") == 0
    assert newest_checkpoint(Path("again")).name == newest_checkpoint(run).name
    refused(capsys, "checkpoint", "pack", run, "parts", says="exists")


def test_a_recipe_of_ones_own(capsys):
    Path("mine.py").write_text(
        "from dataclasses import replace\n"
        "from fewstep.networks import MLPConfig\n"
        "from fewstep.recipes import find_recipe\n"
        "ring = find_recipe('ring-ddpm')\n"
        "model = replace(ring.model, network=MLPConfig(width=16, depth=1))\n"
        "recipe = replace(ring, name='mine', model=model, batch_size=8)\n"
    )
    assert status("train", "./mine.py", "--steps", "3", "--device", "cpu", "--quiet") == 0
    assert status("sample", "runs/mine", "-n", "2", "--steps", "2") == 0
    assert np.load("runs/mine/samples/samples.npz")["x_0"].shape == (2, 2)
    Path("yours.py").write_text("recipe = 3\n")
    refused(capsys, "train", "yours.py", says="no variable `recipe`")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "m", "1h 30m", "-5m", "5min", "1h30", "soon"])
def test_durations_that_are_none(text):
    with pytest.raises(UserError, match="is not a duration"):
        parse_duration(text)


def test_importing_is_cheap():
    """Neither the library nor a command that needs none of it loads a heavy package; the check sees one that is."""
    program = f"""
import sys
def loaded():
    return [name for name in {HEAVY} if name in sys.modules]
import fewstep
print(loaded())
from fewstep.cli import main
main(["recipes"])
print(loaded())
import sklearn
print(loaded())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("[")] == ["[]", "[]", "['sklearn']"]
    assert any(line.startswith("ring-stmd") for line in lines)


def test_the_command_is_a_module(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fewstep", "tain"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("fewstep", run_name="__main__")
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fewstep: error: no command is called 'tain'")


def test_calibrate_writes_json_and_page_and_says_what_it_found(capsys, run, tmp_path):
    out, options = tmp_path / "out", ["--pairs", "50", "--draws", "7", "--bins", "4", "--taus", "0.3"]
    assert status("calibrate", run, *options, "--flow-steps", "1", "2", "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"calibration.json", "calibration.html"}
    result = json.loads((out / "calibration.json").read_text())
    assert result["recipe"] == "ring-stmd"
    assert result["checkpoint"] == "step-000000006"
    assert [family["name"] for family in result["families"]][:3] == ["M = 1", "M = 2", "exact posterior"]
    printed = " ".join(capsys.readouterr().out.split())
    page = (out / "calibration.html").read_text()
    for sentence in result["verdicts"]:
        assert sentence in printed
        assert html.escape(sentence) in page
    assert "spread/skill" in printed
    assert result["command"] in page


def test_what_has_no_posterior_is_not_calibrated(capsys, tmp_path):
    Path("velocity.py").write_text(
        "from dataclasses import replace\n"
        "from fewstep.models import MeanFlowConfig\n"
        "from fewstep.networks import MLPConfig\n"
        "from fewstep.objectives import MeanFlowObjective\n"
        "from fewstep.recipes import find_recipe\n"
        "from fewstep.samplers import FlowMap\n"
        "ring, model = find_recipe('ring-stmd'), MeanFlowConfig(network=MLPConfig(width=16, depth=1))\n"
        "recipe = replace(ring, name='velocity', model=model, objective=MeanFlowObjective(), sampler=FlowMap())\n"
    )
    assert status("train", "velocity.py", "--steps", "1", "--batch-size", "8", "--device", "cpu", "--quiet") == 0
    refused(capsys, "calibrate", "runs/velocity", says="a MeanFlow has no posterior q(x_0 | x_tau) to calibrate")


def test_a_generator_is_evaluated_by_its_one_step(capsys, tmp_path):
    out = tmp_path / "moons"
    assert status("train", "moons-drifting", "--steps", "2", *SMALL, "--out", out) == 0
    assert status("evaluate", out, "-n", "60", "--strength", "1") == 0
    rows = json.loads((out / "evaluation.json").read_text())["samples"]
    assert [(row["steps"], row["flow_steps"], row["nfe"]) for row in rows] == [(1, 1, 1)]
    assert status("evaluate", out, "-n", "60", "--steps", "1") == 0
    for wrong in (["--steps", "2"], ["--flow-steps", "2"], ["--grid"], ["--nfe", "4"], ["--save-default"]):
        refused(capsys, "evaluate", out, "-n", "60", *wrong, says="OneStep is one call of the network: leave")
    refused(capsys, "evaluate", out, "-n", "60", "--strength", "2", says="is 1 of a model trained without it")
    refused(
        capsys,
        "compare",
        out,
        f"{out}@ddim",
        says="moons@ddim: OfMeans draws from a PosteriorModel, and Generator is none",
    )


def test_steer_writes_weighted_samples_and_what_was_paid(capsys, run, tmp_path):
    wish = tmp_path / "wish.py"
    wish.write_text("def right(x):\n    return x[:, 0]\n\ndef twice(x):\n    return x.repeat(1, 2)\n")
    arguments = [
        "steer",
        run,
        "--reward",
        f"{wish}:right",
        "-n",
        "40",
        "--method",
        "SMC(steps=3, draws=2)",
        "--out",
        tmp_path / "s",
    ]
    assert status(*arguments) == 0
    assert "mean reward" in capsys.readouterr().out
    found = json.loads((tmp_path / "s" / "steered.json").read_text())
    with np.load(tmp_path / "s" / "steered.npz") as arrays:
        assert arrays["x_0"].shape == (40, 2)
        assert np.exp(arrays["log_w"]).sum() == pytest.approx(1)
        assert found["mean_reward"] == pytest.approx((np.exp(arrays["log_w"]) * arrays["x_0"][:, 0]).sum(), rel=1e-4)
    assert found["mean_reward"] > found["own_mean_reward"]
    two = [
        "--reward",
        f"{wish}:right",
        "Linear(slope=(0.0, 1.0))",
        "--weights",
        "1",
        "0.5",
        "--decode",
        f"{wish}:twice",
    ]
    assert status("steer", run, *two, "-n", "10") != 0  # decoded, a slope of 2 numbers for 4
    assert "one for each" in capsys.readouterr().err
    assert status("steer", run, *two[:-2], "-n", "10", "--method", "single") == 0
    assert (run / "steered" / "steered.json").exists()


def test_samples_that_are_few_are_told(capsys, run, tmp_path):
    """A reward of 1e6: however well they score, the samples are copies, and the report says so."""
    wish = tmp_path / "wish.py"
    wish.write_text("def much(x):\n    return 1e6 * x[:, 0]\n")
    assert status("steer", run, "--reward", f"{wish}:much", "-n", "40", "--out", tmp_path / "s") == 0
    assert "samples are different" in capsys.readouterr().out


def test_finetune_leaves_a_run_that_the_other_commands_take(capsys, run, tmp_path):
    arguments = [
        "finetune",
        run,
        "--reward",
        "Linear(slope=(1.0, 0.0))",
        "--pool",
        "200",
        "--steps",
        "4",
        "--batch-size",
        "8",
    ]
    out = tmp_path / "tuned"
    assert status(*arguments, "--device", "cpu", "--quiet", "--out", out, "-n", "100") == 0
    shown = capsys.readouterr().out
    assert "what the items are weighted to" in shown
    assert "mean reward after" in shown
    found = json.loads((out / "finetune.json").read_text())
    assert found["rounds"][0]["strength"] == 1
    assert status("sample", out, "-n", "4") == 0
    moved = out.rename(tmp_path / "moved")  # with all that it needs
    assert status("evaluate", moved, *MEASURE) == 0
    moved.rename(out)
    assert (
        status(*arguments, "--device", "cpu", "--quiet", "--out", out, "-n", "100", "--temperature", "2", "--resume")
        != 0
    )
    assert "was begun otherwise (plan.temperature: 1.0 -> 2.0)" in capsys.readouterr().err
    assert status("finetune", run, "--reward", "ink", "--out", out) != 0
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["steer", "RUN"], "give --reward"),
        (["steer", "RUN", "--reward", "nothing"], "nothing of this kind"),
        (["steer", "RUN", "--reward", "nowhere.py:f"], "does not exist"),
        (["steer", "RUN", "--reward", "ClassProbability(label=7)"], "no labelled images"),
        (["steer", "RUN", "--reward", "ink", "--method", "SMC(steps=0)"], "steps counts from 1"),
        (["steer", "RUN", "--reward", "ink", "--temperature", "0"], "temperature"),
        (["steer", "RUN", "--reward", "ink", "--weights", "1", "2"], "one for each"),
        (["finetune", "RUN"], "give --reward"),
        (["finetune", "RUN", "--reward", "ink", "--floor", "2"], "floor"),
    ],
)
def test_a_mistake_with_a_reward_is_one_line(capsys, run, tmp_path, arguments, says):
    refused(capsys, *(run if a == "RUN" else a for a in arguments), says=says)
