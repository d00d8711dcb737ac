"""A training step of each method as a multiple of DAZLE's, at the shapes of the data sets.

    python -m benchmarks.methods                             # about 3 minutes on 2 CPU cores
    python -m benchmarks.methods --repeats 3 --shapes AWA2   # a quick look

All steps are core's own (forward, losses, backward, optimiser), interleaved; the regions are random.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.common import SHAPES, TRIAL, Row, Shape, interleaved, milliseconds, parser, report, step_of

METHODS = ("vsmr", "msdn", "transzero")


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    made.add_argument("--repeats", type=int, default=10, help="timed steps of each (default: %(default)s)")
    return made


def rows(shape: Shape, repeats: int) -> list[Row]:
    """One row a method; the ratio is how many times dearer its step is."""
    taken = interleaved({method: step_of(method, shape) for method in ("dazle", *METHODS)}, repeats)
    return [
        Row(
            f"step of {method} against one of dazle, {shape}",
            milliseconds(taken["dazle"]),
            milliseconds(taken[method]),
            f"{taken[method] / taken['dazle']:.2f} times",
        )
        for method in METHODS
    ]


def main() -> int:
    args = arguments().parse_args()
    shapes = [(TRIAL if args.trial else SHAPES)[name] for name in args.shapes]
    return report([row for shape in shapes for row in rows(shape, args.repeats)], args)


if __name__ == "__main__":
    sys.exit(main())
