"""What a person at the terminal sees of something that takes a while."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Meter:
    """Progress with rate and time left: a bar on a terminal, a line every 20 seconds elsewhere."""

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "step", quiet: bool = False):
        self.console = Console(stderr=True, quiet=quiet)
        self.title, self.total, self.first, self.unit = title, total, done, unit
        self.start = self.last = time.monotonic()
        self.bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            self.bar = Progress(
                TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self.task = self.bar.add_task(title, total=total, completed=done, note="")
            self.bar.start()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the total are done."""
        now = time.monotonic()
        rate = (done - self.first) / max(now - self.start, 1e-9)
        note = f"{rate:.1f} {self.unit}s/s  {note}"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, note=note)
        elif now - self.last > 20 or done == self.total:
            self.last = now
            left = (self.total - done) / max(rate, 1e-9)
            self.console.print(f"{self.title}: {done}/{self.total}  {note}  {left:.0f} s left", highlight=False)


def peak_memory() -> int:
    """The most memory that the process has held so far, in bytes: of the GPU where one was used, else of the machine."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # not a Unix: unknown
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, by the manual pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak_memory() -> None:
    """Measure from now on; on a GPU only, the machine's own high-water mark stays."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
