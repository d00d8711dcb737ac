"""How cost grows with attributes, classes, regions and images: time at rising sizes, exponents.

    python -m benchmarks.growth                                   # about 4 minutes
    python -m benchmarks.growth --only classes                    # one family: attributes, classes, regions or images

The exponent is the slope between the two largest sizes on logarithmic axes: 1 is linear, less is better. Channels are
few and there is one thread (its processor time is counted), so that 20,000 classes and a million images fit into
minutes: the exponents are the result, the milliseconds are not those of a data set.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import log

import numpy as np
import torch

from benchmarks.common import DrawnImages, Row, Shape, Work, milliseconds, report, space_of, step_of
from core.ESZSL import ESZSL
from core.ESZSL import Recipe as ESZSLRecipe
from core.training.evaluation import ScoredImages, compact, evaluate, metrics_from_compact
from core.VSMR import VSMR
from core.VSMR import Recipe as VSMRRecipe

BASE = Shape("growth", K=64, C=200, unseen=50, B=16, R=16, D=64, V=32)
CLASSES = (200, 2000, 10_000, 20_000)


@dataclass(frozen=True)
class Curve:
    """One kind of work at rising sizes."""

    what: str
    family: str
    sizes: tuple[int, ...]
    work: Callable[[int], Work]


def step_with(method: str, field: str) -> Callable[[int], Work]:
    """A training step of a method at a size of ``field`` (K, C or R)."""

    def make(size: int) -> Work:
        shape = replace(BASE, **{field: size})  # type: ignore[arg-type]
        return step_of(method, replace(shape, unseen=shape.C // 4))

    return make


def scored(images: int, classes: int) -> ScoredImages:
    """Scores (N,C) and labels (N,) of as many images of seen classes, and of unseen ones; only those have images."""
    scores = np.random.default_rng(0).standard_normal((images, classes), dtype=np.float32)
    seen, rest = (np.resize(own, images) for own in np.split(np.arange(classes), [classes - classes // 4]))
    own = {"seen": np.unique(seen), "unseen": np.unique(rest)}
    return ScoredImages(scores_seen=scores, labels_seen=seen, scores_unseen=scores, labels_unseen=rest, **own)


def evaluation_with_classes(classes: int) -> Work:
    """All metrics from scores of 1,000 images, whatever the number of classes."""
    images = scored(500, classes)
    return lambda: evaluate(images, None)


def evaluation_with_images(images: int) -> Work:
    """All metrics of a stream of images: scores (n,C) come in blocks and only their reduced form is kept."""
    block = 2500
    one = scored(block, classes=200)

    def work() -> object:
        parts = [compact(one) for _ in range(images // (2 * block))]
        return metrics_from_compact({key: np.concatenate([p[key] for p in parts]) for key in parts[0]}, None)

    return work


def vsmr_with(field: str) -> Callable[[int], Work]:
    """vsmr's closed form at a size of ``field`` (K, C or R)."""

    def make(size: int) -> Work:
        shape = replace(BASE, **{field: size})  # type: ignore[arg-type]
        shape = replace(shape, unseen=shape.C // 4)
        model, images = VSMR(space_of(shape), shape.D, VSMRRecipe()), DrawnImages(shape)
        return lambda: model.fit(images)

    return make


def eszsl_with_classes(classes: int) -> Work:
    """ESZSL's decomposition and one solution, two images a class."""
    space = space_of(replace(BASE, C=classes, unseen=classes // 4))
    model = ESZSL(space, BASE.D, ESZSLRecipe())
    y = space.seen.repeat(2)
    pooled = torch.randn(len(y), BASE.D, generator=torch.Generator().manual_seed(0))

    def work() -> None:
        model.decompose(pooled, y)
        model.solve(1.0, 1.0)

    return work


CURVES = (
    Curve("training step of dazle", "attributes", (64, 256, 1024, 4096), step_with("dazle", "K")),
    Curve("closed form of vsmr", "attributes", (64, 256, 1024, 4096), vsmr_with("K")),
    Curve("training step of dazle", "classes", CLASSES, step_with("dazle", "C")),
    Curve("closed form of vsmr", "classes", CLASSES, vsmr_with("C")),
    Curve("evaluation", "classes", CLASSES, evaluation_with_classes),
    Curve("closed form of eszsl", "classes", CLASSES, eszsl_with_classes),
    Curve("training step of dazle", "regions", (49, 196, 512, 1024), step_with("dazle", "R")),
    Curve("closed form of vsmr", "regions", (49, 196, 512, 1024), vsmr_with("R")),
    Curve("evaluation, streamed", "images", (10_000, 100_000, 500_000, 1_000_000), evaluation_with_images),
)


def measure(curve: Curve, repeats: int) -> list[float]:
    """Least processor seconds at each size; the sizes take turns."""
    works = {size: curve.work(size) for size in curve.sizes}
    least = dict.fromkeys(works, float("inf"))
    for turn in range(repeats + 1):
        for name, work in works.items():
            started = time.process_time()  # of this one thread: what other programs do meanwhile does not count
            work()
            if turn:
                least[name] = min(least[name], time.process_time() - started)
    return list(least.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--repeats", type=int, default=3, help="timed runs of each size (default: %(default)s)")
    add("--only", choices=sorted({curve.family for curve in CURVES}), help="one family (default: all)")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for curve in CURVES:
        if args.only not in (None, curve.family):
            continue
        sizes = curve.sizes
        taken = measure(curve, args.repeats)
        print(f"{curve.what} with {curve.family}: {taken}", file=sys.stderr, flush=True)
        exponent = f"exponent {log(taken[-1] / taken[-2]) / log(sizes[-1] / sizes[-2]):.2f}"
        name = f"growth of {curve.what} with {curve.family}, {sizes[0]} to {sizes[-1]}"
        rows.append(Row(name, milliseconds(taken[0]), milliseconds(taken[-1]), exponent))
    torch.set_num_threads(threads)
    return report(rows)


if __name__ == "__main__":
    sys.exit(main())
