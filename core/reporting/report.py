"""What reproduce_tables.py writes from summary.csv: the tables, and figures where the run folders are there."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.experiments.results import read_scores
from core.experiments.statistics import Interval, bootstrap_over_classes
from core.files.atomic import atomic_path, write_bytes
from core.reporting.figures import calibration_figure, confusion_figure, forest_figure, per_class_figure
from core.reporting.rows import TABLE, Entry, as_frame, entries_of, read_summary, tables_of
from core.reporting.tables import OURS, all_tables, ours_among, telling

log = logging.getLogger(__name__)
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
    groups = tables_of(as_frame(frame))
    for part in groups:
        alike = [other for other in groups if other.dataset.iloc[0] == part.dataset.iloc[0]]
        _figures(out, part[part.ablation == ""], alike, intervals)
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
        folders = [[self.out / str(f) for f in runs.folder] for runs in (mine, other)] if self.out else []
        if folders and all((folder / "scores.npz").is_file() for side in folders for folder in side):
            a, b = ([read_scores(folder) for folder in side] for side in folders)
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


def _figures(out: Path, part: pd.DataFrame, alike: Sequence[pd.DataFrame], intervals: OverClassesTable) -> None:
    """Differences over classes, and where the run folders are there calibration curves, classes and their confusion."""
    if not len(part):
        return
    entries = sorted(entries_of(part), key=lambda e: -e.runs.AUSUC.mean())
    first = part.iloc[0]
    title = f"{first.dataset}, {first.backbone}, {first.regions}{telling(part, alike)}"
    name, folder = figure_name(part), out / "figures"
    full = [e for e in entries if not e.cut_off]
    if differences := _over_classes(full, intervals):
        forest_figure(differences, folder / f"forest_{name}.png", title=title, paired="over test classes")
    elif ours_among(full) is None and any(e.method == OURS for e in full):
        log.warning("%s: several rows of %s and none is as published, so no other is compared with it", title, OURS)
    there = {e: [out / str(run) for run in e.runs.folder] for e in entries} if "folder" in part else {}
    there = {e: runs for e, runs in there.items() if all((run / "curve.csv").is_file() for run in runs)}
    if not there:
        return
    most = max(map(len, there.values()))
    says = {e: _with_caveats(e, len(runs), most) for e, runs in there.items()}
    calibration_figure({says[e]: runs for e, runs in there.items()}, folder / f"calibration_{name}.png", title)
    ours = [e for e in there if e.method == OURS]
    other = best_equal([e for e in there if e.method != OURS])
    for mine in ours:  # several where settings or code differ: a figure each
        own = f"{name}_{_digest(says[mine])}" if len(ours) > 1 else name
        taken = f"{title}: what {says[mine]} takes unseen classes for"
        confusion_figure(there[mine], folder / f"confusion_{own}.png", taken)
        if other is not None:
            per_class_figure(
                there[mine],
                there[other],
                names=(says[mine], says[other]),
                out=folder / f"per_class_{own}.png",
                title=f"{title}: unseen classes",
            )


def figure_name(part: pd.DataFrame) -> str:
    """What the figures of a table are called: no two tables share it, and it is the name of a file."""
    first = part.iloc[0]
    plain = "_".join(re.sub(r"[^\w.+-]+", "-", str(first[c])) for c in ("dataset", "backbone", "regions"))
    return f"{plain[:100]}_{_digest(*(str(first[column]) for column in TABLE))}"


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def _with_caveats(entry: Entry, seeds: int, most: int) -> str:
    """The label of an entry in a figure, with why it is no equal of the others there, where it is none."""
    few = [f"{seeds} seed{'s' * (seeds > 1)}"] * (seeds < most)
    cut = [f"cut off: {entry.cut_off}"] * bool(entry.cut_off)
    return "; ".join([entry.label, *few, *cut, *["nothing validated"] * (not entry.runs.validated.all())])


def best_equal(entries: Sequence[Entry]) -> Entry | None:
    """The entry of the highest AUSUC among those that were not cut off; among all where every one was."""
    return max(entries, key=lambda e: (not e.cut_off, e.runs.AUSUC.mean()), default=None)


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
            found[_with_caveats(other, len(shared), len(ours.runs))] = {
                name: _points(drawn[metric]) for metric, name in SHOWN.items()
            }
    return found


def _points(share: Interval) -> Interval:
    return Interval(mean=100 * share.mean, low=100 * share.low, high=100 * share.high)
