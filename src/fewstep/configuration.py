"""Frozen dataclasses to JSON and back: a recipe, a model's config, a sampler.

A dataclass becomes `{"class": "fewstep.module.Name", field: value, ...}`. Reading resolves names inside `fewstep` only;
anything else is somebody's code and is imported only with `trust_code=True`.
"""

import dataclasses
import importlib
from typing import Any

from fewstep.errors import UserError


def to_config(value: Any) -> Any:
    """The JSON form of a frozen dataclass, or of a number, string, None, tuple or list of such. `TypeError` otherwise."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_config(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **fields}
    if isinstance(value, tuple | list):
        return [to_config(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} has no place in a configuration: use dataclasses, numbers, strings and tuples")


def from_config(data: Any, trust_code: bool = False) -> Any:
    """What `to_config` was given; lists become tuples. Raises `UserError` on unknown or foreign names and fields."""
    if isinstance(data, list):
        return tuple(from_config(item, trust_code) for item in data)
    if not isinstance(data, dict):
        return data
    cls = _resolve(data.get("class"), trust_code)
    values = {name: from_config(value, trust_code) for name, value in data.items() if name != "class"}
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
    if unknown:
        raise UserError(f"{cls.__name__} has no field {', '.join(unknown)}: written by another version of fewstep?")
    try:
        return cls(**values)
    except TypeError as error:
        raise UserError(f"{cls.__name__} cannot be made from its configuration: {error}") from error


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two JSON forms differ, as `path: a -> b`."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = [*a, *(name for name in b if name not in a)]
        return [d for name in names for d in differences(a.get(name), b.get(name), f"{path}.{name}".lstrip("."))]
    return [] if a == b else [f"{path}: {a} -> {b}"]


def _resolve(name: Any, trust_code: bool) -> type:
    if not isinstance(name, str) or "." not in name:
        raise UserError(f"a configuration names its class, such as fewstep.networks.mlp.MLPConfig; found {name!r}")
    module, _, attribute = name.rpartition(".")
    if not trust_code and not (module == "fewstep" or module.startswith("fewstep.")):
        raise UserError(
            f"{name} is not part of fewstep: loading it runs its code; if you trust it, pass trust_code=True (--trust-code)"
        )
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(
            f"{name} cannot be found: another version of fewstep, or a file of yours not in PYTHONPATH?"
        ) from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)) or (not trust_code and cls.__module__ != module):
        raise UserError(f"{name} is not a configuration class")
    return cls
