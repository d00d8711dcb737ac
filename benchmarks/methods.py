"""A training step of each method as a multiple of DAZLE's, at the shapes of the data sets.

    python -m benchmarks.methods                # about 3 minutes on 2 CPU cores
    python -m benchmarks.methods --repeats 3 --shapes AWA2

Both steps are core's own (forward, losses, backward, optimizer), interleaved; the regions are random.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from core.DAZLE import ClassSpace
from core.recipes import build, recipe_of
from core.training import Fold

SHAPES = {"CUB": (312, 150, 50), "AWA2": (85, 40, 10), "SUN": (102, 645, 72)}  # K, S, U
B, R, D, V = 50, 49, 2048, 300
METHODS = ("vsmr", "msdn", "transzero")


def step_of(method: str, dataset: str) -> Callable[[], None]:
    """One training step on a fixed random batch."""
    K, S, U = SHAPES[dataset]
    generator = torch.Generator().manual_seed(0)
    att = torch.rand(S + U, K, generator=generator)
    space = ClassSpace(att, torch.arange(S), torch.arange(S, S + U), torch.randn(K, V, generator=generator))
    empty = np.zeros(0, dtype=np.int64)
    fold = Fold(space, empty, empty, empty, empty, empty, empty)
    made = build(method, recipe_of(method, dataset), fold, (R, D), 0)
    x = F.normalize(torch.randn(B, R, D, generator=generator), dim=2)
    y = torch.randint(S, (B,), generator=generator)
    if method == "vsmr":  # its closed forms need every class once
        many = F.normalize(torch.randn(2 * S, D, generator=generator), dim=1)
        made.model.prepare(many, torch.arange(2 * S) % S)  # type: ignore[operator]
    phase = made.phases[0]

    def step() -> None:
        loss = phase.loss(x, y)["loss"]
        phase.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        phase.optimizer.step()

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    lines = ["| shape | dazle | " + " | ".join(METHODS) + " |", "|---" * (len(METHODS) + 2) + "|"]
    for dataset in args.shapes:
        steps = {m: step_of(m, dataset) for m in ("dazle", *METHODS)}
        times: dict[str, list[float]] = {m: [] for m in steps}
        for turn in range(args.repeats + 1):
            for method, step in steps.items():
                start = time.perf_counter()
                step()
                if turn:  # the first one warms up
                    times[method].append(time.perf_counter() - start)
        middle = {m: statistics.median(t) for m, t in times.items()}
        ratios = " | ".join(f"{middle[m] / middle['dazle']:.2f}x" for m in METHODS)
        lines.append(f"| {dataset} | {1000 * middle['dazle']:.0f} ms | {ratios} |")
        sys.stdout.write(lines[-1] + "\n")
    sys.stdout.write("\n" + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
