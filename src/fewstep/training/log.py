"""The log of a training run: `log.jsonl`, TensorBoard if asked for, and what the person at the terminal sees."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from fewstep.errors import UserError

BUCKETS = ("0", "0-0.25", "0.25-0.5", "0.5-0.75", "0.75-1")


class Averages:
    """Means over the steps since the last line of the log, and the raw loss by bucket of `t - r`."""

    def __init__(self) -> None:
        self.steps = 0
        self.sums: dict[str, float] = {}
        self.bucket_sums = torch.zeros(len(BUCKETS), dtype=torch.float64)
        self.bucket_counts = torch.zeros(len(BUCKETS), dtype=torch.float64)

    def add(self, values: dict[str, float], raw: Tensor, logs: dict[str, Tensor]) -> None:
        """Take in one step: numbers of the step, and numbers per item."""
        self.steps += 1
        means = {"raw": raw.mean().item()} | {k: v.mean().item() for k, v in logs.items() if k != "bucket"}
        for name, value in (values | means).items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if "bucket" in logs:
            index = (logs["bucket"].detach().cpu() * 4).ceil().long().clamp(0, 4)
            self.bucket_sums.index_add_(0, index, raw.detach().cpu().double())
            self.bucket_counts.index_add_(0, index, torch.ones_like(index, dtype=torch.float64))

    def line(self) -> dict[str, Any]:
        """The means; a bucket without items is left out."""
        buckets = zip(BUCKETS, self.bucket_sums.tolist(), self.bucket_counts.tolist(), strict=True)
        by_bucket = {name: total / count for name, total, count in buckets if count}
        return {name: total / self.steps for name, total in self.sums.items()} | {"raw_by_bucket": by_bucket}


class Log:
    """Appends lines to `run/log.jsonl`; on resuming, lines behind the checkpoint's step are dropped first."""

    def __init__(self, run: Path, step: int, tensorboard: bool):
        self.path = run / "log.jsonl"
        kept = [line for line in read_log(run) if line["step"] <= step]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self.writer = _tensorboard(run) if tensorboard else None

    def write(self, line: dict[str, Any]) -> None:
        """Append one line, and its numbers to TensorBoard."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.writer is not None:
            numbers = {k: v for k, v in line.items() if isinstance(v, float)}
            numbers |= {f"raw_by_bucket/{k}": v for k, v in line["raw_by_bucket"].items()}
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, line["step"])


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that was cut off by a crash is left out."""
    path = run / "log.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


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


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs the tensorboard package: pip install 'fewstep[tensorboard]'") from error
    return SummaryWriter(str(run / "tensorboard"))
