"""An array file of one's own as data: `.npy`, or `.npz` with `x_0` and, where there are any, `labels` and `weights`.

An .npy file begins with a magic string and a header with the type and the shape, so that the shape of an item is known
without reading the items; an .npz file is a zip archive of such files, one for each array.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import cast

import numpy as np
import torch

from fewstep.datasets.base import Dataset, TensorExamples, held_out, one_line
from fewstep.errors import UserError

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, kw_only=True)
class Arrays(Dataset):
    """The items of a file: vectors `x_0` `(n, d)`, floating, or images `(n, c, h, w)`, floating in [-1, 1] or uint8.

    `labels` `(n,)`, integers from 0, and `weights` `(n,)`, not negative, in proportion to which items are drawn, come from an
    .npz only. A share `test_share` of the items (one at least on each
    side), always the same ones, is there to test on. The path is taken as it is; no data root is looked into.
    Raises `UserError` where the file is missing, truncated, of another format, type or rank, holds Python objects, NaN,
    infinity or images out of range, or fewer than two items.
    """

    path: str
    test_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise UserError(f"Arrays needs 0 < test_share < 1, not {self.test_share}")

    @property
    def item_shape(self) -> tuple[int, ...]:
        with _opened(self._path) as arrays:
            return arrays["x_0"].shape[1:]

    @property
    def num_classes(self) -> int:
        with _opened(self._path) as arrays:
            return _count(arrays["labels"].read()) if "labels" in arrays else 0

    def train(self, root: Path | None = None) -> TensorExamples:
        return self._split()[0]

    def test(self, root: Path | None = None) -> TensorExamples:
        return self._split()[1]

    @property
    def _path(self) -> Path:
        return Path(self.path).expanduser()

    def _split(self) -> tuple[TensorExamples, TensorExamples]:
        with _opened(self._path) as arrays:
            x_0 = arrays["x_0"].read()
            labels = arrays["labels"].read() if "labels" in arrays else None
            weights = arrays["weights"].read() if "weights" in arrays else None
        examples = TensorExamples(
            name=str(self._path),
            item_shape=x_0.shape[1:],
            x_0=torch.from_numpy(x_0),
            labels=None if labels is None else torch.from_numpy(labels),
            num_classes=0 if labels is None else _count(labels),
            weights=None if weights is None else torch.from_numpy(weights),
        )
        return examples.split(held_out(str(self._path), len(x_0), self.test_share))


def _count(labels: np.ndarray) -> int:
    return int(labels.max()) + 1


@dataclass(frozen=True)
class _Stored:
    """An array in a file: its header has been read and fits, its numbers have not."""

    stream: BufferedIOBase
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """The numbers as float32, uint8 (pixels), int64 (labels) or float64 (weights)."""
        self.stream.seek(0)
        array = np.lib.format.read_array(self.stream, allow_pickle=False)
        if len(self.shape) == 1:
            return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        with np.errstate(over="ignore"):  # infinity is reported with its index later
            return np.ascontiguousarray(array, np.uint8 if array.dtype == np.uint8 else np.float32)


@contextmanager
def _opened(path: Path) -> Iterator[dict[str, _Stored]]:
    """The arrays of a file by name. Whatever is wrong with it becomes a `UserError` that begins with its path."""
    if not path.is_file():
        raise UserError(f"no file {path.absolute()}: give the path of an .npy or .npz file")
    try:
        with path.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            if start == np.lib.format.MAGIC_PREFIX:
                yield {"x_0": _stored("x_0", file, path.stat().st_size)}
            elif start.startswith(b"PK"):
                with zipfile.ZipFile(file) as archive:
                    yield _members(archive)
            else:
                raise UserError(f"begins with {start!r}, expected .npy or .npz: save it with numpy.save or numpy.savez")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        problem = f"cannot be read, a whole array file expected ({one_line(error)})"
        raise UserError(f"{path}: {problem}: save it again") from error


def _members(archive: zipfile.ZipFile) -> dict[str, _Stored]:
    names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    if "x_0" not in names:
        raise UserError(
            f"holds {', '.join(names) or 'nothing'}, expected x_0 and perhaps labels and weights: rename the arrays"
        )
    infos = {name: archive.getinfo(f"{name}.npy") for name in ("x_0", "labels", "weights") if name in names}
    return {
        name: _stored(name, cast(BufferedIOBase, archive.open(info)), info.file_size) for name, info in infos.items()
    }


def _stored(name: str, stream: BufferedIOBase, length: int) -> _Stored:
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise UserError(f"{name} has format version {version}, expected (1, 0) or (2, 0): save plain numbers")
    try:
        shape, _, dtype = HEADERS[version](stream)
    except Exception as error:  # numpy evaluates the header: a broken one raises what Python's parser does
        raise UserError(
            f"{name} has a broken header, shape and type expected ({one_line(error)}): save it again"
        ) from error
    _check_kind(name, shape, dtype)
    expected = stream.tell() + math.prod(shape) * dtype.itemsize
    if length != expected:
        state = "truncated" if length < expected else "altered"
        raise UserError(f"{name} takes {length} bytes, expected {expected} for shape {shape}: {state}, save it again")
    return _Stored(stream, shape)


def _check_kind(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise UserError(f"{name} holds Python objects, which are not loaded, numbers expected: save it as float32")
    if 0 in shape:
        raise UserError(f"{name} is empty (shape {shape}), at least 2 items expected: save some")
    if name == "labels":
        if dtype.kind not in "iu" or len(shape) != 1:
            raise UserError(f"labels are {dtype} of shape {shape}, expected integers (n,): convert them")
        return
    if name == "weights":
        if dtype.kind != "f" or len(shape) != 1:
            raise UserError(f"weights are {dtype} of shape {shape}, expected floating numbers (n,): convert them")
        return
    if len(shape) not in (2, 4):
        raise UserError(f"x_0 has shape {shape}, expected vectors (n, d) or images (n, c, h, w): reshape it")
    if not (dtype.kind == "f" or (dtype == np.uint8 and len(shape) == 4)):
        raise UserError(f"x_0 is {dtype} of shape {shape}, expected floating numbers or uint8 images: convert it")
    if len(shape) == 4 and shape[3] in (1, 3) and min(shape[1:3]) > 4:
        raise UserError(f"x_0 has shape {shape}, expected images (n, c, h, w): move the channels to the second axis")
