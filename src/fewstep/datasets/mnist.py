"""MNIST from its four original files.

An idx file is a magic number (two zeros, the type, 8 for unsigned bytes, and the number of axes), the lengths of the
axes as big-endian 32-bit integers, and the bytes of the array in row-major order; the originals are packed with gzip.
"""

import gzip
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.datasets.base import Dataset, TensorExamples, locate, one_line
from fewstep.errors import UserError

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FILES = {  # length in bytes and md5 of the originals
    "train-images-idx3-ubyte.gz": (9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "train-labels-idx1-ubyte.gz": (28881, "d53e105ee54ea40749a09fcbcd1e9432"),
    "t10k-images-idx3-ubyte.gz": (1648877, "9fb629c4189551a2d022fa330f9573f3"),
    "t10k-labels-idx1-ubyte.gz": (4542, "ec29112dd5afa0611ce80d1b7f02629c"),
}


@dataclass(frozen=True, kw_only=True)
class MNIST(Dataset):
    """60000 grey images `(1, 28, 28)` of handwritten digits to train on and 10000 to test on, ten classes.

    The files are those of <root>/mnist/ or are downloaded. `check_md5=False` accepts other files of the same format and
    image size. Raises `UserError` where a file is missing, truncated, altered or of another format.
    Source: LeCun, Cortes and Burges 1998, The MNIST database of handwritten digits.
    """

    check_md5: bool = True

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (1, 28, 28)

    @property
    def num_classes(self) -> int:
        return 10

    def train(self, root: Path | None = None) -> TensorExamples:
        return self._examples("train", root)

    def test(self, root: Path | None = None) -> TensorExamples:
        return self._examples("t10k", root)

    def _examples(self, part: str, root: Path | None) -> TensorExamples:
        images_path, images = self._array(f"{part}-images-idx3-ubyte.gz", 3, root)
        labels_path, labels = self._array(f"{part}-labels-idx1-ubyte.gz", 1, root)
        if len(images) != len(labels):
            raise UserError(
                f"{images_path}: {len(images)} images, but {len(labels)} labels in {labels_path}, as many expected: "
                "take both files from the same place"
            )
        if len(labels) and labels.max() >= self.num_classes:
            raise UserError(f"{labels_path}: a label {int(labels.max())}, expected 0 .. 9: renumber the classes")
        return TensorExamples(
            name=str(images_path),
            item_shape=self.item_shape,
            x_0=images[:, None],
            labels=labels,
            num_classes=self.num_classes,
        )

    def _array(self, file: str, rank: int, root: Path | None) -> tuple[Path, Tensor]:
        size, md5 = FILES[file]
        path = locate(root, "mnist", URL + file, md5)
        remedy = f"download it again from {URL + file}"
        try:
            packed = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({one_line(error)}): see to its permissions") from error
        if self.check_md5:
            _check_original(path, packed, size, md5, remedy + ", or set check_md5=False for files of your own")
        return path, parse_idx(path, _unpack(path, packed, remedy), rank, remedy)


def parse_idx(path: Path, data: bytes, rank: int, remedy: str) -> Tensor:
    """The uint8 tensor in the bytes of an idx file with `rank` axes; path and remedy are for the error's message."""
    magic, start = bytes([0, 0, 8, rank]), 4 + 4 * rank
    if data[:4] != magic:
        raise UserError(f"{path}: magic number {data[:4].hex()}, expected {magic.hex()}: no such idx file, {remedy}")
    if len(data) < start:
        raise UserError(f"{path}: ends after {len(data)} bytes, expected a header of {start}: truncated, {remedy}")
    shape = struct.unpack(f">{rank}I", data[4:start])
    expected = start + math.prod(shape)
    if len(data) != expected:
        state = "truncated" if len(data) < expected else "altered"
        raise UserError(f"{path}: {len(data)} bytes unpacked, expected {expected} for shape {shape}: {state}, {remedy}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())


def _check_original(path: Path, packed: bytes, size: int, md5: str, remedy: str) -> None:
    if len(packed) != size:
        state = "truncated" if len(packed) < size else "altered"
        raise UserError(f"{path}: {len(packed)} bytes, expected {size}: {state}, {remedy}")
    found = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(f"{path}: md5 {found}, expected {md5}: altered, {remedy}")


def _unpack(path: Path, packed: bytes, remedy: str) -> bytes:
    if packed[:2] != b"\x1f\x8b":
        raise UserError(f"{path}: begins with {packed[:4].hex() or 'nothing'}, expected gzip (1f8b): {remedy}")
    try:
        return gzip.decompress(packed)
    except EOFError as error:
        raise UserError(f"{path}: {len(packed)} bytes that end early, expected whole gzip: {remedy}") from error
    except (OSError, zlib.error) as error:
        raise UserError(f"{path}: broken gzip ({one_line(error)}), expected whole gzip: {remedy}") from error
