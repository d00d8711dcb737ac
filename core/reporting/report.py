"""What reproduce_tables.py writes from summary.csv and the run folders: the tables, and figures."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.experiments.board import arrays_of, flat, place_of, read_board
from core.experiments.results import read_scores
from core.experiments.statistics import Interval, bootstrap_over_classes
from core.files.atomic import write_bytes
from core.reporting import tables as t
from core.reporting.figures import calibration_figure, read_outcome, reliability_figure
from core.training.evaluation import standard

Arrays = Callable[[str], Mapping[str, np.ndarray]]


def write_report(out: Path) -> str:
    """Write OUT/tables.md and OUT/figures/ from OUT/summary.csv and the runs in it; returns the tables."""
    frame = t.read_summary(out / "summary.csv")
    tables, _ = _tables(frame, lambda folder: read_scores(out / folder))
    write_bytes(out / "tables.md", tables.encode())
    groups = t.tables_of(frame)
    for part in groups:
        if (part.ablation == "").any():
            _figures(out, part[part.ablation == ""], groups)
    return tables


def write_results(board: Path, out: Path, docs: Path) -> None:
    """Write DOCS/results.md and its CSV files: the rows of the board, and the ablations found below OUT."""
    rows = {"/".join(place_of(row)).removesuffix(".json"): row for row in read_board(board)}
    best = {folder: standard(arrays_of(row), 0.0)["H_best"] for folder, row in rows.items()}
    made = t.prepared([flat(row) | {"folder": folder, "H_best": best[folder]} for folder, row in rows.items()])
    ablations = t.read_summary(out / "summary.csv").query("ablation != ''")
    same = dict(zip(made.features_sha256, made.features_made, strict=True))
    frame = pd.concat([made, ablations.replace({"features_made": same})]).drop(columns="validated")
    write_bytes(docs / "results.csv", _csv(frame).encode())
    tables, drawn = _tables(t.read_summary(docs / "results.csv"), lambda folder: arrays_of(rows[folder]))
    intervals = [(pair, k, i.mean, i.low, i.high) for pair, found in drawn.items() for k, i in found.items()]
    columns = ["pair", "metric", "mean_", "low", "high"]
    write_bytes(docs / "results_over_classes.csv", _csv(pd.DataFrame(intervals, columns=columns)).encode())
    write_bytes(docs / "results.md", published(tables).encode())


def _tables(frame: pd.DataFrame, arrays: Arrays) -> tuple[str, dict[str, Mapping[str, Interval]]]:
    """The tables of a frame, and every interval over the draw of test classes in them; ``arrays`` of a run's folder."""
    drawn: dict[str, Mapping[str, Interval]] = {}

    def over_classes(mine: pd.DataFrame, other: pd.DataFrame) -> Mapping[str, Interval]:
        a, b = ([arrays(folder) for folder in runs.folder] for runs in (mine, other))
        found = drawn[pair_of(mine, other)] = bootstrap_over_classes(a, b, rng=np.random.default_rng(0))
        return found

    return t.all_tables(frame, over_classes), drawn


def _csv(frame: pd.DataFrame) -> str:
    return str(frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def pair_of(mine: pd.DataFrame, other: pd.DataFrame) -> str:
    """What the difference of two lines of runs is called in results_over_classes.csv."""
    return " minus ".join("+".join(sorted(runs.folder)) for runs in (mine, other))


def published(tables: str) -> str:
    """The page docs/results.md."""
    said = "Written by `reproduce_tables.py` from the rows of the [board](board.md) and from ablations; do not edit."
    return f"# Results\n\n{said}\n\n{tables}"


def _figures(out: Path, part: pd.DataFrame, groups: Sequence[pd.DataFrame]) -> None:
    """Calibration curves, and reliability where runs have probabilities."""
    runs, first, folder = t.with_lines(part), part.iloc[0], out / "figures"
    lines = sorted((own for _, own in runs.groupby("line")), key=lambda own: -own.AUSUC.mean())
    title = f"{first.dataset}, {first.backbone}, {first.regions}{t.telling(part, groups)}"
    plain = "_".join(re.sub(r"[^\w.+-]+", "-", str(first[c])) for c in ("dataset", "backbone", "regions"))
    digest = hashlib.sha256("\0".join(str(first[column]) for column in t.TABLE).encode()).hexdigest()
    name = f"{plain[:100]}_{digest[:8]}.png"  # that of no other table
    most = max(len(own) for own in lines)
    of = {_with_caveats(own, most): [read_outcome(out / run) for run in own.folder] for own in lines}
    calibration_figure(of, folder / f"calibration_{name}", title)
    if any(run.reliability is not None for runs_of in of.values() for run in runs_of):
        reliability_figure(of, folder / f"reliability_{name}", title)


def _with_caveats(runs: pd.DataFrame, most: int) -> str:
    """The label of a line in a figure, with why it is no equal of the others there, where it is none."""
    first, seeds = runs.iloc[0], len(runs)
    few = [f"{seeds} seed{'s' * (seeds > 1)}"] * (seeds < most)
    cut = [f"cut off: {first.cut_off}"] * bool(first.cut_off)
    return "; ".join([first.label, *few, *cut, *["nothing validated"] * (not first.validated)])
