"""Flags of the commands: tyro reads them from dataclasses; a mistake becomes one line."""

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from typing import TypeVar

from fewstep.errors import UserError

T = TypeVar("T")

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse(form: type[T], arguments: list[str], command: str, description: str, default: T | None = None) -> T:
    """The flags as an instance of the dataclass `form`. Raises `UserError` with tyro's complaint on one line."""
    import tyro

    arguments = ["--n" if argument == "-n" else argument for argument in arguments]
    complaint = io.StringIO()
    width = os.environ.get("COLUMNS")
    try:
        if not {"-h", "--help"} & set(arguments):
            os.environ["COLUMNS"] = "2000"  # so that no word of the complaint is wrapped
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                form,
                args=arguments,
                prog=f"fewstep {command}",
                description=description,
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.AvoidSubcommands, tyro.conf.PositionalRequiredArgs),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_one_line(complaint.getvalue())}; see fewstep {command} --help") from None
    finally:
        os.environ.pop("COLUMNS", None)
        if width is not None:
            os.environ["COLUMNS"] = width


def allow_code_here(trust_code: bool) -> None:
    """With `trust_code`, classes of Python files in the working directory can be imported, as they were for training."""
    if trust_code:
        sys.path.insert(0, str(Path.cwd()))


def parse_duration(text: str) -> float:
    """Seconds of a duration such as 90s, 10m or 1h30m. Raises `UserError` on anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise UserError(f"{text!r} is not a duration: write 90s, 10m or 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _one_line(box: str) -> str:
    rows = [line.strip("│╭╮╰╯─ \n") for line in box.splitlines()]
    said = [row for row in rows[1:] if row.strip("-+| ") and "--help" not in row and "full helptext" not in row]
    return " ".join(row.strip("| ") for row in said).rstrip(".")
