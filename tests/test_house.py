"""The rules of the house that a program can check, each with an offence that it finds."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import fewstep
import fewstep.encoders
import fewstep.inverse
import fewstep.metrics
import fewstep.objectives
import fewstep.operators
import fewstep.steering
import fewstep.theory

SOURCE = Path(fewstep.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST = 300
OF_THEORY_INSIDE = {  # results, inputs, and what the bounds are made of: their docstrings do
    "Distance", "Estimate", "Level", "Lipschitz", "ModelCertificate", "Row",
    *("bridge_weights", "data_law", "exact_flow_map", "gaussian_distance", "interpolate_levels", "measure"),
    *("posterior_law", "second_moment", "velocity"),
}  # fmt: skip
OF_INVERSE_INSIDE = {
    "MALA",
    "PCN",
    "LatentChain",
    "InverseMethod",
    "AsDenoiser",
    "AsReconstructor",
}  # shown in the code


def too_long(source: str) -> list[str]:
    n = len(source.splitlines())
    return [f"{n} lines"] if n > LONGEST else []


def without_docstring(source: str) -> list[str]:
    """The module and its public functions and classes; what is inside a class is the class's matter."""
    tree = ast.parse(source)
    public = (
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    )
    missing = [node.name for node in public if not ast.get_docstring(node)]
    return missing if ast.get_docstring(tree) else ["module", *missing]


def calls(*names: str) -> Callable[[str], list[str]]:
    """Calls of these functions by their bare names."""

    def check(source: str) -> list[str]:
        found = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
        return [name.id for name in found if isinstance(name, ast.Name) and name.id in names]

    return check


def mentions(*names: str) -> Callable[[str], list[str]]:
    """Attributes, names and imports that are one of these or, for a plain name, have it among their parts."""

    def check(source: str) -> list[str]:
        found = []
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute):
                found += [ast.unparse(node)]
            elif isinstance(node, ast.Name):
                found += [node.id]
            elif isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [f"{node.module or ''}.{alias.name}" for alias in node.names]
        return [text for text in found for name in names if text == name or name in text.split(".")]

    return check


def open_keywords(source: str) -> list[str]:
    """Public functions and methods that take **kwargs."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return [f.name for f in functions if f.args.kwarg is not None and not f.name.startswith("_")]


forward_mode = mentions("jvp", "forward_ad", "jacfwd", "dual_level", "make_dual", "linearize")
pickling = mentions("pickle", "torch.load", "torch.save", "joblib", "dill", "cloudpickle")
RULES = {
    "no file is longer than 300 lines": (too_long, "x = 1\n" * (LONGEST + 1)),
    "modules, public functions and classes have a docstring": (without_docstring, '"""Module."""\ndef f(): pass'),
    "nothing prints": (calls("print"), "def f():\n    print(1)"),
    "nobody asks what an object has": (calls("hasattr", "eval", "exec"), "hasattr(x, 'y')"),
    "no open keywords": (open_keywords, "class A:\n    def f(self, **kwargs): pass"),
    "nothing is pickled": (pickling, "import torch\ntorch.load('x')"),
}
every_rule = pytest.mark.parametrize(("check", "offence"), RULES.values(), ids=RULES.keys())


@every_rule
def test_the_sources_keep_the_rule(check, offence):
    assert len(FILES) > 40
    found = {str(path.relative_to(SOURCE)): check(path.read_text()) for path in FILES}
    assert {path: what for path, what in found.items() if what} == {}


@every_rule
def test_the_rule_finds_an_offence(check, offence):
    assert check(offence)
    assert not check('"""Module."""\n\nx = 1\n')


def test_forward_mode_is_used_in_one_place():
    users = [path.relative_to(SOURCE).as_posix() for path in FILES if forward_mode(path.read_text())]
    assert users == ["flow.py"]
    for offence in (
        "torch.func.jvp(f, x, v)",
        "from torch.func import jvp",
        "import torch.autograd.forward_ad as fwAD",
    ):
        assert forward_mode(offence)
    assert not forward_mode("f.my_jvp(1)")


def test_every_offence_counts():
    assert without_docstring("class A: pass\ndef _f(): pass\nasync def g(): pass") == ["module", "A", "g"]
    assert pickling("from torch import save, load") == ["torch.save", "torch.load"]
    assert not pickling("import safetensors.torch\nsafetensors.torch.load(b'')\njson.load(f)")


@pytest.mark.parametrize(
    ("page", "family", "left_out"),
    [
        ("objectives.md", fewstep.objectives, {"Batch", "Loss", "Objective"}),
        ("metrics.md", fewstep.metrics, {"Metric", "inception_features"}),
        ("theory.md", fewstep.theory, OF_THEORY_INSIDE),
        ("operators.md", fewstep.operators, set()),
        (
            "inverse-problems.md",
            fewstep.inverse,
            OF_INVERSE_INSIDE,
        ),
        ("rewards.md", fewstep.steering, set()),
        ("drifting.md", fewstep.encoders, {"Encoder", "MapsModule", "pooled"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_public_name_has_its_place_in_the_docs(page, family, left_out):
    text = (SOURCE.parents[1] / "docs" / page).read_text()
    missing = {name for name in family.__all__ if f"`{name}" not in text} - left_out
    assert not missing
    assert {name for name in [*family.__all__, "Unheard"] if f"`{name}" not in text} - left_out == {"Unheard"}
