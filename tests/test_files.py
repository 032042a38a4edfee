"""Files are whole or absent, however the writing ends, and a changed byte is seen."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from fewstep import files
from fewstep.errors import UserError
from fewstep.files import CHECKSUMS, read_checked, remove_partial, write_file, write_folder

OLD = {"a.bin": b"old a", "b.json": b"{}"}
NEW = {"a.bin": b"the new a", "b.json": b'{"new": 1}', "c.bin": bytes(range(40))}


class FailingFsync:
    """`os.fsync` that raises at the call of this number, counted from 1; 0 never raises."""

    def __init__(self, at: int, error: BaseException | None = None):
        self.at, self.calls = at, 0
        self.error = error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __call__(self, descriptor: int) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder, checked."""
    names = [path.name for path in folder.iterdir() if path.name != CHECKSUMS]
    return {name: read_checked(folder, name) for name in sorted(names)}


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def write_in_place(path: Path, text: str) -> None:
    """How not to do it."""
    with path.open("w") as file:
        file.write(text)
        os.fsync(file.fileno())


def outcomes_of_writing(write, path: Path, monkeypatch, error: BaseException | None = None) -> list[str]:
    """What a reader finds after a write that failed at its first flush, its second, and so on until it succeeds."""
    found = []
    for k in range(1, 20):
        path.write_text("old")
        fsync = FailingFsync(k, error)
        monkeypatch.setattr(os, "fsync", fsync)
        if fsync_fails(lambda: write(path, "new"), fsync):
            assert everything(path.parent) == {path.name}
            found.append(path.read_text())
        else:
            assert path.read_text() == "new"
            return found
    raise AssertionError("the write never succeeds")


def fsync_fails(call, fsync: FailingFsync) -> bool:
    try:
        call()
    except BaseException as error:
        if error is not fsync.error:
            raise
        return True
    assert fsync.calls < fsync.at
    return False


def test_write_file(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_file(path, "h\u00e9")
    assert path.read_bytes() == "h\u00e9".encode()
    write_file(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert everything(path.parent) == {"file"}


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()], ids=["no space", "interrupt"])
def test_a_file_is_old_or_new_wherever_the_write_fails(tmp_path, monkeypatch, error):
    """Only the last flush, of the folder after the renaming, may fail with the new content in place."""
    found = outcomes_of_writing(write_file, tmp_path / "file", monkeypatch, error)
    assert len(found) >= 2
    assert found[:-1] == ["old"] * (len(found) - 1)
    assert found[-1] in ("old", "new")


def test_writing_in_place_is_caught(tmp_path, monkeypatch):
    assert outcomes_of_writing(write_in_place, tmp_path / "file", monkeypatch) == ["new"]  # at its first flush


def test_a_file_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_file(path, "old")
    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Input/output"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert everything(tmp_path) == {"file"}


def refuse(*_: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_write_folder(tmp_path):
    folder = tmp_path / "deep" / "folder"
    write_folder(folder, OLD)
    assert content(folder) == OLD
    write_folder(folder, NEW)
    assert content(folder) == NEW
    assert {path.name for path in folder.iterdir()} == {*NEW, CHECKSUMS}
    assert {path.name for path in folder.parent.iterdir()} == {"folder"}


@pytest.mark.parametrize("there", [True, False], ids=["over an old folder", "where there was none"])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt()], ids=["no space", "interrupt"])
def test_a_folder_is_old_or_new_wherever_the_write_fails(tmp_path, monkeypatch, there, error):
    folder = tmp_path / "folder"
    found = []
    for k in range(1, 20):
        shutil.rmtree(folder, ignore_errors=True)
        monkeypatch.setattr(os, "fsync", FailingFsync(0))
        if there:
            write_folder(folder, OLD)
        fsync = FailingFsync(k, error)
        monkeypatch.setattr(os, "fsync", fsync)
        if not fsync_fails(lambda: write_folder(folder, NEW), fsync):
            break
        assert {path.name for path in tmp_path.iterdir()} <= {"folder"}  # no partial
        found.append(content(folder) if folder.exists() else None)
    assert content(folder) == NEW
    before = OLD if there else None
    assert len(found) >= len(NEW) + 2
    assert found[:-1] == [before] * (len(found) - 1)
    assert found[-1] in (before, NEW)


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    write_folder(folder, OLD)
    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Input/output"):
        write_folder(folder, NEW)
    assert folder.exists(), "the old folder was removed before the new one was in its place"
    assert content(folder) == OLD


def test_every_byte_counts(tmp_path):
    """One flipped bit anywhere, the checksums included, is seen by whoever reads all files."""
    folder = tmp_path / "folder"
    write_folder(folder, NEW)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for i in range(len(whole)):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            with pytest.raises(UserError, match="damaged"):
                content(folder)
        path.write_bytes(whole[:-1])
        with pytest.raises(UserError, match="damaged"):
            content(folder)
        path.write_bytes(whole)
    assert content(folder) == NEW


@pytest.mark.parametrize("sums", ["[]", "3", "null", "", '{"b.json": "0"}', '{"a.bin": null}'])
def test_checksums_that_are_no_checksums(tmp_path, sums):
    write_folder(tmp_path / "folder", OLD)
    (tmp_path / "folder" / CHECKSUMS).write_text(sums)
    with pytest.raises(UserError, match="damaged"):
        read_checked(tmp_path / "folder", "a.bin")


def test_missing_files_are_named(tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(UserError, match=r"nothing.*is missing"):
        read_checked(tmp_path / "nothing", "a.bin")
    for name in ("a.bin", CHECKSUMS):
        write_folder(folder, OLD)
        (folder / name).unlink()
        with pytest.raises(UserError, match=f"{name}.*is missing"):
            read_checked(folder, "a.bin")
        shutil.rmtree(folder)
    write_folder(folder, OLD)
    (folder / "stranger").write_bytes(b"")
    with pytest.raises(UserError, match="no checksum of stranger"):
        read_checked(folder, "stranger")


def test_partial_files_are_swept_away(tmp_path):
    write_file(tmp_path / "file", "kept")
    write_folder(tmp_path / "folder", OLD)
    (tmp_path / f"{files.PARTIAL}file").write_text("part")
    (tmp_path / f"{files.PARTIAL}folder").mkdir()
    (tmp_path / f"{files.PARTIAL}folder" / "a.bin").write_text("part")
    remove_partial(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}
    remove_partial(tmp_path / "nothing")


def test_a_partial_folder_of_before_is_not_mixed_in(tmp_path):
    partial = tmp_path / f"{files.PARTIAL}folder"
    partial.mkdir()
    (partial / "stranger").write_text("left by a killed process")
    write_folder(tmp_path / "folder", OLD)
    assert json.loads((tmp_path / "folder" / CHECKSUMS).read_text()).keys() == OLD.keys()
    assert everything(tmp_path) == {"folder", *(f"folder/{name}" for name in (*OLD, CHECKSUMS))}
