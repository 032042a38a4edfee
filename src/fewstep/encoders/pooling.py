"""Features of maps at several scales (arXiv 2602.04770, appendix A.5).

Of a map `(batch, C, H, W)`: (a) its H W vectors; (b) their mean and deviation over the map; (c) over patches of 2 x 2, (d) of
4 x 4. Each place is a feature of its own: it gets its own kernel and field, `(places, batch, C)`. And the root mean square of
each channel of the encoder's input.
"""

from torch import Tensor
from torch.nn.functional import avg_pool2d

PATCHES = (2, 4)
EPSILON = 1e-6  # under a root


def pooled(x: Tensor, maps: list[Tensor], most_places: int | None = None) -> dict[str, Tensor]:
    """The features `(places, batch, C)` of items x `(batch, channels, H, W)` and their maps, by name.

    With `most_places` a map, or the patches of one, that has more places than this is left to the coarser ones.
    """
    found = {"input": (x.square().mean((2, 3)) + EPSILON).sqrt()[None]}
    for k, h in enumerate(maps):
        found[f"map {k}"] = _places(h)
        whole = h.flatten(2)
        if whole.shape[2] > 1:  # of one place they are that place, and nothing
            found[f"mean {k}"] = whole.mean(2)[None]
            found[f"deviation {k}"] = _deviation(whole.var(2, correction=0))[None]
        for size in PATCHES:
            if size < min(h.shape[2:]):  # a patch as large as the map is (b), one of a single place is (a)
                mean = _patches(h, size)
                again = mean.repeat_interleave(size, 2).repeat_interleave(size, 3)[:, :, : h.shape[2], : h.shape[3]]
                found[f"mean {k}, {size} x {size}"] = _places(mean)
                found[f"deviation {k}, {size} x {size}"] = _places(_deviation(_patches((h - again).square(), size)))
    return {name: h for name, h in found.items() if most_places is None or len(h) <= most_places}


def _patches(h: Tensor, size: int) -> Tensor:
    """Means over patches; those at the far edges are cut off where the size does not divide the side."""
    return avg_pool2d(h, size, ceil_mode=True, count_include_pad=False)


def _deviation(variance: Tensor) -> Tensor:
    return (variance + EPSILON).sqrt()


def _places(h: Tensor) -> Tensor:
    """`(H W, batch, C)`."""
    return h.flatten(2).permute(2, 0, 1)
