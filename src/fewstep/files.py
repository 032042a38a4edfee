"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed; read with checksums."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from fewstep.errors import UserError

CHECKSUMS = "checksums.json"
PARTIAL = ".partial-"


def cache_folder() -> Path:
    """Where downloads and trained classifiers are kept: FEWSTEP_CACHE, or .cache/fewstep in the home folder."""
    return Path(os.environ.get("FEWSTEP_CACHE") or "~/.cache/fewstep").expanduser()


def write_file(path: Path, content: bytes | str) -> None:
    """Write one file atomically: a reader sees the old content or the new, never a part. The folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL + path.name)
    try:
        _write_flushed(partial, content.encode() if isinstance(content, str) else content)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write a folder of files with their SHA-256 sums atomically: it appears whole or not at all.

    A folder of that name that this function wrote is replaced (it stands in `.replaced-NAME` for the moment between two
    renames); any other is left alone with a `UserError`. Raises
    `OSError` (a full disk, say) with the old folder in its place.
    """
    if folder.exists() and not (folder / CHECKSUMS).exists():
        raise UserError(f"{folder} exists and is not a saved model or checkpoint: give a folder that does not exist")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(PARTIAL + folder.name)
    shutil.rmtree(partial, ignore_errors=True)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    try:
        partial.mkdir()
        for name, content in {**files, CHECKSUMS: json.dumps(sums, indent=1).encode()}.items():
            _write_flushed(partial / name, content)
        _flush_folder(partial)
        _put_in_place(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _flush_folder(folder.parent)


def read_checked(folder: Path, name: str) -> bytes:
    """The content of a file of such a folder. Raises `UserError` where it is missing or differs from its checksum."""
    content, sums = _read(folder / name), _read(folder / CHECKSUMS)
    try:
        expected = str(json.loads(sums)[name])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CHECKSUMS} is damaged: it has no checksum of {name}; restore the folder") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise UserError(
            f"{folder / name} is damaged: its SHA-256 is {found[:12]}..., expected {expected[:12]}...; restore the file, "
            f"or delete the folder {folder} to go on from an older checkpoint"
        )
    return content


def remove_partial(folder: Path) -> None:
    """Remove what an interrupted write left in this folder."""
    for partial in folder.glob(PARTIAL + "*"):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing; give the folder of a trained model, as `fewstep train` writes it"
        ) from error


def _put_in_place(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
        return
    old = folder.with_name(f".replaced-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        partial.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in a file's content, or a `UserError` that names the file."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore the file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; restore the file")
    return value
