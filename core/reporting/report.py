"""What reproduce_tables.py writes from summary.csv: the tables, and figures where the run folders are there."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from core.experiments.statistics import Interval, bootstrap_over_classes, load_scores
from core.files.atomic import write_bytes
from core.reporting.figures import calibration_figure, per_class_figure
from core.reporting.rows import as_frame, entries_of, read_summary, tables_of
from core.reporting.tables import OURS, all_tables

log = logging.getLogger(__name__)


def write_report(out: Path) -> str:
    """Write OUT/tables.md and OUT/figures/ from OUT/summary.csv; returns the tables."""
    frame = read_summary(out / "summary.csv")

    def over_classes(mine: pd.DataFrame, other: pd.DataFrame) -> dict[str, Interval] | None:
        paths = [[out / str(folder) / "scores.npz" for folder in runs.folder] for runs in (mine, other)]
        if not all(path.is_file() for side in paths for path in side):
            return None
        a, b = ([load_scores(path) for path in side] for side in paths)
        return bootstrap_over_classes(a, b, rng=np.random.default_rng(0))

    tables = all_tables(frame, over_classes if "folder" in frame else None)
    write_bytes(out / "tables.md", tables.encode())
    for part in tables_of(as_frame(frame)):
        _figures(out, part[part.ablation == ""])
    return tables


def _figures(out: Path, part: pd.DataFrame) -> None:
    """Calibration curves and per-class accuracies of one table."""
    entries = sorted(entries_of(part), key=lambda e: -e.runs.AUSUC.mean()) if len(part) else []
    runs = {e.label: [out / str(folder) for folder in e.runs.folder] for e in entries}
    runs = {label: fs for label, fs in runs.items() if all((f / "curve.csv").is_file() for f in fs)}
    if not runs:
        return
    first = part.iloc[0]
    name = f"{first.dataset}_{first.backbone}_{first.regions}_{first.features_sha256[:8]}"
    title = f"{first.dataset}, {first.backbone}, {first.regions}"
    calibration_figure(runs, out / "figures" / f"calibration_{name}.png", title)
    others = [label for label in runs if label != OURS]
    if OURS in runs and others:
        against = "dazle" if "dazle" in others else others[0]
        per_class_figure(runs, out / "figures" / f"per_class_{name}.png", f"{title}: unseen classes", against)
