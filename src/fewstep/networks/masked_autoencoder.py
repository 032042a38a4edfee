"""A small residual network that learns features by filling in what is hidden (ResNet-MAE, arXiv 2602.04770, appendix A.4)."""

from typing import cast

from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from fewstep.draws import Source, uniform


class BasicBlock(nn.Module):
    """`x + f(x)`, f two 3 x 3 convolutions with group normalisation; where stride or width change, x goes through 1 x 1."""

    def __init__(self, into: int, width: int, stride: int, groups: int):
        super().__init__()
        self.norm_1 = nn.GroupNorm(groups if into % groups == 0 else 1, into)
        self.first = nn.Conv2d(into, width, 3, stride=stride, padding=1)
        self.norm_2 = nn.GroupNorm(groups, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(into, width, 1, stride=stride) if stride > 1 or into != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(silu(self.norm_1(x)))
        return self.skip(x) + self.second(silu(self.norm_2(h)))


class MaskedAutoencoder(nn.Module):
    """A stem, stages of `blocks` basic blocks whose width doubles and whose side halves, and a decoder.

    `maps(x)` are the stem's output, that of every second block, and that of every stage. Items are
    `(channels, height, width)`; the side of the last map is at least 2.
    """

    def __init__(
        self, item_shape: tuple[int, ...], width: int = 32, blocks: tuple[int, ...] = (2, 2, 2), groups: int = 8
    ):
        super().__init__()
        channels, *sides = item_shape
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.stages = nn.ModuleList()
        into, ups = width, []
        for k, count in enumerate(blocks):
            out, stride = width * 2**k, 1 if k == 0 or min(sides) // 2**k < 2 else 2
            self.stages.append(
                nn.ModuleList(
                    BasicBlock(into if i == 0 else out, out, stride if i == 0 else 1, groups) for i in range(count)
                )
            )
            ups.append(nn.Conv2d(out, into, 3, padding=1))
            into = out
        self.ups = nn.ModuleList(reversed(ups))
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def _stages(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The maps, and the output of the stem and of every stage."""
        h = self.stem(x)
        maps, levels = [h], [h]
        for stage in self.stages:
            blocks = list(cast(nn.ModuleList, stage))
            for i, block in enumerate(blocks):
                h = block(h)
                if i % 2 == 1 and i < len(blocks) - 1:
                    maps.append(h)
            maps.append(h)
            levels.append(h)
        return maps, levels

    def maps(self, x: Tensor) -> list[Tensor]:
        """`(batch, C_k, H_k, W_k)` for each map."""
        return self._stages(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        """The image that the decoder sees in x, with skips from every stage but the last."""
        *skips, h = self._stages(x)[1]
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            h = up(silu(interpolate(h, size=skip.shape[2:], mode="nearest"))) + skip
        return self.out(silu(h))

    def loss(self, x: Tensor, generator: Source) -> Tensor:
        """`(batch,)`: patches of 2 x 2 hidden, each with probability 1/2; the mean squared error of what was hidden."""
        n, channels, height, width = x.shape
        cells = uniform((n, 1, (height + 1) // 2, (width + 1) // 2), generator, like=x) < 0.5
        hidden = cells.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width].to(x)
        error = (self(x * (1 - hidden)) - x).square() * hidden
        return error.sum((1, 2, 3)) / (channels * hidden.sum((1, 2, 3)).clamp_min(1))
