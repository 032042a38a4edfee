"""What all processes of a joint training hold together, and what one process does in one thread."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fewstep.draws import Shard, Source


def gathered(x: Tensor, source: Source, axis: int = 0) -> Tensor:
    """The parts of all processes, joined on `axis` in the order of their ranks, without a gradient; of one, x itself."""
    if not isinstance(source, Shard) or source.count == 1:
        return x.detach()
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(source.count)]
    torch.distributed.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts, dim=axis)


def own_part(source: Source, n: int) -> slice:
    """Where this process's n stand among those of all."""
    return slice(source.rank * n, (source.rank + 1) * n) if isinstance(source, Shard) else slice(0, n)


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first process does what stands below while the others wait, and then they do: what it made is there."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if together else 0
    if together and rank > 0:
        torch.distributed.barrier()
    yield
    if together and rank == 0:
        torch.distributed.barrier()


@contextmanager
def one_thread() -> Iterator[None]:
    """What stands below runs in one thread, because their number changes the rounding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
