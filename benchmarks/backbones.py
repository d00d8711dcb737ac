"""Backbones and image sizes: images a second, how much of it is the bare forward pass, and bytes an image.

    python -m benchmarks.backbones                               # one thread, random weights; 3 minutes of a core
    python -m benchmarks.backbones --backbones mobilenet_v2 --sizes 224 --batches 8

Everything is counted in CPU time of this process, all its threads together, so that a machine with other work to do
gives nearly the same ratios: "images/s" is per second of one core. Bare passes of a batch that is decoded already stand
before, between and after an extraction: reading, decoding, resizing, normalising, the pass, storing.
The other columns time those steps alone. The least of all turns counts. Stored is float32, since random weights give
numbers that float16 does not hold; the bytes are those of float16, the default.
"""

from __future__ import annotations

import argparse
import csv
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import environment
from benchmarks.data import make_images
from core.datasets.registry import DEMO
from core.features import extraction
from core.features.images import load_image
from core.features.settings import DTYPES, ExtractionConfig
from core.features.writer import Writer
from core.files.atomic import write_bytes
from core.files.errors import UserError, run_cli

DINO = "timm:vit_small_patch14_reg4_dinov2.lvd142m"
BACKBONES = ("mobilenet_v2", "resnet101", "vit_b_16", "swin_t", DINO)


@dataclass(frozen=True)
class Speed:
    """A line of the table; milliseconds are CPU time an image."""

    backbone: str
    pixels: int
    regions: str
    images_per_second: float
    share: float  # of the bare forward pass in what extraction takes
    kilobytes: float  # an image
    forward_ms: float
    decode_ms: float
    normalise_ms: float
    store_ms: float


def cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(root: Path, name: str, size: int, args: argparse.Namespace) -> Speed:
    """One backbone at one size.

    Raises:
        UserError: what the extraction refuses, such as timm where it is not installed.
    """
    batch, n = args.batch_size, args.batch_size * args.batches
    config = ExtractionConfig(
        backbone=name, weights="random", input_size=size, dtype=args.dtype, store="float32", device="cpu",
        batch_size=batch, workers=1,
    )  # fmt: skip
    job = extraction._prepare(DEMO, root, config)
    crop, resize, how = job.network.transform.crop, job.network.transform.resize, job.network.transform.interpolation
    pixels = torch.from_numpy(np.stack([load_image(path, crop, resize, how) for path in job.paths[:batch]]))
    images = job.normalise(pixels)
    maps = job.network(images)  # the first pass does not count

    def bare() -> float:
        return cpu_seconds(lambda: job.network(images))

    passes, whole = [bare()], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.turns):
            with Writer(Path(folder) / f"{turn}.hdf5", job.content, job.network.shape, config.store) as writer:
                whole.append(cpu_seconds(lambda w=writer: extraction._run(w, job)))  # type: ignore[misc]
            passes.append(bare())
        good = [*range(batch)]
        with Writer(Path(folder) / "store.hdf5", job.content, job.network.shape, config.store) as writer:
            store = cpu_seconds(lambda: extraction._store(writer, np.arange(batch), maps, good))
    decode = min(
        cpu_seconds(lambda: [load_image(path, crop, resize, how) for path in job.paths[:batch]]) for _ in range(3)
    )
    normalise = min(cpu_seconds(lambda: job.normalise(pixels)) for _ in range(3))
    forward, per_image = min(passes) / batch, min(whole) / n  # others' work on the machine only adds
    return Speed(
        name, size, "x".join(map(str, job.network.shape[1:])), 1 / per_image, forward / per_image,
        job.row_bytes / 2e3, 1e3 * forward, 1e3 * decode / batch,
        1e3 * normalise / batch, 1e3 * store / batch,
    )  # fmt: skip


def table(rows: list[Speed]) -> str:
    """As Markdown."""
    head = ["backbone", "pixels", "regions", "images/s", "share of the bare pass", "kB an image"]
    head += ["pass, ms", "decode and resize, ms", "normalise, ms", "store, ms"]
    lines = [head, ["---"] * len(head)]
    for r in rows:
        cells = [f"`{r.backbone}`", str(r.pixels), r.regions, f"{r.images_per_second:.3g}", f"{r.share:.1%}"]
        times = (r.forward_ms, r.decode_ms, r.normalise_ms, r.store_ms)
        lines.append([*cells, f"{r.kilobytes:.0f}", *(f"{value:.3g}" for value in times)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the CSV that was asked for after every line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--backbones", nargs="+", default=[*BACKBONES])
    p.add_argument("--sizes", type=int, nargs="+", default=[224, 448])
    p.add_argument("--dtype", choices=DTYPES, default="float32")
    p.add_argument("--batch-size", type=int, default=4, help="images a pass (default: %(default)s)")
    p.add_argument("--batches", type=int, default=1, help="of an extraction (default: %(default)s)")
    p.add_argument("--turns", type=int, default=3, help="extractions, with a bare pass between (default: %(default)s)")
    p.add_argument("--csv", type=Path)
    args = p.parse_args(argv)
    torch.set_num_threads(1)
    rows: list[Speed] = []
    with tempfile.TemporaryDirectory() as folder:
        root = make_images(Path(folder), max(24, args.batch_size * args.batches))
        for size in args.sizes:
            for name in args.backbones:
                try:
                    rows.append(measure(root, name, size, args))
                except UserError as error:
                    print(f"{name} at {size}: {error}")
                    continue
                if args.csv:
                    buffer = io.StringIO()
                    writer = csv.DictWriter(buffer, [field.name for field in fields(Speed)], lineterminator="\n")
                    writer.writeheader()
                    writer.writerows(asdict(row) for row in rows)
                    write_bytes(args.csv, buffer.getvalue().encode())
    print(table(rows), environment(), sep="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
