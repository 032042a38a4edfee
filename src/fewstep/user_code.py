"""Python files of the user: their code is run, and what goes wrong in it is told in one line."""

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from fewstep.errors import UserError


def run_file(path: Path, name: str) -> ModuleType:
    """The module, under this name, that running the file makes. Raises `UserError` where it cannot be run."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be imported: give a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its classes have names by which they can be found again
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        number = error.lineno if isinstance(error, SyntaxError) else (frames or [None])[-1]
        line = f", line {number}" if number else ""
        raise UserError(f"{path}{line}: {type(error).__name__}: {error} (--debug shows where)") from error
    return module
