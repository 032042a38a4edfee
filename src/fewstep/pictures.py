"""Arrays as pictures: grids of images, PNG and npz in memory."""

import io
import math

import numpy as np
import torch
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes; what lies outside is cut off, as any display does. Arrays are written uncut."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_levels(x: Tensor, step: float | None) -> Tensor:
    """Images as they would be stored, on the nearest of the grey levels `-1, -1 + step, .., 1`; as they are where it is None."""
    return x if step is None else ((x.clamp(-1, 1) + 1) / step).round() * step - 1


def grid(x: Tensor, columns: int | None = None, least: int = 320) -> np.ndarray:
    """Images `(n, c, h, w)` in [-1, 1] side by side, enlarged by a whole factor to at least `least` pixels across."""
    n, _, h, w = x.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    pad = max(1, h // 14)
    canvas = torch.full((x.shape[1], rows * (h + pad) + pad, columns * (w + pad) + pad), 96, dtype=torch.uint8)
    for i, image in enumerate(to_uint8(x)):
        top, left = pad + (i // columns) * (h + pad), pad + (i % columns) * (w + pad)
        canvas[:, top : top + h, left : left + w] = image
    factor = max(1, math.ceil(least / canvas.shape[2]))
    canvas = canvas.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return canvas.permute(1, 2, 0).squeeze(-1).numpy()


def png_bytes(image: np.ndarray) -> bytes:
    """A PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """A compressed npz file that holds the arrays by their names."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
