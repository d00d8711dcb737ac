"""Throughput and memory of core's extraction, against the bare forward pass.

    python -m benchmarks.extraction                                          # ResNet-101, about 4 minutes on 2 cores
    python -m benchmarks.extraction --dtype bfloat16
    python -m benchmarks.extraction --backbone mobilenet_v2 --images 1000 20000     # the two sizes of the goal
    python -m benchmarks.extraction --backbone mobilenet_v2 --images 64 192 --input-size 96

core extracts both numbers of images in a fresh process each, without anything else in it: the difference of their
times gives images/s without start-up, and their peak memory should be the same. Before, between and after them this
process times the bare network on a batch that is decoded already, laid out and typed as core does it.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import Row, in_fresh_process, megabytes, parser, report
from benchmarks.data import make_images
from core.datasets.registry import DEMO
from core.features.backbones import Backbone, build_backbone
from core.features.extraction import extract
from core.features.settings import BATCH_SIZE, DTYPES, ExtractionConfig


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    add = made.add_argument
    add("--backbone", default="resnet101", help="torchvision classifier or timm:NAME (default: %(default)s)")
    add("--weights", default="random", help="as for the extraction (default: %(default)s, which cost the same)")
    add("--dtype", choices=DTYPES, default="float32", help="arithmetic of core's extraction (default: %(default)s)")
    add("--input-size", type=int, default=None, help="image side in pixels (default: the backbone's)")
    add("--images", type=int, nargs=2, default=(200, 1000), help="the two data sets (default: 200 1000)")
    add("--forwards", type=int, default=5, help="bare passes per turn, there are three (default: %(default)s)")
    add("--run", type=Path, help=argparse.SUPPRESS)  # extract the images under this folder and print what it took
    return made


def extract_here(args: argparse.Namespace) -> str:
    """Seconds and peak bytes of one extraction; call it in a fresh process."""
    started = time.perf_counter()
    extract(
        DEMO,
        data_root=args.run,
        out=args.run / "features.hdf5",
        config=ExtractionConfig(
            backbone=args.backbone,
            weights=args.weights,
            input_size=args.input_size,
            dtype=args.dtype,
            device="cpu",
            store="float32",
        ),
    )
    return f"{time.perf_counter() - started} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}"


def bare_forward(network: Backbone, size: int, dtype: torch.dtype, times: int) -> list[float]:
    """Seconds of each forward pass of one batch, after one that does not count."""
    images = torch.randn(BATCH_SIZE, 3, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
    taken = []
    for _ in range(times + 1):
        started = time.perf_counter()
        network(images)
        taken.append(time.perf_counter() - started)
    return taken[1:]


def rows(args: argparse.Namespace) -> list[Row]:
    """Throughput against the bare pass, memory at two sizes."""
    few, many = sorted(args.images)
    dtype = DTYPES[args.dtype]
    typed = build_backbone(args.backbone, args.weights, input_size=args.input_size)
    size = typed.input_size
    typed.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    flags = ["--backbone", args.backbone, "--weights", args.weights, "--input-size", size, "--dtype", args.dtype]
    flags += ["--trial"] if args.trial else []
    taken: dict[int, float] = {}
    peak: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        bare = bare_forward(typed, size, dtype, args.forwards)
        for n in (few, many):
            root = make_images(Path(folder) / str(n), n)
            taken[n], peak[n] = map(float, in_fresh_process("extraction", *flags, "--run", root).split())
            bare += bare_forward(typed, size, dtype, args.forwards)
    if taken[many] <= taken[few]:
        print("the machine was too busy: more images took less time; start-up is counted in", file=sys.stderr)
        speed = many / taken[many]
    else:
        speed = (many - few) / (taken[many] - taken[few])
    bare_speed = BATCH_SIZE / median(bare)
    name = f"extraction, {args.backbone} {args.dtype}"
    against = f"{name}, against the bare forward pass"
    return [
        Row(against, f"{bare_speed:.1f} images/s", f"{speed:.1f} images/s", f"{speed / bare_speed:.1%}"),
        Row(
            f"{name}, peak memory at {few} and {many} images",
            megabytes(peak[few]),
            megabytes(peak[many]),
            f"{peak[many] / peak[few]:.2f}x",
            f"{(peak[many] - peak[few]) / (many - few) / 1024:+.1f} KiB per image",
        ),
    ]


def main() -> int:
    args = arguments().parse_args()
    if args.trial:
        args.backbone, args.input_size, args.images, args.forwards = "mobilenet_v2", 64, (24, 64), 1
    if args.run is not None:
        print(extract_here(args))
        return 0
    return report(rows(args))


if __name__ == "__main__":
    sys.exit(main())
