"""The log of a training run: `log.jsonl`, and TensorBoard if asked for."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.files import write_file
from fewstep.pretrained import newest_checkpoint

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
        write_file(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.writer = _tensorboard(run, step) if tensorboard else None

    def write(self, line: dict[str, Any]) -> None:
        """Append one line, and its numbers to TensorBoard."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self.path} ({error.strerror or error}); the newest whole checkpoint is "
                f"{newest_checkpoint(self.path.parent)}; make room and go on with --resume"
            ) from error
        if self.writer is not None:
            numbers = {k: v for k, v in line.items() if isinstance(v, float)}
            numbers |= {f"raw_by_bucket/{k}": v for k, v in line.get("raw_by_bucket", {}).items()}
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Flush what TensorBoard still holds."""
        if self.writer is not None:
            self.writer.close()


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


def _tensorboard(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs the tensorboard package: pip install 'fewstep[tensorboard]'") from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
