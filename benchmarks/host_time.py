"""What the host needs to hand out one training step, alone and for five seeds in lockstep.

    python -m benchmarks.host_time     # a minute

The tensors are tiny, so that computing takes next to nothing and what is left is Python and PyTorch handing out
operations. On a GPU a step cannot take less than that, however fast the GPU is: it is what lockstep saves.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from benchmarks.common import Row, Shape, batch_of, interleaved, our_method, parser, report
from core.lockstep import Stack, Step, gradients

METHODS = ("dazle", "vsmr", "msdn")
SEEDS = 5
TINY = Shape("tiny", K=16, C=10, unseen=3, B=4, R=4, D=16, V=8)


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--repeats", type=int, default=300, help="timed steps of each kind (default: %(default)s)")
    return made


def works(method: str) -> dict[str, Callable[[], None]]:
    """Five steps one after another, and in lockstep; the optimisers' included."""
    methods = [our_method(TINY, method=method, seed=seed) for seed in range(SEEDS)]
    phases = [made.phases[0] for made in methods]
    x, y = batch_of(TINY)
    steps = [Step(made.model, phase.loss, x, y, None) for made, phase in zip(methods, phases, strict=True)]
    stack = Stack([step.model for step in steps])

    def one_after_another() -> None:
        for step, phase in zip(steps, phases, strict=True):
            phase.optimizer.zero_grad(set_to_none=True)
            gradients([step])
            phase.optimizer.step()

    def in_lockstep() -> None:
        for phase in phases:
            phase.optimizer.zero_grad(set_to_none=True)
        assert len({step.stackable() for step in steps}) == 1
        gradients(steps, stack)
        for phase in phases:
            phase.optimizer.step()

    return {"alone": one_after_another, "lockstep": in_lockstep}


def main() -> int:
    args = arguments().parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = []
    for method in METHODS:
        taken = interleaved(works(method), 3 if args.trial else args.repeats)
        alone, lockstep = (taken[how] / SEEDS for how in ("alone", "lockstep"))
        made.append(
            Row(
                f"host time of a step and seed, {method}: alone, {SEEDS} in lockstep",
                f"{alone * 1e6:.0f} µs",
                f"{lockstep * 1e6:.0f} µs",
                f"{alone / lockstep:.2f}x",
            )
        )
    torch.set_num_threads(threads)
    return report(made, args)


if __name__ == "__main__":
    sys.exit(main())
