"""Queues of the latest items, of all or by class, as buffers that are stored with a checkpoint."""

import torch
from torch import Tensor, nn

from fewstep.draws import Source, uniform
from fewstep.errors import UserError


class RingBuffer(nn.Module):
    """The latest `size` items `(*item_shape)` of each of `rows` classes; older ones are written over.

    Several processes keep the same queues: push what all of them have. Raises `UserError` for a size or rows below 1.
    """

    items: Tensor
    pushed: Tensor

    def __init__(self, item_shape: tuple[int, ...], size: int, rows: int = 1):
        super().__init__()
        if size < 1 or rows < 1:
            raise UserError(f"a queue holds one item at least, of one class at least: not {size} of {rows}")
        self.size = size
        self.register_buffer("items", torch.zeros(rows, size, *item_shape))
        self.register_buffer("pushed", torch.zeros(rows, dtype=torch.int64))

    @property
    def held(self) -> Tensor:
        """How many items each row holds, `(rows,)`."""
        return self.pushed.clamp_max(self.size)

    @torch.no_grad()
    def push(self, x: Tensor, rows: Tensor | None = None) -> None:
        """Items `(n, ...)`, each to its row `(n,)`; to row 0 where there is none given."""
        if not self.pushed.any():
            self.items = self.items.to(x)  # in the dtype and on the device of what comes
            self.pushed = self.pushed.to(x.device)
        rows = torch.zeros(len(x), dtype=torch.int64, device=x.device) if rows is None else rows
        for row in rows.unique().tolist():
            new = x[rows == row][-self.size :]
            skipped = int((rows == row).sum()) - len(new)
            at = (int(self.pushed[row]) + skipped + torch.arange(len(new), device=x.device)) % self.size
            self.items[row, at] = new.to(self.items)
            self.pushed[row] += skipped + len(new)

    def draw(self, rows: Tensor, n: int, generator: Source) -> Tensor:
        """`(k, n, ...)`: n different items of each row in `rows` `(k,)`. Raises `UserError` where a row holds fewer."""
        held = self.held[rows]
        if int(held.min()) < n:
            raise UserError(f"a queue holds {int(held.min())} items, {n} are asked for: push more, or ask for fewer")
        keys = uniform((len(rows), self.size), generator, like=self.items)
        empty = torch.arange(self.size, device=keys.device) >= held[:, None]
        chosen = keys.masked_fill(empty, -1.0).topk(n, dim=1).indices
        return self.items[rows[:, None], chosen]

    def all(self) -> Tensor:
        """What row 0 holds, `(held, ...)`."""
        return self.items[0, : int(self.held[0])]
