"""A checkpoint in parts: split into files of a bounded size, each with its checksum, and put together again."""

import io
import json
import re
import tarfile
from pathlib import Path

from fewstep.errors import UserError
from fewstep.files import CHECKSUMS, parse_json, read_checked, write_file, write_folder
from fewstep.pretrained import newest_checkpoint
from fewstep.training.checkpoint import STATE, TENSORS

MANIFEST = "manifest.json"
OF_THE_RUN = ("recipe.json", "log.jsonl", "command.txt")


def pack(run: Path, folder: Path, max_file_size: int) -> list[Path]:
    """Write the newest checkpoint of `run` to `folder` as parts of at most `max_file_size` bytes (from 1 KiB up).

    The run's recipe, log and command go along.
    """
    if max_file_size < 1024:
        raise UserError(f"parts of {max_file_size} bytes are too small: give at least 1KiB")
    checkpoint = newest_checkpoint(run)
    if checkpoint is None:
        raise UserError(f"{run} has no checkpoint to pack")
    if folder.exists():
        raise UserError(f"{folder} exists: give a folder that does not")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path in sorted(checkpoint.iterdir()):
            if path.name != CHECKSUMS:
                read_checked(checkpoint, path.name)
            tar.add(path, arcname=path.name)
        for name in OF_THE_RUN:
            if (run / name).exists():
                tar.add(run / name, arcname="run-" + name)
    content = archive.getvalue()
    parts = [content[i : i + max_file_size] for i in range(0, len(content), max_file_size)]
    names = [f"part-{i:04d}" for i in range(len(parts))]
    manifest = {"checkpoint": checkpoint.name, "parts": names, "bytes": len(content)}
    files = dict(zip(names, parts, strict=True)) | {MANIFEST: json.dumps(manifest, indent=1).encode()}
    largest = max(len(files[MANIFEST]), 100 * len(files))  # the checksums' file is about as long as that
    if largest > max_file_size:
        raise UserError(f"{len(parts)} parts need a list of {largest} bytes: give a larger --max-file-size")
    write_folder(folder, files)
    return sorted(folder.iterdir())


def unpack(folder: Path, run: Path) -> Path:
    """Put the parts in `folder` together as a checkpoint of `run`; every file is checked before anything is written.

    What the run folder has already of recipe, log and command stays.
    """
    manifest = parse_json(read_checked(folder, MANIFEST), folder / MANIFEST)
    content = b"".join(read_checked(folder, name) for name in manifest["parts"])
    name = str(manifest["checkpoint"])
    if not re.fullmatch(r"step-\d{9}", name):
        raise UserError(f"{folder} is no packed checkpoint: it calls itself {name!r}, expected step- and nine digits")
    target = run / "checkpoints" / name
    if target.exists():
        raise UserError(f"{target} exists already: remove it, or unpack to another folder")
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            if file is None or "/" in member.name:
                raise UserError(f"{folder} is no packed checkpoint: {member.name} has no place in one")
            files[member.name] = file.read()
    files.pop(CHECKSUMS, None)  # made anew
    if not {STATE, TENSORS} <= set(files):
        raise UserError(f"{folder} is no packed checkpoint: it lacks {STATE} or {TENSORS}")
    of_the_run = {name: files.pop("run-" + name) for name in OF_THE_RUN if "run-" + name in files}
    write_folder(target, files)
    for name, content in of_the_run.items():
        if not (run / name).exists():
            write_file(run / name, content)
    return target
