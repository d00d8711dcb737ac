"""Random batches of 50 rows from a feature file, as a share of a training step.

    python -m benchmarks.feature_reading                       # a file of 2 GB, a minute or two
    python -m benchmarks.feature_reading --gigabytes 10        # the size of the goal: as much disk, memory as --hold
    python -m benchmarks.feature_reading --folder /other/disk

Warm: the operating system holds the file in memory, as far as it fits. Cold: it was told to drop the file
(posix_fadvise) before every batch. "read" is FeatureFile.read alone; "batch, streamed" is RegionFeatures.batch where
nothing is held, which also normalises and converts; "as trained" holds what RegionFeatures would by itself (--hold).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from math import isqrt
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.common import SHAPES, TRIAL, Row, Shape, interleaved, milliseconds, our_method, parser, report, step_of
from benchmarks.data import make_feature_file
from core.features.feature_file import FeatureFile
from core.features.regions import RegionFeatures

EPOCH = 5  # steps; epochs of each kind take turns, so that what else the computer does falls on all


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--gigabytes", type=float, default=2.0, help="size of the file (default: %(default)s)")
    made.add_argument("--repeats", type=int, default=20, help="batches of each kind (default: %(default)s)")
    made.add_argument("--hold", type=float, help="gigabytes held in memory (default: what RegionFeatures holds)")
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


def warm(file: FeatureFile) -> None:
    """Read every row, so that the operating system holds them and later readings need no checksum."""
    for start in range(0, file.shape[0], 256):
        file.read(np.arange(start, min(start + 256, file.shape[0])))


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


def epoch(shape: Shape, args: argparse.Namespace) -> Callable[[RegionFeatures, int], None]:
    """A function that trains on random batches of n rows, which come as the training loop has them."""
    phase = our_method(shape).phases[0]
    y = torch.randint(shape.C - shape.unseen, (args.batch,), generator=torch.Generator().manual_seed(1))
    rng = np.random.default_rng(3)

    def run(features: RegionFeatures, n: int) -> None:
        for x in features.batches([rng.choice(n, args.batch, replace=False) for _ in range(EPOCH)]):
            loss = phase.loss(x, y)["loss"]
            phase.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            phase.optimizer.step()

    return run


def rows(args: argparse.Namespace) -> list[Row]:
    """One row per way of getting a batch and training step."""
    shapes = TRIAL if args.trial else SHAPES
    D, side = shapes["CUB"].D, isqrt(shapes["CUB"].R)
    R = side * side
    n = max(24, args.batch, round(args.gigabytes * 1e9 / (D * R * 2)))
    steps = interleaved({name: step_of("dazle", shape) for name, shape in shapes.items()}, args.repeats)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = make_feature_file(Path(folder) / "features.hdf5", n, D, (side, side))
        with FeatureFile(path) as file:
            few = min(n, 2000)  # what is held in full; more would take the memory that keeps the file warm
            held = RegionFeatures(file, np.arange(few), (R, D))
            times = {"batch, all held": seconds(held.batch, path, few, args, cold=False)}
            warm(file)
            times["read, warm"] = seconds(file.read, path, n, args, cold=False)
            times["read, cold"] = seconds(file.read, path, n, args, cold=True)
            together: list[Row] = []
            for budget in (0, None if args.hold is None else int(args.hold * 1e9)):
                features = RegionFeatures(file, np.arange(n), (R, D), budget=budget)
                kind = f"as trained ({len(features.held) / n:.0%} held)" if budget != 0 else "streamed"
                warm(file)
                for name, shape in shapes.items():
                    run = epoch(shape, args)
                    works = {"held": partial(run, held, few), kind: partial(run, features, n)}
                    taken = interleaved(works, -(-args.repeats // EPOCH))
                    together.append(
                        Row(
                            f"training step from a warm file, {kind}, against held features, {name}",
                            milliseconds(taken["held"] / EPOCH),
                            milliseconds(taken[kind] / EPOCH),
                            f"{taken[kind] / taken['held'] - 1:+.1%}",
                        )
                    )
                times[f"batch, {kind}, warm"] = seconds(features.batch, path, n, args, cold=False)
                times[f"batch, {kind}, cold"] = seconds(features.batch, path, n, args, cold=True)
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
    if args.trial:
        args.gigabytes, args.repeats, args.batch = 1e-4, 2, TRIAL["CUB"].B
    return report(rows(args), args)


if __name__ == "__main__":
    sys.exit(main())
