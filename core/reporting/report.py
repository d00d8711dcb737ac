"""What reproduce_tables.py writes from summary.csv and the run folders: the tables, and figures."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.experiments.results import read_scores
from core.experiments.statistics import Interval, bootstrap_over_classes
from core.files.atomic import write_bytes
from core.reporting import tables as t
from core.reporting.figures import calibration_figure, read_outcome


def write_report(out: Path, docs: Path | None = None) -> str:
    """Write OUT/tables.md and OUT/figures/ from OUT/summary.csv and the runs in it; returns the tables.

    ``docs`` gets the tables, summary.csv, and the intervals over the draw of test classes.
    """
    frame, drawn = t.read_summary(out / "summary.csv"), dict[str, Mapping[str, Interval]]()

    def over_classes(mine: pd.DataFrame, other: pd.DataFrame) -> Mapping[str, Interval]:
        a, b = ([read_scores(out / folder) for folder in runs.folder] for runs in (mine, other))
        found = drawn[pair_of(mine, other)] = bootstrap_over_classes(a, b, rng=np.random.default_rng(0))
        return found

    tables = t.all_tables(frame, over_classes)
    write_bytes(out / "tables.md", tables.encode())
    if docs is not None:
        rows = [(pair, k, i.mean, i.low, i.high) for pair, found in drawn.items() for k, i in found.items()]
        intervals = pd.DataFrame(rows, columns=["pair", "metric", "mean_", "low", "high"])
        text = intervals.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_bytes(docs / "results_over_classes.csv", text.encode())
        write_bytes(docs / "results.csv", (out / "summary.csv").read_bytes())
        write_bytes(docs / "results.md", published(tables).encode())
    groups = t.tables_of(frame)
    for part in groups:
        if (part.ablation == "").any():
            _figures(out, part[part.ablation == ""], groups)
    return tables


def pair_of(mine: pd.DataFrame, other: pd.DataFrame) -> str:
    """What the difference of two lines of runs is called in results_over_classes.csv."""
    return " minus ".join("+".join(sorted(runs.folder)) for runs in (mine, other))


def published(tables: str) -> str:
    """The page docs/results.md."""
    return f"# Results\n\nWritten by `reproduce_tables.py` from `docs/results.csv`; do not edit.\n\n{tables}"


def _figures(out: Path, part: pd.DataFrame, groups: Sequence[pd.DataFrame]) -> None:
    """The calibration curves of a table."""
    runs, first = t.with_lines(part), part.iloc[0]
    lines = sorted((own for _, own in runs.groupby("line")), key=lambda own: -own.AUSUC.mean())
    title = f"{first.dataset}, {first.backbone}, {first.regions}{t.telling(part, groups)}"
    plain = "_".join(re.sub(r"[^\w.+-]+", "-", str(first[c])) for c in ("dataset", "backbone", "regions"))
    digest = hashlib.sha256("\0".join(str(first[column]) for column in t.TABLE).encode()).hexdigest()
    name = f"{plain[:100]}_{digest[:8]}.png"  # that of no other table
    most = max(len(own) for own in lines)
    of = {_with_caveats(own, most): [read_outcome(out / run) for run in own.folder] for own in lines}
    calibration_figure(of, out / "figures" / f"calibration_{name}", title)


def _with_caveats(runs: pd.DataFrame, most: int) -> str:
    """The label of a line in a figure, with why it is no equal of the others there, where it is none."""
    first, seeds = runs.iloc[0], len(runs)
    few = [f"{seeds} seed{'s' * (seeds > 1)}"] * (seeds < most)
    cut = [f"cut off: {first.cut_off}"] * bool(first.cut_off)
    return "; ".join([first.label, *few, *cut, *["nothing validated"] * (not first.validated)])
