"""How cost grows: a training step with K, C and R, evaluation with N; drawn as curves.

    python -m benchmarks.growth                                   # about 3 minutes; images/benchmarks_growth.png
    python -m benchmarks.growth --trial --out growth.png          # does it run?

The exponent is the slope between the two largest sizes on logarithmic axes: 1 is linear, less is better.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.common import SHAPES, TRIAL, Row, Shape, interleaved, milliseconds, parser, report, step_of
from core.training.evaluation import evaluate

SIZES = {
    "K": ("attributes", (40, 80, 160, 320, 640)),
    "C": ("classes", (100, 200, 400, 800, 1600)),
    "R": ("regions", (49, 100, 144, 196)),
    "N": ("images evaluated", (2500, 5000, 10000, 20000, 40000)),
}


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--repeats", type=int, default=9, help="timed runs of each size (default: %(default)s)")
    made.add_argument("--out", type=Path, default=Path("images/benchmarks_growth.png"), help="default: %(default)s")
    return made


def evaluation_of(n: int, classes: int = 200, unseen: int = 50) -> Callable[[], object]:
    """All metrics from the scores of n images, half of them of unseen classes."""
    rng = np.random.default_rng(0)
    seen = np.arange(classes - unseen)
    rest = np.arange(len(seen), classes)
    half = max(n // 2, len(seen))
    scores = [rng.standard_normal((half, classes), dtype=np.float32) for _ in range(2)]
    labels = [np.resize(group, half) for group in (seen, rest)]
    return lambda: evaluate(scores[0], labels[0], scores[1], labels[1], seen, rest, None)


def curve(what: str, sizes: Sequence[int], base: Shape, repeats: int) -> list[float]:
    """Median seconds at each size; the sizes take turns, so that a slow moment meets all of them."""
    if what == "N":
        works = {str(n): evaluation_of(n) for n in sizes}
    else:
        works = {}
        for size in sizes:
            shape = replace(base, **{what: size})  # type: ignore[arg-type]
            works[str(size)] = step_of("dazle", replace(shape, unseen=shape.C // 4))
    return list(interleaved(works, repeats).values())


def draw(curves: dict[str, tuple[list[int], list[float]]], out: Path) -> None:
    """One panel per size, logarithmic, with the line that linear growth would follow."""
    figure = Figure(figsize=(3.4 * len(curves), 3.2), layout="constrained")
    panels = figure.subplots(1, len(curves))
    for panel, (what, (sizes, taken)) in zip(panels, curves.items(), strict=True):
        ms = [1e3 * t for t in taken]
        panel.loglog(sizes, ms, "o-", label="measured")
        panel.loglog(sizes, [ms[-1] * s / sizes[-1] for s in sizes], "--", color="grey", label="linear")
        panel.set_xticks(sizes, [f"{s:,}" for s in sizes], minor=False)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(f"{what}, {SIZES[what][0]}")
        panel.set_ylabel("ms, all metrics" if what == "N" else "ms per training step")
        panel.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def main() -> int:
    args = arguments().parse_args()
    curves, rows = {}, []
    base, scale = (TRIAL["CUB"], 0.1) if args.trial else (SHAPES["CUB"], 1.0)
    repeats = 1 if args.trial else args.repeats
    for what, (meaning, unscaled) in SIZES.items():
        sizes = sorted({max(8, round(size * scale)) for size in unscaled})
        taken = curve(what, sizes, base, repeats)
        curves[what] = (sizes, taken)
        exponent = log(taken[-1] / taken[-2]) / log(sizes[-1] / sizes[-2])
        work = "evaluation" if what == "N" else "training step"
        name = f"growth of the {work} with {what} ({meaning}), {sizes[0]} to {sizes[-1]}"
        rows.append(Row(name, milliseconds(taken[0]), milliseconds(taken[-1]), f"exponent {exponent:.2f}"))
    draw(curves, args.out)
    return report(rows, args)


if __name__ == "__main__":
    sys.exit(main())
