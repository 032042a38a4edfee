"""CIFAR-10 from its original batches, or from sheets that hold the same images in less space.

A batch is a Python-2 pickle of a dictionary: `data` `(10000, 3072)`, uint8, one image `(3, 32, 32)` a row, and `labels`,
a list of integers. Pickles are programs, so none is run: of the operations only those that build plain values are
known, and a function's name is no more than a word that has to be one of numpy's three.

A sheet is a lossless WebP picture, a grid of images of 32 x 32 in row-major order. `<part>_00.webp`, `<part>_01.webp`, ...
go on where the one before ends. `labels.npz` holds `y_<part>` `(n,)`, integers, and `exact_<part>` `(n,)`, bool, false
where an image is not byte for byte the original's; `<part>` is `train` or `test`. WebP has no checksum: most altered
bytes in a sheet go unnoticed, where those of an archive do not.
"""

import hashlib
import math
import pickletools
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from fewstep.datasets.base import Dataset, TensorExamples, data_root, locate, one_line
from fewstep.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE, BATCHES = "cifar-10-python.tar.gz", "cifar-10-batches-py"
PARTS = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
PER_BATCH, NUM_IMAGES = 10_000, {"train": 50_000, "test": 10_000}
SIDE, SHEET = 32, (1600, 3200)  # pixels: an image's side, a sheet's width and height
RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
FUNCTIONS = (*RECONSTRUCT, "numpy ndarray", "numpy dtype")
BOOLEANS = {"NEWTRUE": True, "NEWFALSE": False}
TAKES = {  # how many values an operation takes from the stack; 0: all above the last mark
    **{"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "REDUCE": 2, "BUILD": 1},
    **{"TUPLE": 0, "APPENDS": 0, "SETITEMS": 0},
}
REMEDY = f"get it again, or use the original {URL}"


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Dataset):
    """50000 colour images `(3, 32, 32)` to train on and 10000 to test on, ten classes of as many images each.

    The folder <root>/cifar10/ holds the folder cifar-10-batches-py, the archive it comes in, or sheets: the first of
    these that is there is read. Without a data root the archive is downloaded. `only_exact` leaves out the images of
    the sheets that are flagged as inexact (of the originals none is). `check_md5=False` accepts another archive, and
    batches and sheets of other numbers of images. Raises `UserError` where a file is missing, truncated or of another
    format, an archive is altered, a sheet is lossy, images and labels differ in number, or a label is not in 0 .. 9.
    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """

    only_exact: bool = False
    check_md5: bool = True

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (3, SIDE, SIDE)

    @property
    def num_classes(self) -> int:
        return 10

    def train(self, root: Path | None = None) -> TensorExamples:
        return self._examples("train", root)

    def test(self, root: Path | None = None) -> TensorExamples:
        return self._examples("test", root)

    def _examples(self, part: str, root: Path | None) -> TensorExamples:
        folder = data_root(root, "cifar10")
        if folder is not None and (folder / BATCHES).is_dir():
            name = folder / BATCHES
            x_0, labels = self._from_batches(_read(name, PARTS[part]))
        elif folder is not None and not (folder / ARCHIVE).exists() and _has_sheets(folder):
            name = folder
            x_0, labels = self._from_sheets(folder, part)
        else:
            name = locate(root, "cifar10", URL, MD5)
            with _blamed(name, "a whole .tar.gz"):
                if self.check_md5:
                    _check_original(name)
                contents = _unpacked(name, PARTS[part])
            x_0, labels = self._from_batches(contents)
        return TensorExamples(
            name=f"{name} ({part})",
            item_shape=self.item_shape,
            x_0=torch.from_numpy(x_0),
            labels=torch.from_numpy(labels),
            num_classes=self.num_classes,
        )

    def _from_batches(self, contents: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray]:
        batches = []
        for name, content in contents.items():
            with _blamed(name, "a batch"):
                images, labels = parse_batch(content)
                if self.check_md5 and len(images) != PER_BATCH:
                    raise UserError(f"{len(images)} images, expected {PER_BATCH} or check_md5=False")
            batches.append((images, labels))
        return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])

    def _from_sheets(self, folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
        path = folder / "labels.npz"
        with _blamed(path, f"an .npz with y_{part} and exact_{part}"):
            labels, exact = read_labels(path, part)
            n = len(labels)
            if self.check_md5 and n != NUM_IMAGES[part]:
                raise UserError(f"{n} labels y_{part}, expected {NUM_IMAGES[part]} or check_md5=False")
        x_0 = np.empty((n, *self.item_shape), np.uint8)
        filled = count = 0
        while filled < n:
            path = folder / f"{part}_{count:02d}.webp"
            with _blamed(path, "a whole lossless WebP picture"):
                images = read_sheet(path.read_bytes(), SHEET if self.check_md5 else None)
                end = filled + len(images)
                if end > n:
                    raise UserError(f"{end} images up to the end of this sheet, expected {n}, as many as labels")
                x_0[filled:end] = images
            filled, count = end, count + 1
        if (path := folder / f"{part}_{count:02d}.webp").exists():
            raise UserError(f"{path}: a sheet after the last one, {count} expected for {n} labels: remove it")
        return (x_0[exact], labels[exact]) if self.only_exact else (x_0, labels)


def read_sheet(content: bytes, size: tuple[int, int] | None) -> np.ndarray:
    """The images of a sheet, uint8 `(n, 3, 32, 32)`; of any grid where no size in pixels, width and height, is given.

    Raises `UserError` where it is not lossless, not in colours or of another size, and what Pillow raises if broken.
    """
    from PIL import Image

    if b"VP8L" not in _chunks(content):
        raise UserError("not lossless WebP, lossless expected")
    with Image.open(BytesIO(content), formats=["WEBP"]) as sheet:
        width, height = sheet.size
        if (width, height) != size if size else width % SIDE or height % SIDE:
            expected = f"{size[0]} x {size[1]} or check_md5=False" if size else f"multiples of {SIDE}"
            raise UserError(f"{width} x {height} pixels, expected {expected}")
        if sheet.mode != "RGB":
            raise UserError(f"colours {sheet.mode}, expected RGB")
        grid = np.asarray(sheet).reshape(height // SIDE, SIDE, width // SIDE, SIDE, 3)
    return grid.transpose(0, 2, 4, 1, 3).reshape(-1, 3, SIDE, SIDE)


def read_labels(path: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels, int64 `(n,)`, and which images are exact, bool `(n,)`. Raises `UserError` where they are not that."""
    with np.load(path, allow_pickle=False) as arrays:
        labels, exact = arrays[f"y_{part}"], arrays[f"exact_{part}"]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(f"y_{part} is {labels.dtype} of shape {labels.shape}, expected integers (n,)")
    if exact.dtype != bool or exact.shape != labels.shape:
        raise UserError(f"exact_{part} is {exact.dtype} of shape {exact.shape}, expected bool {labels.shape}")
    _check_range(labels)
    return labels.astype(np.int64), exact


def parse_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The images, uint8 `(n, 3, 32, 32)`, and labels, int64 `(n,)`, of a batch.

    Raises `UserError` where it is none, and in broken bytes what goes wrong there.
    """
    batch = _plain(content)
    data, labels = _array(batch[b"data"]), batch[b"labels"]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise UserError("labels that are no list of integers, which is expected")
    if data.ndim != 2 or data.shape[1] != 3 * SIDE**2:
        raise UserError(f"data of shape {data.shape}, expected (n, {3 * SIDE**2})")
    if len(data) != len(labels):
        raise UserError(f"{len(data)} images, but {len(labels)} labels, as many expected")
    _check_range(np.array(labels))
    return data.reshape(-1, 3, SIDE, SIDE), np.array(labels, np.int64)


class _Call:
    """What a pickle would call, and the state that it would set; nobody does."""

    def __init__(self, function: str, arguments: tuple) -> None:
        self.function, self.arguments = function, arguments
        self.state: tuple = ()


def _plain(content: bytes) -> dict:
    """What a pickle describes, in dictionaries, lists, tuples, bytes, numbers and `_Call`s, by a stack and a memory."""
    stack: list = []
    marks: list[int] = []
    memory: dict = {}
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name in TAKES:
            start = len(stack) - TAKES[name] if TAKES[name] else marks.pop()
            stack, taken = stack[:start], stack[start:]
        match name:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "BININT" | "BININT1" | "BININT2":
                stack.append(BOOLEANS.get(name, argument))
            case "SHORT_BINSTRING" | "BINSTRING":
                stack.append(str(argument).encode("latin1"))
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(taken))
            case "APPEND" | "APPENDS":
                stack[-1].extend(taken)
            case "SETITEM" | "SETITEMS":
                stack[-1].update(zip(taken[::2], taken[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memory[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memory[argument])
            case "GLOBAL" if argument in FUNCTIONS:
                stack.append(argument)
            case "REDUCE":
                stack.append(_Call(*taken))
            case "BUILD":
                stack[-1].state = taken[0]
            case _:
                wanted = name if argument is None else f"{name} {argument!r:.80}"
                raise UserError(f"a pickle that asks for {wanted}, which is not done: a plain batch expected")
    return stack[-1]


def _array(call: _Call) -> np.ndarray:
    """The array of bytes that a call and its state stand for."""
    _, shape, dtype, columns_first, content = call.state
    if call.function not in RECONSTRUCT or dtype.function != "numpy dtype" or dtype.arguments[0] not in (b"u1", b"|u1"):
        raise UserError("data that are no array of unsigned bytes, which is expected")
    if len(content) != math.prod(shape):
        raise UserError(f"data of {len(content)} bytes, expected {math.prod(shape)} for shape {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if columns_first else "C")


def _read(folder: Path, files: list[str]) -> dict[str, bytes]:
    """The contents of the batches of a folder by name."""
    contents = {}
    for path in [folder / file for file in files]:
        with _blamed(path, "a batch"):
            contents[str(path)] = path.read_bytes()
    return contents


def _unpacked(path: Path, files: list[str]) -> dict[str, bytes]:
    """The contents of the batches of an archive by name."""
    contents = {}
    with tarfile.open(path, "r|gz") as archive:  # one pass: to go back is to unpack again
        for member in archive:
            if member.name in [f"{BATCHES}/{file}" for file in files] and (stream := archive.extractfile(member)):
                contents[member.name] = stream.read()
    for file in files:
        if f"{BATCHES}/{file}" not in contents:
            raise UserError(f"no file {BATCHES}/{file} in it, {len(files)} such expected")
    return {f"{path}: {BATCHES}/{file}": contents[f"{BATCHES}/{file}"] for file in files}


def _has_sheets(folder: Path) -> bool:
    return (folder / "labels.npz").exists() or any(folder.glob("*.webp"))


def _chunks(content: bytes) -> list[bytes]:
    """The names of the chunks of a WebP file; nothing where it is none."""
    names, at = [], 12
    while content[:4] + content[8:12] == b"RIFFWEBP" and at + 8 <= len(content):
        names.append(content[at : at + 4])
        length = int.from_bytes(content[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    return names


def _check_range(labels: np.ndarray) -> None:
    if len(labels) and not 0 <= labels.min() <= labels.max() <= 9:
        raise UserError(f"labels in {labels.min()} .. {labels.max()}, expected 0 .. 9")


def _check_original(path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != MD5:
        raise UserError(f"md5 {found}, expected {MD5} or check_md5=False: truncated or altered")


@contextmanager
def _blamed(file: Path | str, expected: str) -> Iterator[None]:
    """Whatever is wrong becomes a `UserError` that begins with the file and ends with what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"no file {file}: {REMEDY}") from error
    except UserError as error:
        raise UserError(f"{file}: {error}: {REMEDY}") from error
    except Exception as error:  # what decoders and broken bytes raise has no common base
        raise UserError(f"{file}: cannot be read, {expected} expected ({one_line(error)}): {REMEDY}") from error
