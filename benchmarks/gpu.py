"""The same questions on a GPU: step time, memory, a run of AWA2's size, extraction.

    python -m benchmarks.gpu                                      # needs about 8 GB of GPU memory; some 10 minutes
    python -m benchmarks.gpu --epochs 2 --images 2000             # a quick look
    python -m benchmarks.gpu --device cpu --trial                 # tiny sizes on the CPU: does the script run?

Without a GPU the script says so and ends with exit code 0.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import (
    SHAPES,
    TRIAL,
    Row,
    Shape,
    against,
    fold_of,
    interleaved,
    lacks_gpu,
    megabytes,
    milliseconds,
    parser,
    report,
    step_of,
)
from benchmarks.data import random_maps
from core.datasets.registry import DATASETS
from core.features.backbones import build_backbone
from core.features.images import Normaliser
from core.features.regions import RegionFeatures
from core.methods import find_method
from core.training.loop import class_scores, train

_BANK = 509  # different generated images; the others repeat them, rotated through the data set


class Generated:
    """A feature source of any number of rows that needs the memory of a few."""

    def __init__(self, D: int, R: int) -> None:
        self.bank = random_maps(_BANK, D, (R, 1)).reshape(_BANK, D, R)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.bank[np.asarray(rows) % _BANK]

    def prefetch(self, rows: np.ndarray) -> None:
        """Nothing to fetch."""


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    add = made.add_argument
    add("--device", default="cuda", help="default: %(default)s")
    add("--repeats", type=int, default=50, help="timed steps of each form (default: %(default)s)")
    add("--epochs", type=int, default=20, help="of the AWA2-sized run (default: %(default)s)")
    add("--images", type=int, default=37322, help="images of the extraction (default: %(default)s, all of AWA2)")
    return made


def waiter(device: str) -> Callable[[], None]:
    """Blocks until the device has done what it was given."""
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def extra_memory(step: Callable[[], object], device: str) -> int:
    """Bytes a step needs at its peak beyond what is allocated between steps (0 on a CPU)."""
    if not device.startswith("cuda"):
        return 0
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """torch's float32 matmul precision: "highest" is float32, "high" is TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def step_rows(shape: Shape, args: argparse.Namespace) -> list[Row]:
    """Step time and memory for float32, TF32 and bf16, both forms in that type."""
    wait, made = waiter(args.device), []
    for name, precision, autocast in (
        ("float32", "highest", None),
        ("TF32", "high", None),
        ("bf16 autocast", "highest", torch.bfloat16),
    ):
        with matmul_precision(precision):
            works = {form: step_of(form, shape, args.device, autocast) for form in ("reference", "dazle")}
            times = interleaved(works, args.repeats, wait)
            memory = " -> ".join(megabytes(extra_memory(work, args.device)) for work in works.values())
            what = f"step, {shape}, {name}"
            made.append(against(f"{what}, both in that type", times["reference"], times["dazle"], memory))
    return made


def run_rows(args: argparse.Namespace) -> list[Row]:
    """Training of AWA2's size from features resident in half precision, then scores of a third as many images."""
    shape = (TRIAL if args.trial else SHAPES)["AWA2"]
    counts = DATASETS["AWA2"].counts
    assert counts is not None
    fold = fold_of(shape, 500 if args.trial else counts.trainval)
    wait = waiter(args.device)
    started = time.perf_counter()
    features = RegionFeatures(Generated(shape.D, shape.R), fold.rows, (shape.R, shape.D), args.device, budget=1 << 40)
    wait()
    loading = time.perf_counter() - started
    assert features.resident is not None
    size = features.resident.numel() * features.resident.element_size()
    name = f"AWA2-sized run ({len(fold.train_rows)} x {shape.R} x {shape.D}, K={shape.K}, {args.epochs} epochs)"
    made = [Row(f"{name}: features to memory, float16", "", milliseconds(loading), "", megabytes(size))]
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    registered = find_method("dazle")
    method = registered.build(registered.recipe("AWA2"), fold.space, (shape.R, shape.D), 0, args.epochs)
    method.model.to(args.device)
    steps = args.epochs * method.phases[0].batches.count(len(fold.train_rows))
    started = time.perf_counter()
    train(method, features, fold, seed=0)
    class_scores(method.model, features, fold.train_rows[::3])
    taken = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if args.device.startswith("cuda") else 0
    made.append(Row(name, "", f"{taken:.1f} s", f"{taken / steps * 1e3:.2f} ms per step", megabytes(peak)))
    return made


def extraction_rows(args: argparse.Namespace) -> list[Row]:
    """ResNet-101 from decoded images in (pinned) memory: core's way against plain float32, one copy at a time."""
    name, size, batch = ("mobilenet_v2", 64, 8) if args.trial else ("resnet101", 224, 128)
    device, wait = torch.device(args.device), waiter(args.device)
    n = 2 * batch if args.trial else args.images
    half = torch.float16 if device.type == "cuda" else torch.float32
    pixels = torch.randint(0, 256, (4, batch, size, size, 3), dtype=torch.uint8)
    if device.type == "cuda":
        pixels = pixels.pin_memory()

    def speed(dtype: torch.dtype, layout: torch.memory_format, images: int) -> float:
        network = build_backbone(name, "random")
        network.to(device, dtype, memory_format=layout)  # type: ignore[call-overload]
        normalise = Normaliser(device, dtype)

        def forward(turn: int) -> Tensor:
            return network(normalise(pixels[turn % len(pixels)]).contiguous(memory_format=layout))

        forward(0).cpu()
        batches = -(-images // batch)
        started = time.perf_counter()
        maps = forward(0)
        for turn in range(1, batches):
            coming = forward(turn)
            maps.cpu()  # of the batch before
            maps = coming
        maps.cpu()
        wait()
        return batches * batch / (time.perf_counter() - started)

    plain = speed(torch.float32, torch.contiguous_format, max(batch, n // 10))
    ours = speed(half, torch.channels_last, n)
    what = f"{name}, {n} images from memory, {str(half)[6:]} channels_last against float32"
    return [Row(what, f"{plain:.0f} images/s", f"{ours:.0f} images/s", f"{ours / plain:.2f}x")]


def main() -> int:
    args = arguments().parse_args()
    if lacks_gpu(args.device):
        return 0
    if args.trial:
        args.repeats, args.epochs = 2, 1
    made = [row for shape in (TRIAL if args.trial else SHAPES).values() for row in step_rows(shape, args)]
    return report([*made, *run_rows(args), *extraction_rows(args)])


if __name__ == "__main__":
    sys.exit(main())
