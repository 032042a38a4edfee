"""Objects on the command line as Python writes them, without running code: `Inpainting(mask=HalfMask(side="top"))`."""

import ast
import dataclasses
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError


def concrete(family: ModuleType) -> dict[str, type]:
    """The dataclasses among the public names of a family that can be made."""
    values = ((name, getattr(family, name)) for name in family.__all__)
    return {
        name: value
        for name, value in values
        if isinstance(value, type) and dataclasses.is_dataclass(value) and not inspect.isabstract(value)
    }


def build(
    text: str,
    classes: Mapping[str, type],
    presets: Mapping[str, str],
    flag: str,
    given: dict[str, Any],
    kind: type = object,
) -> Any:
    """The object that a text names: a preset or a call of one of the classes with literals and such calls as arguments.

    `given` are fields of the outermost object, one of `kind`, that the caller fills in. Raises `UserError` with the names there
    are where the text is none of this, and for arguments that the class does not take.
    """
    text = presets.get(text, text)
    whole = sorted(name for name, value in classes.items() if issubclass(value, kind))
    expected = f"one of {', '.join(presets)}, or a call of {', '.join(whole)}, such as {next(iter(presets.values()))}"
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise UserError(f"{flag} is {expected}, not {text!r}") from error
    if isinstance(tree, ast.Name):
        tree = ast.Call(func=tree, args=[], keywords=[])
    if not isinstance(tree, ast.Call):
        raise UserError(f"{flag} is {expected}, not {text!r}")
    name = ast.unparse(tree.func)
    if name not in whole:
        raise UserError(f"{flag} is {expected}: nothing of this kind is called {name!r}")
    return _called(tree, classes, flag, given)


def _called(call: ast.Call, classes: Mapping[str, type], flag: str, given: dict[str, Any]) -> Any:
    name = ast.unparse(call.func)
    if name not in classes:
        raise UserError(f"{flag}: nothing is called {name!r}: there are {', '.join(sorted(classes))}")
    fields = {field.name for field in dataclasses.fields(classes[name])}
    if call.args:
        raise UserError(f"{flag}: {name} takes its arguments by name: {', '.join(sorted(fields - set(given)))}")
    tensors = {field.name for field in dataclasses.fields(classes[name]) if field.type is Tensor}
    values = {str(keyword.arg): _value(keyword.value, classes, flag) for keyword in call.keywords}
    try:
        values |= {name: torch.as_tensor(values[name]) for name in tensors & values.keys()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{flag}: {', '.join(tensors & values.keys())} of {name} takes numbers, such as ((1, 2), (3, 4))"
        ) from error
    unknown = values.keys() - fields | values.keys() & given.keys()
    if unknown:
        takes = ", ".join(sorted(fields - set(given)))
        raise UserError(f"{flag}: {name} takes no {', '.join(sorted(unknown))} here: it takes {takes}")
    try:
        return classes[name](**given, **values)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{flag}: {name} cannot be made of this: {error}") from error


def _value(node: ast.expr, classes: Mapping[str, type], flag: str) -> Any:
    if isinstance(node, ast.Call):
        return _called(node, classes, flag, {})
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(element, classes, flag) for element in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise UserError(f"{flag}: {ast.unparse(node)} is neither a number, a word in quotes nor a call") from error
