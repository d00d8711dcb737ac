"""Random batches of 50 rows from a feature file, as a share of a training step.

    python -m benchmarks.feature_reading                       # a file of 2 GB, under a minute
    python -m benchmarks.feature_reading --gigabytes 10        # the size of the goal; larger than memory is best
    python -m benchmarks.feature_reading --gigabytes 0.1 --repeats 5 --folder .

Warm: the operating system holds the file in memory. Cold: it was told to drop the file (posix_fadvise) before every
batch. "read" is FeatureFile.read alone; "batch" is RegionFeatures.batch, which also checks, normalises and converts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.common import SHAPES, Row, Shape, interleaved, milliseconds, our_method, parser, report, step_of
from benchmarks.data import make_feature_file
from core.feature_file import FeatureFile
from core.features import RegionFeatures
from core.training import read_ahead, reads_ahead

D, GRID = 2048, (7, 7)
R = GRID[0] * GRID[1]


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--gigabytes", type=float, default=2.0, help="size of the file (default: %(default)s)")
    made.add_argument("--repeats", type=int, default=20, help="batches of each kind (default: %(default)s)")
    made.add_argument("--batch", type=int, default=50, help="rows of a batch (default: %(default)s)")
    made.add_argument("--folder", type=Path, default=None, help="where the file is made (default: a temporary folder)")
    return made


def drop(path: Path) -> None:
    """Ask the operating system to forget what it holds of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def seconds(get: Callable[[np.ndarray], object], path: Path, n: int, args: argparse.Namespace, cold: bool) -> float:
    """Median time of getting a random batch."""
    rng = np.random.default_rng(2)
    taken = []
    for _ in range(args.repeats):
        rows = rng.choice(n, args.batch, replace=False)
        if cold:
            drop(path)
        started = time.perf_counter()
        get(rows)
        taken.append(time.perf_counter() - started)
    return median(taken)


def epoch_seconds(features: RegionFeatures, shape: Shape, n: int, args: argparse.Namespace) -> float:
    """Time of a training step whose batches come as the training loop has them."""
    phase = our_method(shape).phases[0]
    y = torch.randint(shape.C - shape.unseen, (args.batch,), generator=torch.Generator().manual_seed(1))
    rng = np.random.default_rng(3)
    drawn = [rng.choice(n, args.batch, replace=False) for _ in range(args.repeats + 2)]
    started = 0.0
    for turn, (_, x) in enumerate(read_ahead(features.batch, ((r, r) for r in drawn), reads_ahead(features))):
        if turn == 2:  # the first two warm up
            started = time.perf_counter()
        loss = phase.loss(x, y)["loss"]
        phase.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        phase.optimizer.step()
    return (time.perf_counter() - started) / args.repeats


def rows(args: argparse.Namespace) -> list[Row]:
    """One row per way of getting a batch and training step."""
    n = max(24, args.batch, round(args.gigabytes * 1e9 / (D * R * 2)))
    steps = {name: interleaved({"ours": step_of("ours", SHAPES[name])}, args.repeats)["ours"] for name in SHAPES}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = make_feature_file(Path(folder) / "features.hdf5", n)
        with FeatureFile(path) as file:
            streamed = RegionFeatures(file, np.arange(n), (R, D), budget=0)
            resident = RegionFeatures(file, np.arange(min(n, 2000)), (R, D))
            for start in range(0, n, 256):
                file.read(np.arange(start, min(start + 256, n)))  # now warm
            times = {
                "read, warm": seconds(file.read, path, n, args, cold=False),
                "batch, streamed, warm": seconds(streamed.batch, path, n, args, cold=False),
                "batch, resident": seconds(resident.batch, path, min(n, 2000), args, cold=False),
                "read, cold": seconds(file.read, path, n, args, cold=True),
                "batch, streamed, cold": seconds(streamed.batch, path, n, args, cold=True),
            }
            whole = {
                name: (epoch_seconds(resident, s, min(n, 2000), args), epoch_seconds(streamed, s, n, args))
                for name, s in SHAPES.items()
            }
    together = [
        Row(
            f"training step from a warm file, against held features, {name}",
            milliseconds(held),
            milliseconds(ahead),
            f"{ahead / held - 1:+.1%}",
        )
        for name, (held, ahead) in whole.items()
    ]
    return together + [
        Row(
            f"{how}, {args.batch} rows of {args.gigabytes:g} GB, share of the {shape} step",
            milliseconds(step),
            milliseconds(taken),
            f"{taken / step:.1%}",
        )
        for how, taken in times.items()
        for shape, step in steps.items()
    ]


def main() -> int:
    args = arguments().parse_args()
    return report(rows(args), args)


if __name__ == "__main__":
    sys.exit(main())
