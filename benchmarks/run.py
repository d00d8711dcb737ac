"""All benchmarks, one table: results/benchmarks.md and results/benchmarks.csv.

    python -m benchmarks.run                # on a machine that does nothing else; about 20 minutes on 2 CPU cores
    python -m benchmarks.run --quick        # tiny sizes, to see that everything runs; the figures mean nothing

Each benchmark runs in a process of its own, so none meets the memory or the threads of another. The columns: reference
is the textbook form (or what the row names), ours is core, ratio is how many times faster ours is or its share.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, environment, in_fresh_process, markdown, read_csv, write_csv

JOBS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (  # module, flags, flags with --quick
    ("training_step", (), ("--repeats", "1")),
    ("feature_reading", (), ("--gigabytes", "0.05", "--repeats", "2")),
    ("extraction", (), ("--backbone", "mobilenet_v2", "--input-size", "96", "--images", "64", "160")),
    (
        "extraction",
        ("--dtype", "bfloat16"),
        ("--backbone", "mobilenet_v2", "--input-size", "96", "--images", "64", "160", "--dtype", "bfloat16"),
    ),
    ("growth", (), ("--scale", "0.1", "--repeats", "1")),
    ("gpu", (), ()),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the tables (default: results)")
    args = parser.parse_args()
    out = args.out.resolve()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.csv"
        for module, flags, quick in JOBS:
            print(f"benchmarks.{module} {' '.join(quick if args.quick else flags)}", file=sys.stderr, flush=True)
            more = ("--out", out / "benchmarks_growth.png") if module == "growth" and args.quick else ()
            table.unlink(missing_ok=True)
            in_fresh_process(module, *(quick if args.quick else flags), *more, "--csv", table)
            rows += read_csv(table) if table.exists() else []
    text = f"{markdown(rows)}\n\n{environment()}\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmarks.md").write_text(text, encoding="utf-8")
    write_csv(out / "benchmarks.csv", rows)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
