"""What reproduce_tables.py writes from summary.csv: the tables, and figures where the run folders are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.experiments.statistics import Interval, bootstrap_over_classes, load_scores
from core.files.atomic import atomic_path, write_bytes
from core.reporting.figures import calibration_figure, confusion_figure, forest_figure, per_class_figure
from core.reporting.rows import Entry, as_frame, entries_of, read_summary, tables_of
from core.reporting.tables import OURS, all_tables, ours_among

SHOWN = {"T1": "T1", "H": "H, best γ", "AUSUC": "AUSUC"}  # in the forest figure; γ of H is chosen anew in every draw


def write_report(out: Path, docs: Path | None = None) -> str:
    """Write OUT/tables.md and OUT/figures/ from OUT/summary.csv; returns the tables.

    Intervals over classes come from the scores in the run folders and are kept in OUT/over_classes.csv, so that the
    tables can be written again where the folders are not.

    Args:
        docs: folder that gets a copy: results.md, results.csv and results_over_classes.csv.
    """
    frame = read_summary(out / "summary.csv")
    intervals = OverClassesTable(out / "over_classes.csv", out)
    tables = all_tables(frame, intervals)
    intervals.write(out / "over_classes.csv")
    write_bytes(out / "tables.md", tables.encode())
    if docs is not None:
        write_bytes(docs / "results.csv", (out / "summary.csv").read_bytes())
        intervals.write(docs / "results_over_classes.csv")
        write_bytes(docs / "results.md", published(tables).encode())
    for part in tables_of(as_frame(frame)):
        _figures(out, part[part.ablation == ""], intervals)
    return tables


def published(tables: str) -> str:
    """The page docs/results.md."""
    return f"# Results\n\nWritten by `reproduce_tables.py` from `docs/results.csv`; do not edit.\n\n{tables}"


class OverClassesTable:
    """Paired intervals over the draw of test classes: from run folders, or as they were written down before."""

    def __init__(self, path: Path, out: Path | None = None) -> None:
        """Args: path of the written intervals, if there are any; ``out`` the folder that the run folders lie in."""
        self.out = out
        self._known: dict[str, dict[str, Interval]] = {}
        if path.is_file():
            for pair, rows in pd.read_csv(path).groupby("pair", sort=False):
                made = {r.metric: Interval(mean=r.mean_, low=r.low, high=r.high) for r in rows.itertuples()}
                self._known[str(pair)] = made
        self._used: dict[str, dict[str, Interval]] = {}

    def __call__(self, mine: pd.DataFrame, other: pd.DataFrame) -> dict[str, Interval] | None:
        """Differences of the runs in ``mine`` minus those in ``other``; None where nothing is known of them."""
        if "folder" not in mine or "folder" not in other:
            return None
        pair = " minus ".join("+".join(sorted(map(str, runs.folder))) for runs in (mine, other))
        if pair in self._used:  # the tables ask first, the figures again: ten thousand draws once
            return self._used[pair]
        found = self._known.get(pair)
        paths = [[self.out / str(f) / "scores.npz" for f in runs.folder] for runs in (mine, other)] if self.out else []
        if paths and all(path.is_file() for side in paths for path in side):
            a, b = ([load_scores(path) for path in side] for side in paths)
            found = bootstrap_over_classes(a, b, rng=np.random.default_rng(0))
        if found:
            self._used[pair] = found
        return found

    def write(self, path: Path) -> None:
        """Write down every interval that was asked for."""
        rows = [
            {"pair": pair, "metric": metric, "mean_": i.mean, "low": i.low, "high": i.high}
            for pair, intervals in self._used.items()
            for metric, i in intervals.items()
        ]
        with atomic_path(path) as temporary:
            pd.DataFrame(rows, columns=["pair", "metric", "mean_", "low", "high"]).to_csv(
                temporary, index=False, float_format="%.6g"
            )


def _figures(out: Path, part: pd.DataFrame, intervals: OverClassesTable) -> None:
    """Differences over classes, and where the run folders are there calibration curves, classes and their confusion."""
    if not len(part):
        return
    entries = sorted(entries_of(part), key=lambda e: -e.runs.AUSUC.mean())
    first = part.iloc[0]
    name = f"{first.dataset}_{first.backbone}_{first.regions}_{first.features_sha256[:8]}.png"
    title, folder = f"{first.dataset}, {first.backbone}, {first.regions}", out / "figures"
    differences = _over_classes([e for e in entries if not e.cut_off], intervals)
    if differences:
        forest_figure(differences, folder / f"forest_{name}", title=title, paired="over test classes")
    runs = {e.label: [out / str(path) for path in e.runs.folder] for e in entries} if "folder" in part else {}
    runs = {label: fs for label, fs in runs.items() if all((f / "curve.csv").is_file() for f in fs)}
    if not runs:
        return
    calibration_figure(runs, folder / f"calibration_{name}", title)
    if OURS in runs:
        confusion_figure(runs[OURS], folder / f"confusion_{name}", f"{title}: what {OURS} takes unseen classes for")
    others = [label for label in runs if label != OURS]
    if OURS in runs and others:
        against = "dazle" if "dazle" in others else others[0]
        per_class_figure(runs, folder / f"per_class_{name}", f"{title}: unseen classes", against)


def _over_classes(entries: Sequence[Entry], intervals: OverClassesTable) -> dict[str, dict[str, Interval]]:
    """Our method minus each other one on the seeds they share, in points: method -> metric -> difference."""
    ours = ours_among(entries)
    if ours is None:
        return {}
    found = {}
    for other in entries:
        shared = set(ours.runs.seed) & set(other.runs.seed) if other is not ours else set()
        drawn = intervals(*(e.runs[e.runs.seed.isin(shared)] for e in (ours, other))) if shared else None
        if drawn:
            found[other.label] = {name: _points(drawn[metric]) for metric, name in SHOWN.items()}
    return found


def _points(share: Interval) -> Interval:
    return Interval(mean=100 * share.mean, low=100 * share.low, high=100 * share.high)
