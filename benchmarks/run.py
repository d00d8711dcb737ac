"""All benchmarks, one table: results/benchmarks.md and results/benchmarks.csv.

    python -m benchmarks.run                # on a machine that does nothing else; 9 minutes on 2 CPU cores
    python -m benchmarks.run --trial        # tiny sizes: does everything run? The figures mean nothing

Each benchmark runs in a process of its own, so none meets the memory or the threads of another. The columns: reference
is the textbook form (or what the row names), ours is core, ratio is how many times faster ours is or its share.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, environment, in_fresh_process, markdown, read_csv, write_csv

JOBS: tuple[tuple[str, ...], ...] = (  # module, flags
    ("training_step",),
    ("methods",),
    ("feature_reading",),
    ("extraction",),
    ("extraction", "--dtype", "bfloat16"),
    ("predict", "--images", "256"),
    ("shards",),
    ("growth",),
    ("gpu",),
)
TRIAL_FLAGS = {"training_step": ["--shapes", "AWA2"], "methods": ["--shapes", "AWA2"], "gpu": ["--device", "cpu"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the tables (default: results)")
    args = parser.parse_args()
    out = args.out.resolve()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.csv"
        for module, *flags in JOBS:
            if args.trial:
                flags += ["--trial", *TRIAL_FLAGS.get(module, [])]
                if module == "growth":
                    flags += ["--out", str(out / "benchmarks_growth.png")]
            print(f"benchmarks.{module} {' '.join(flags)}", file=sys.stderr, flush=True)
            table.unlink(missing_ok=True)
            in_fresh_process(module, *flags, "--csv", table)
            rows += read_csv(table) if table.exists() else []
    text = f"{markdown(rows)}\n\n{environment()}\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmarks.md").write_text(text, encoding="utf-8")
    write_csv(out / "benchmarks.csv", rows)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
