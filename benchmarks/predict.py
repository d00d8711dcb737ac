"""Throughput of predict on a folder against the bare forward pass of the same backbone.

    python -m benchmarks.predict                                      # ResNet-101, vsmr on CUB's sizes, 1,000 images
    python -m benchmarks.predict --backbone mobilenet_v2 --images 300 --method dazle

A run is made up: an untrained model of CUB's sizes, since training changes no time. Processor time is compared, which
says the same on a machine that does something else too; the two take turns, a block of images each.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import SHAPES, Row, make_images, report, space_of
from core.datasets.registry import DEMO
from core.features.backbones import build_backbone
from core.features.settings import BATCH_SIZE, ExtractionConfig
from core.inference.backbone import View
from core.inference.predictor import Predictor, find_images
from core.inference.trained import Trained
from core.methods import find_method


def made_up(backbone: str, method: str, input_size: int | None) -> Predictor:
    """A predictor whose model was not trained."""
    network = build_backbone(backbone, "random", input_size=input_size)
    D, h, w = network.shape
    space = space_of(SHAPES["CUB"])
    config = {"dataset": "CUB", "method": method, "seed": 0, "epochs": 1}
    recipe = find_method(method).recipe("CUB")
    trained = Trained(
        model=find_method(method).build(recipe, space, (h * w, D), 0, 1).model.eval(),
        space=space,
        gamma=1.0,
        classes=[f"class {c}" for c in range(len(space.att))],
        attributes=[f"attribute {k}" for k in range(space.att.shape[1])],
        config=config,
        shape=(h * w, D),
        backbone=network.record() | {"dtype": "float32", "store": "float16"},
    )
    settings = ExtractionConfig(backbone=backbone, weights="random", input_size=input_size, batch_size=BATCH_SIZE)
    return Predictor(trained, [View(trained.backbone, settings, torch.device("cpu"))])


def rows(args: argparse.Namespace) -> list[Row]:
    """Processor time of both, by turns."""
    model = made_up(args.backbone, args.method, args.input_size)
    size = model.network.input_size
    batch = torch.randn(BATCH_SIZE, 3, size, size).contiguous(memory_format=torch.channels_last)

    def bare(some: list[Path]) -> int:
        batches = -(-len(some) // BATCH_SIZE)
        for _ in range(batches):
            model.network(batch)
        return batches * BATCH_SIZE

    def ours(some: list[Path]) -> int:
        return sum(not answer.error for answer in model.predict_all(some))

    spent, done = {"bare": 0.0, "ours": 0.0}, {"bare": 0, "ours": 0}
    with tempfile.TemporaryDirectory() as folder:
        root = make_images(Path(folder), max(24, args.images))
        images = find_images([root / DEMO.folders[0] / "images"])[: args.images]
        turn = max(BATCH_SIZE, len(images) // 4 // BATCH_SIZE * BATCH_SIZE)
        list(model.predict_all(images[:BATCH_SIZE]))  # what the first takes does not count
        for start in range(0, len(images), turn):
            for name, work in (("bare", bare), ("ours", ours)):
                started = time.process_time()
                done[name] += work(images[start : start + turn])
                spent[name] += time.process_time() - started
    what = f"predict, {args.backbone} and {args.method}, {len(images)} images, against the bare forward pass"
    a, b = (done[name] / spent[name] for name in ("bare", "ours"))
    speeds = f"{a:.1f} images/s", f"{b:.1f} images/s", f"{b / a:.1%}"
    return [Row(f"{what}, by processor time", *speeds)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbone", default="resnet101", help="torchvision classifier (default: %(default)s)")
    add("--method", default="vsmr", help="(default: %(default)s)")
    add("--images", type=int, default=1000, help="in the folder (default: %(default)s)")
    add("--input-size", type=int, help="image side in pixels (default: the backbone's)")
    return report(rows(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
