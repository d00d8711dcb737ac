"""Throughput of predict on a folder against the bare forward pass of the same backbone.

    python -m benchmarks.predict                                      # ResNet-101, vsmr on CUB's sizes, 1,000 images
    python -m benchmarks.predict --backbone mobilenet_v2 --images 300 --method dazle

A run is made up: an untrained model of CUB's sizes, since training changes no time. Processor time is compared beside
the clock, as it says the same on a machine that does something else too; the two take turns, a block of images each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.common import Row, parser, report
from benchmarks.data import make_images
from core.datasets.registry import DEMO
from core.features.backbones import build_backbone
from core.features.settings import BATCH_SIZE, ExtractionConfig
from core.inference.predictor import Predictor, find_images
from core.inference.trained import Trained, build_model
from core.method import ClassSpace
from core.methods import find_method

K, C, SEEN, V = 312, 200, 150, 300  # CUB's


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    add = made.add_argument
    add("--backbone", default="resnet101", help="torchvision classifier (default: %(default)s)")
    add("--method", default="vsmr", help="(default: %(default)s)")
    add("--images", type=int, default=1000, help="in the folder (default: %(default)s)")
    add("--input-size", type=int, default=None, help="image side in pixels (default: the backbone's)")
    return made


def made_up(args: argparse.Namespace) -> Predictor:
    """A predictor whose model was not trained."""
    network = build_backbone(args.backbone, "random", input_size=args.input_size)
    D, h, w = network.shape
    generator = torch.Generator().manual_seed(0)
    space = ClassSpace(
        att=torch.rand(C, K, generator=generator),
        seen=torch.arange(SEEN),
        unseen=torch.arange(SEEN, C),
        w2v=torch.randn(K, V, generator=generator),
    )
    config = {"dataset": "CUB", "method": args.method, "seed": 0, "epochs": 1}
    recipe = asdict(find_method(args.method).recipe("CUB"))
    trained = Trained(
        model=build_model(config, recipe, space, (h * w, D)).eval(),
        space=space,
        gamma=1.0,
        classes=[f"class {c}" for c in range(C)],
        attributes=[f"attribute {k}" for k in range(K)],
        config=config,
        recipe=recipe,
        shape=(h * w, D),
        backbone=network.record() | {"dtype": "float32", "store": "float16"},
    )
    settings = ExtractionConfig(
        backbone=args.backbone, weights="random", input_size=args.input_size, batch_size=BATCH_SIZE
    )
    return Predictor(trained, settings, torch.device("cpu"))


def rows(args: argparse.Namespace) -> list[Row]:
    """Processor time and clock of both, by turns."""
    with tempfile.TemporaryDirectory() as folder:
        root = make_images(Path(folder), max(24, args.images))
        images = find_images([root / DEMO.folders[0] / "images"])[: args.images]
        model = made_up(args)
        size = model.network.input_size
        batch = torch.randn(BATCH_SIZE, 3, size, size).contiguous(memory_format=torch.channels_last)
        turn = max(BATCH_SIZE, len(images) // 4 // BATCH_SIZE * BATCH_SIZE)
        spent = {"bare": [0.0, 0.0], "ours": [0.0, 0.0]}
        done = {"bare": 0, "ours": 0}
        list(model.predict_all(images[:BATCH_SIZE]))  # what the first takes does not count

        def bare(some: list[Path]) -> int:
            batches = -(-len(some) // BATCH_SIZE)
            for _ in range(batches):
                model.network(batch)
            return batches * BATCH_SIZE

        def ours(some: list[Path]) -> int:
            return sum(not answer.error for answer in model.predict_all(some))

        for start in range(0, len(images), turn):
            for name, work in (("bare", bare), ("ours", ours)):
                clock, cpu = time.perf_counter(), time.process_time()
                done[name] += work(images[start : start + turn])
                spent[name][0] += time.perf_counter() - clock
                spent[name][1] += time.process_time() - cpu
    speed = {name: [done[name] / seconds for seconds in spent[name]] for name in spent}
    what = f"predict, {args.backbone} and {args.method}, {len(images)} images, against the bare forward pass"
    return [
        Row(
            f"{what}, {kind}",
            f"{speed['bare'][i]:.1f} images/s",
            f"{speed['ours'][i]:.1f} images/s",
            f"{speed['ours'][i] / speed['bare'][i]:.1%}",
        )
        for i, kind in ((1, "by processor time"), (0, "by the clock"))
    ]


def main() -> int:
    args = arguments().parse_args()
    if args.trial:
        args.backbone, args.input_size, args.images = "mobilenet_v2", 64, 64
    return report(rows(args))


if __name__ == "__main__":
    sys.exit(main())
