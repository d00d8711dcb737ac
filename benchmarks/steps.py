"""A training step: core's DAZLE against the textbook einsum form, and the other methods against DAZLE.

    python -m benchmarks.steps                                    # about 3 minutes on 2 CPU cores
    python -m benchmarks.steps --shapes AWA2 --repeats 3          # a quick look
    python -m benchmarks.steps --memory-of dazle --shapes CUB     # bytes, in this process (used by itself)

The forms take turns in one process (A B A B). Memory is measured in a fresh process for each: model, optimiser state
and batch are there already, so what counts is what the step itself adds. That includes the gradients, which both forms
need alike; the second share in the memory column leaves them out.
"""

import argparse
import sys

import torch

from benchmarks import common
from benchmarks.common import SHAPES, Row, Shape, megabytes, milliseconds, step_of

OTHERS = ("msdn", "transzero")
FORMS = {"reference": ("reference", None), "dazle": ("dazle", None), "dazle bf16": ("dazle", torch.bfloat16)}


def memory_of(form: str, shape: Shape) -> int:
    """Bytes one step adds at its peak; call it in a fresh process."""
    kind, autocast = FORMS[form]
    tiny = Shape("tiny", K=4, C=6, unseen=2, B=4, R=4, D=16, V=8)
    step_of(kind, tiny, autocast=autocast)()  # libraries and threads are loaded now
    step = step_of(kind, shape, autocast=autocast, warm_optimizer=True)
    with common.PeakMemory() as memory:
        step()
    return memory.rise


def rows(shape: Shape, repeats: int) -> list[Row]:
    """The float32 row of a shape, the bf16 row where the CPU multiplies that in hardware, a row a further method."""
    bf16 = {"avx512_bf16", "amx_bf16", "bf16"} & {*common.cpu_says("flags", "Features").split()}
    forms = [form for form in FORMS if form != "dazle bf16" or bf16]
    works = {form: step_of(FORMS[form][0], shape, autocast=FORMS[form][1]) for form in forms}
    losses = {form: float(works[form]()) for form in forms}  # of the same parameters and batch
    if abs(losses["dazle"] - losses["reference"]) > 1e-4 * abs(losses["reference"]):
        raise SystemExit(f"{shape}: the forms disagree, losses {losses}")
    times = common.interleaved(works, repeats)
    extra = {f: int(common.in_fresh_process("steps", "--shapes", shape.name, "--memory-of", f)) for f in forms}
    parameters = (p for p in common.our_method(shape).model.parameters() if p.requires_grad)
    gradients = sum(p.numel() * p.element_size() for p in parameters)
    made = []
    for form in forms[1:]:
        whole, beyond = ((extra["reference"] - g) / (extra[form] - g) for g in (0, gradients))
        memory = f"{megabytes(extra['reference'])} -> {megabytes(extra[form])} (1/{whole:.1f}; "
        memory += f"1/{beyond:.1f} beyond the {megabytes(gradients)} of gradients)"
        name = "bf16 autocast" if form == "dazle bf16" else "float32"
        made.append(common.against(f"training step, {shape}, {name}", times["reference"], times[form], memory))
    others = common.interleaved({method: step_of(method, shape) for method in ("dazle", *OTHERS)}, repeats)
    for method in OTHERS:
        what, ratio = f"step of {method} against one of dazle, {shape}", f"{others[method] / others['dazle']:.2f} times"
        made.append(Row(what, milliseconds(others["dazle"]), milliseconds(others[method]), ratio))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="default: all")
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each form (default: %(default)s)")
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(memory_of(args.memory_of, SHAPES[args.shapes[0]]))
        return 0
    return common.report([row for name in args.shapes for row in rows(SHAPES[name], args.repeats)])


if __name__ == "__main__":
    sys.exit(main())
