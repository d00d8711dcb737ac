"""Throughput and memory of core's extraction, against the bare forward pass.

    python -m benchmarks.extraction                                          # ResNet-101, about 4 minutes on 2 cores
    python -m benchmarks.extraction --dtype bfloat16
    python -m benchmarks.extraction --backbone mobilenet_v2 --images 1000 20000     # the two sizes of the goal
    python -m benchmarks.extraction --backbone mobilenet_v2 --images 64 192 --input-size 96

core extracts both numbers of images in a fresh process each, without anything else in it: the difference of their
times gives images/s without start-up, and their peak memory should be the same. Before, between and after them this
process times the bare network on a batch that is decoded already, laid out and typed as core does it.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import Row, in_fresh_process, make_images, megabytes, report
from core.datasets.registry import DEMO
from core.features.backbones import build_backbone
from core.features.extraction import extract
from core.features.settings import BATCH_SIZE, DTYPES, ExtractionConfig


def rows(args: argparse.Namespace) -> list[Row]:
    """Throughput against the bare pass, memory at two sizes."""
    few, many = sorted(args.images)
    dtype = DTYPES[args.dtype]
    network = build_backbone(args.backbone, "random", input_size=args.input_size)
    size = network.input_size
    network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = torch.randn(BATCH_SIZE, 3, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
    flags = ["--backbone", args.backbone, "--input-size", size, "--dtype", args.dtype]
    bare, taken, peak = [], {}, {}

    def time_bare() -> None:
        network(batch)
        for _ in range(args.forwards):
            started = time.perf_counter()
            network(batch)
            bare.append(time.perf_counter() - started)

    with tempfile.TemporaryDirectory() as folder:
        time_bare()
        for n in (few, many):
            root = make_images(Path(folder) / str(n), n)
            taken[n], peak[n] = map(float, in_fresh_process("extraction", *flags, "--run", root).split())
            time_bare()
    speed, bare_speed = (many - few) / (taken[many] - taken[few]), BATCH_SIZE / median(bare)
    what, each = f"extraction, {args.backbone} {args.dtype}", (peak[many] - peak[few]) / (many - few) / 1024
    speeds = f"{bare_speed:.1f} images/s", f"{speed:.1f} images/s", f"{speed / bare_speed:.1%}"
    peaks = megabytes(peak[few]), megabytes(peak[many]), f"{peak[many] / peak[few]:.2f}x", f"{each:+.1f} KiB per image"
    return [
        Row(f"{what}, against the bare forward pass", *speeds),
        Row(f"{what}, peak memory at {few} and {many} images", *peaks),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbone", default="resnet101", help="torchvision classifier or timm:NAME (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="arithmetic of core's extraction (default: %(default)s)")
    add("--input-size", type=int, help="image side in pixels (default: the backbone's)")
    add("--images", type=int, nargs=2, default=(200, 1000), help="the two data sets (default: 200 1000)")
    add("--forwards", type=int, default=5, help="bare passes per turn, there are three (default: %(default)s)")
    add("--run", type=Path, help=argparse.SUPPRESS)  # extract the images under this folder and print what it took
    args = parser.parse_args()
    if args.run is None:
        return report(rows(args))
    config = ExtractionConfig(
        backbone=args.backbone, weights="random", input_size=args.input_size, dtype=args.dtype, device="cpu",
        store="float32",
    )  # fmt: skip
    started = time.perf_counter()
    extract(DEMO, data_root=args.run, out=args.run / "features.hdf5", config=config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{time.perf_counter() - started} {peak}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
