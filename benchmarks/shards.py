"""n processes, each with a part of the images, against one with all of them, on this machine's cores.

    python -m benchmarks.shards                        # mobilenet_v2, 1,000 images, 2 processes
    python -m benchmarks.shards --backbone resnet101 --images 400 --processes 4

A process has one core and one thread, so that n of them have n times what one has. Timed is the extraction with the
writing and merging of its file, from the moment when all processes have imported what they need; one and n take turns.
Images are decoded in the same core. That the merged file has the bytes of the single one is compared too.

The second row is processor time: what n processes took together over what one took. It is what dividing costs by itself
(n networks built, n lists read, the merge, caches and memory shared), and it can be measured where other programs take
turns on the cores; 1/0.9 = 1.11 times is the most that leaves 0.9 n. Only the first row knows how long the n wait for
the slowest, and it needs a machine that does nothing else.
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
    add("--processes", type=int, default=max(2, len(os.sched_getaffinity(0))), help="(one per core, at least 2)")
    add("--repeats", type=int, default=3, help="turns; the medians are told (default: %(default)s)")
    add("--part", nargs=3, metavar=("ROOT", "OUT", "I/N"), help=argparse.SUPPRESS)
    return made


def extract_part(args: argparse.Namespace) -> None:
    """In a process of its own: say that it is ready, wait for a line, extract, say seconds and processor seconds."""
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
    started, taken = time.perf_counter(), processor_seconds()
    extract(DEMO, data_root=root, out=out, config=config, shard=shard)
    print(time.perf_counter() - started, processor_seconds() - taken, flush=True)


def processor_seconds() -> float:
    """Of this process, its threads and the processes it waited for (what reads foreign files)."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def seconds(args: argparse.Namespace, root: Path, out: Path, count: int) -> tuple[float, float]:
    """Seconds of the slowest of ``count`` processes, and processor seconds of all together."""
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
    told = [[float(word) for word in text.split()[-2:]] for text in said]
    return max(wall for wall, _ in told), sum(processor for _, processor in told)


def main() -> int:
    args = arguments().parse_args()
    if args.trial:
        args.images, args.input_size, args.processes, args.repeats = 64, 64, 2, 1
    if args.part:
        extract_part(args)
        return 0
    if args.processes < 2:
        raise SystemExit("--processes 2 is the least that can be compared with one")
    taken: dict[int, list[tuple[float, float]]] = {1: [], args.processes: []}
    with tempfile.TemporaryDirectory() as folder:
        root, digests = make_images(Path(folder) / "root", args.images), set()
        for turn in range(args.repeats):
            for count, times in taken.items():
                out = Path(folder) / f"{turn}-{count}.hdf5"
                times.append(seconds(args, root, out, count))
                digests.add(sha256_file(out))
                out.unlink()
    one, many = (args.images / median(wall for wall, _ in times) for times in taken.values())
    alone, together = (median(processor for _, processor in times) for times in taken.values())
    what = f"extraction in {args.processes} processes of one core each against one, {args.backbone}"
    same = "the same bytes" if len(digests) == 1 else f"{len(digests)} different files"
    ratio = f"{many / one:.2f}x ({many / one / args.processes:.0%} of {args.processes}x)"
    rows = [Row(what, f"{one:.1f} images/s", f"{many:.1f} images/s", ratio, same)]
    rows.append(Row(f"{what}: processor time", f"{alone:.1f} s", f"{together:.1f} s", f"{together / alone:.2f} times"))
    return report(rows, args)


if __name__ == "__main__":
    raise SystemExit(main())
