"""n processes, each with a part of the images, against one with all of them, on this machine's cores.

    python -m benchmarks.shards                        # mobilenet_v2, 1,000 images, 2 processes
    python -m benchmarks.shards --backbone resnet101 --images 400 --processes 4

A process has one core and one thread, so that n of them have n times what one has. Timed is the extraction with the
writing and merging of its file, from the moment when all processes are ready; one and n take turns. Images are decoded
in the same core. That the merged file has the bytes of the single one is compared too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import ROOT, Row, parser, report
from benchmarks.data import make_images
from core.datasets.registry import DEMO
from core.features.extraction import extract
from core.features.settings import ExtractionConfig
from core.features.shards import Shard, parse_shard
from core.files.atomic import sha256_file


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    add = made.add_argument
    add("--backbone", default="mobilenet_v2", help="torchvision classifier (default: %(default)s, random weights)")
    add("--input-size", type=int, default=None, help="image side in pixels (default: the backbone's)")
    add("--images", type=int, default=1000, help="default: %(default)s")
    add("--processes", type=int, default=len(os.sched_getaffinity(0)), help="(one per core)")
    add("--repeats", type=int, default=3, help="turns; the medians are told (default: %(default)s)")
    add("--part", nargs=3, metavar=("ROOT", "OUT", "I/N"), help=argparse.SUPPRESS)
    return made


def extract_part(args: argparse.Namespace) -> None:
    """In a process of its own: say that it is ready, wait for a line, extract, say how long it took."""
    root, out, text = args.part
    shard = parse_shard(text)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[shard.index % len(cores)]})
    torch.set_num_threads(1)
    config = ExtractionConfig(
        backbone=args.backbone, weights="random", input_size=args.input_size, device="cpu", workers=1
    )
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    extract(DEMO, data_root=root, out=out, config=config, shard=shard)
    print(time.perf_counter() - started, flush=True)


def seconds(args: argparse.Namespace, root: Path, out: Path, count: int) -> float:
    """Of the slowest of ``count`` processes."""
    command = [sys.executable, "-m", "benchmarks.shards", "--backbone", args.backbone]
    command += ["--input-size", str(args.input_size)] if args.input_size else []
    started = [
        subprocess.Popen(
            [*command, "--part", str(root), str(out), str(Shard(i, count))],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    for process in started:
        assert process.stdout
        if process.stdout.readline() != "ready\n":
            raise SystemExit("a process did not start")
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process failed")
    return max(float(text.split()[-1]) for text in said)


def main() -> int:
    args = arguments().parse_args()
    if args.trial:
        args.images, args.input_size, args.processes, args.repeats = 64, 64, 2, 1
    if args.part:
        extract_part(args)
        return 0
    taken: dict[int, list[float]] = {1: [], args.processes: []}
    with tempfile.TemporaryDirectory() as folder:
        root, digests = make_images(Path(folder) / "root", args.images), set()
        for turn in range(args.repeats):
            for count, times in taken.items():
                out = Path(folder) / f"{turn}-{count}.hdf5"
                times.append(seconds(args, root, out, count))
                digests.add(sha256_file(out))
                out.unlink()
    one, many = (args.images / median(times) for times in taken.values())
    what = f"extraction in {args.processes} processes of one core each against one, {args.backbone}"
    same = "the same bytes" if len(digests) == 1 else f"{len(digests)} different files"
    ratio = f"{many / one:.2f}x ({many / one / args.processes:.0%} of {args.processes}x)"
    return report([Row(what, f"{one:.1f} images/s", f"{many:.1f} images/s", ratio, same)], args)


if __name__ == "__main__":
    raise SystemExit(main())
