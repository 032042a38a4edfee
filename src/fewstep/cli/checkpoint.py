"""Carry a checkpoint to another machine in files of a given size: fewstep checkpoint pack|unpack

fewstep checkpoint pack RUN FOLDER --max-file-size 16MiB writes the newest checkpoint of the run to numbered parts in
FOLDER; fewstep checkpoint unpack FOLDER RUN puts it back, after which `fewstep train ... --out RUN --resume` goes on.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from fewstep.cli._parsing import parse
from fewstep.errors import UserError

_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Pack:
    """Split the newest checkpoint of a run into parts."""

    run: Path
    """Folder of the run."""
    folder: Path
    """Where the parts go."""
    max_file_size: str = "16MiB"
    """Size of the largest part, such as 500kB, 16MiB, 1GB."""


@dataclass(frozen=True)
class Unpack:
    """Put the parts back into a run folder."""

    folder: Path
    """Where the parts are."""
    run: Path
    """Folder of the run."""


def run(arguments: list[str]) -> int:
    """Pack or unpack."""
    from fewstep.training.packing import pack, unpack

    action = arguments[0] if arguments else ""
    if action in ("-h", "--help"):
        sys.stdout.write(__doc__)
    elif action == "pack":
        to = parse(Pack, arguments[1:], "checkpoint pack", __doc__)
        parts = pack(to.run, to.folder, parse_size(to.max_file_size))
        sys.stdout.write(f"{len(parts)} files in {to.folder}\n")
    elif action == "unpack":
        back = parse(Unpack, arguments[1:], "checkpoint unpack", __doc__)
        sys.stdout.write(f"unpacked {unpack(back.folder, back.run)}\n")
    else:
        raise UserError("fewstep checkpoint pack RUN FOLDER, or fewstep checkpoint unpack FOLDER RUN")
    return 0


def parse_size(text: str) -> int:
    """Bytes of a size such as 500kB or 16MiB. Raises `UserError` on anything else."""
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", text)
    if match is None or match[2].lower() not in _SIZES or int(match[1]) == 0:
        raise UserError(f"{text!r} is not a size: write 500kB, 16MiB or 1GB")
    return int(match[1]) * _SIZES[match[2].lower()]
