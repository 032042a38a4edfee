"""A folder of pictures as data: opened, turned upright, cut to the centre square and resized."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fewstep.datasets.base import Dataset, TensorExamples, data_root, held_out, one_line, split_indices
from fewstep.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Images(Dataset):
    """All the pictures under a folder, `x_0` `(3, size, size)`, or `(1, size, size)` where `grey`.

    A picture is turned as its EXIF data say, laid on white where it is transparent, resized so that its shorter side
    is `size` and cut to its centre; of an animation the first frame counts. A share `test_share` of the pictures (one
    at least on each side) is there to test on: the choice depends on their number and the order of their paths alone.
    Hidden files are left out. A relative folder lies in the data root where there is one, else in the working
    directory. Raises `UserError` where the folder is missing or holds fewer than two pictures, or a file in it is not a
    whole picture.
    """

    folder: str
    size: int = 32
    grey: bool = False
    test_share: float = 0.1

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.test_share < 1:
            raise UserError(f"Images needs size >= 1 and 0 < test_share < 1, not {self.size} and {self.test_share}")

    @property
    def item_shape(self) -> tuple[int, ...]:
        return (1 if self.grey else 3, self.size, self.size)

    def train(self, root: Path | None = None) -> TensorExamples:
        folder, train, test = self._listed(root)
        examples = self._examples(folder, train)
        for _ in self._pictures(test):  # so that a broken one stops the training rather than the test behind it
            pass
        return examples

    def test(self, root: Path | None = None) -> TensorExamples:
        folder, _, test = self._listed(root)
        return self._examples(folder, test)

    def _listed(self, root: Path | None) -> tuple[Path, list[Path], list[Path]]:
        given = Path(self.folder).expanduser()
        folder = given if given.is_absolute() else data_root(root, self.folder) or given
        if not folder.is_dir():
            raise UserError(
                f"no folder {folder.absolute()}: make it, or give the absolute path of your pictures "
                "(a relative one lies in the data root where there is one, else in the working directory)"
            )
        paths = sorted((p for p in folder.rglob("*") if p.is_file() and not _hidden(p, folder)), key=Path.as_posix)
        if not paths:
            raise UserError(f"{folder}: no pictures in this folder, at least 2 expected: put them there")
        train, test = split_indices(len(paths), held_out(str(folder), len(paths), self.test_share))
        return folder, [paths[i] for i in train.tolist()], [paths[i] for i in test.tolist()]

    def _examples(self, folder: Path, paths: list[Path]) -> TensorExamples:
        x_0 = torch.empty((len(paths), *self.item_shape), dtype=torch.uint8)
        for item, picture in zip(x_0, self._pictures(paths), strict=True):
            item.copy_(picture)
        return TensorExamples(name=str(folder), item_shape=self.item_shape, x_0=x_0)

    def _pictures(self, paths: list[Path]) -> Iterator[Tensor]:
        with ThreadPoolExecutor() as pool:
            yield from pool.map(partial(read_picture, size=self.size, grey=self.grey), paths)


def read_picture(path: Path, size: int, grey: bool) -> Tensor:
    """The centre square of a picture, uint8 `(c, size, size)`. Raises `UserError` where it is not a whole picture."""
    from PIL import Image, ImageOps

    image = open_picture(path, grey, "move it out of the folder")
    return _pixels(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


def read_whole_picture(path: Path, grey: bool) -> Tensor:
    """A picture as it is, uint8 `(c, h, w)`. Raises `UserError` where it is not a whole picture."""
    return _pixels(open_picture(path, grey, "give another file"))


def open_picture(path: Path, grey: bool, remedy: str) -> "Image":
    """A picture in 8 bits, opaque, turned upright. Raises `UserError` with this remedy where it cannot be read."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            return _flat(ImageOps.exif_transpose(opened), "L" if grey else "RGB")
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture, only pictures expected: {remedy}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # what decoders raise on broken files has no common base
        raise UserError(
            f"{path}: cannot be decoded, a whole picture expected ({one_line(error)}): replace it or {remedy}"
        ) from error


def _pixels(image: "Image") -> Tensor:
    pixels = np.asarray(image)
    return torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1).permute(2, 0, 1)


def _flat(image: "Image", mode: str) -> "Image":
    """The picture in 8 bits, opaque, in this mode."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits: a plain conversion would clip them at 255
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise UserError("grey levels of 32 bits, at most 16 bits expected: convert it to 8 or 16 bits")
        image = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    if image.mode == "F":
        raise UserError("a floating-point picture, whose white is unknown: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
