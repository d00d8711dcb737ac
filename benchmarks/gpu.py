"""The same questions on a GPU: step time, memory, a run of AWA2's size, extraction.

    python -m benchmarks.gpu                                      # needs about 8 GB of GPU memory; some 10 minutes
    python -m benchmarks.gpu --epochs 2 --images 2000             # a quick look

Without a GPU the script says so and ends with exit code 0.
"""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import (
    SHAPES,
    Row,
    Shape,
    against,
    fold_of,
    interleaved,
    megabytes,
    milliseconds,
    report,
    step_of,
)
from core.datasets.registry import DATASETS
from core.features.backbones import build_backbone
from core.features.images import Normaliser
from core.features.regions import RegionFeatures
from core.methods import find_method
from core.training.loop import class_scores, train

DEVICE = "cuda"
# float32 matmul precision and autocast: "highest" is float32, "high" is TF32
TYPES = {"float32": ("highest", None), "TF32": ("high", None), "bf16 autocast": ("highest", torch.bfloat16)}


class Generated:
    """A feature source of any number of rows that needs the memory of 509, not negative, as a ReLU leaves them."""

    def __init__(self, D: int, R: int) -> None:
        values = np.random.default_rng(0).standard_normal((509, D, R), dtype=np.float32)
        self.bank = np.maximum(values, 0).astype(np.float16)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.bank[np.asarray(rows) % len(self.bank)]


def step_rows(shape: Shape, repeats: int) -> list[Row]:
    """Step time, and memory at its peak beyond what is allocated between steps, both forms in each type."""
    made = []
    for name, (precision, autocast) in TYPES.items():
        torch.set_float32_matmul_precision(precision)
        works = {form: step_of(form, shape, DEVICE, autocast) for form in ("reference", "dazle")}
        times = interleaved(works, repeats, torch.cuda.synchronize)
        extra = []
        for work in works.values():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            torch.cuda.synchronize()
            extra.append(megabytes(torch.cuda.max_memory_allocated() - before))
        what = f"step, {shape}, {name}, both in that type"
        made.append(against(what, times["reference"], times["dazle"], " -> ".join(extra)))
    torch.set_float32_matmul_precision("highest")
    return made


def run_rows(epochs: int) -> list[Row]:
    """Training of AWA2's size from features resident in half precision, then scores of a third as many images."""
    shape, counts = SHAPES["AWA2"], DATASETS["AWA2"].counts
    assert counts is not None
    fold = fold_of(shape, counts.trainval)
    started = time.perf_counter()
    rows = np.concatenate([fold.train_rows, fold.seen_rows, fold.unseen_rows])
    features = RegionFeatures(Generated(shape.D, shape.R), rows, (shape.R, shape.D), DEVICE, budget=1 << 40)
    torch.cuda.synchronize()
    loading = milliseconds(time.perf_counter() - started)
    assert features.resident is not None
    size = megabytes(features.resident.numel() * features.resident.element_size())
    name = f"AWA2-sized run ({len(fold.train_rows)} x {shape.R} x {shape.D}, K={shape.K}, {epochs} epochs)"
    torch.cuda.reset_peak_memory_stats()
    registered = find_method("dazle")
    method = registered.build(registered.recipe("AWA2"), fold.space, (shape.R, shape.D), 0, epochs)
    method.model.to(DEVICE)
    started = time.perf_counter()
    train(method, features, fold, seed=0)
    class_scores(method.model, features, fold.train_rows[::3])
    taken, peak = time.perf_counter() - started, megabytes(torch.cuda.max_memory_allocated())
    each = taken / (epochs * method.phases[0].batches.count(len(fold.train_rows)))
    return [
        Row(f"{name}: features to memory, float16", "", loading, "", size),
        Row(name, "", f"{taken:.1f} s", f"{each * 1e3:.2f} ms per step", peak),
    ]


def extraction_rows(n: int, batch: int = 128) -> list[Row]:
    """ResNet-101 from decoded images in pinned memory: core's way against plain float32, one copy at a time."""
    pixels = torch.randint(0, 256, (4, batch, 224, 224, 3), dtype=torch.uint8).pin_memory()
    device = torch.device(DEVICE)

    def speed(dtype: torch.dtype, layout: torch.memory_format, images: int) -> float:
        network = build_backbone("resnet101", "random")
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
        return batches * batch / (time.perf_counter() - started)

    plain = speed(torch.float32, torch.contiguous_format, max(batch, n // 10))
    ours = speed(torch.float16, torch.channels_last, n)
    what = f"resnet101, {n} images from memory, float16 channels_last against float32"
    return [Row(what, f"{plain:.0f} images/s", f"{ours:.0f} images/s", f"{ours / plain:.2f}x")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--repeats", type=int, default=50, help="timed steps of each form (default: %(default)s)")
    add("--epochs", type=int, default=20, help="of the AWA2-sized run (default: %(default)s)")
    add("--images", type=int, default=37322, help="images of the extraction (default: %(default)s, all of AWA2)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: this PyTorch sees no CUDA device, so there is nothing to measure here")
        return 0
    made = [row for shape in SHAPES.values() for row in step_rows(shape, args.repeats)]
    return report([*made, *run_rows(args.epochs), *extraction_rows(args.images)])


if __name__ == "__main__":
    sys.exit(main())
