"""The drifting field of large clouds: memory stays flat, time grows as n m, and blocks change nothing (docs/drifting.md).

python benchmarks/drifting_memory.py --sizes 2048 8192 32768 65536

Each size in a process of its own, float32, D = 16; peak memory above that of the process with its clouds and no field.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from fewstep.drift import DriftingField
from fewstep.kernels import Laplace


def clouds(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and data."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 16, generator=generator), torch.randn(n, 16, generator=generator) + 0.3


def high_water() -> float:
    """The most memory since `clear_refs` was last written, in MiB (Linux)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def one(n: int, normalisation: str) -> None:
    """Print peak memory in MiB above the start's, and seconds."""
    x, y = clouds(n)
    DriftingField(kernel=Laplace(bandwidth=1.0), normalisation=normalisation)(x[:64], y[:64])
    Path("/proc/self/clear_refs").write_text("5")
    before, start = high_water(), time.monotonic()
    DriftingField(kernel=Laplace(bandwidth=1.0), normalisation=normalisation)(x, y)
    print(high_water() - before, time.monotonic() - start)


def main() -> None:
    """Every size in its own process; a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[2048, 8192, 32768, 65536])
    parser.add_argument("--normalisations", nargs="+", default=["split", "both"])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    if flags.one:
        one(int(flags.one[0]), flags.one[1])
        return
    x, y = clouds(2048)
    for name in flags.normalisations:
        kernel = Laplace(bandwidth=1.0)
        dense, streamed = (DriftingField(kernel=kernel, normalisation=name, block=b)(x, y) for b in (1 << 40, 1 << 16))
        print(f"{name}: blocks against dense at 2048 points, largest difference {(dense - streamed).abs().max():.1e}")
    head = "| normalisation | points of each cloud | MiB above the clouds | all pairs would take, MiB | seconds |"
    print(f"\n{head}\n|---|---|---|---|---|")
    for name in flags.normalisations:
        for n in flags.sizes:
            command = [sys.executable, __file__, "--one", str(n), name]
            peak, seconds = map(
                float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            )
            print(f"| {name} | {n} | {peak:.0f} | {2 * n * n * 4 / 2**20:.0f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
