"""A training step on a GPU: time and memory of core's DAZLE against the textbook einsum form.

    python -m benchmarks.gpu

Without a GPU the script says so and ends with exit code 0.
"""

import argparse
import sys

import torch

from benchmarks.common import SHAPES, Row, Shape, against, interleaved, megabytes, report, step_of

DEVICE = "cuda"
# float32 matmul precision and autocast: "highest" is float32, "high" is TF32
TYPES = {"float32": ("highest", None), "TF32": ("high", None), "bf16 autocast": ("highest", torch.bfloat16)}


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50, help="timed steps of each form (default: %(default)s)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU: this PyTorch sees no CUDA device, so there is nothing to measure here")
        return 0
    return report([row for shape in SHAPES.values() for row in step_rows(shape, args.repeats)])


if __name__ == "__main__":
    sys.exit(main())
