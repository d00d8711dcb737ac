"""What reproduce_tables.py writes from summary.csv: the tables, and figures where the run folders are there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.experiments.results import read_result, read_scores
from core.experiments.statistics import Interval, bootstrap_over_classes
from core.files.atomic import write_bytes
from core.files.errors import UserError
from core.reporting import tables as t
from core.reporting.figures import calibration_figure, confusion_figure, read_outcome, reliability_figure
from core.reporting.tables import METRICS, OURS, all_tables, with_lines


def write_report(out: Path, docs: Path | None = None) -> str:
    """Write OUT/tables.md and OUT/figures/ from OUT/summary.csv; returns the tables, of which ``docs`` gets a copy.

    Intervals over classes come from the scores in the run folders and are kept in OUT/over_classes.csv, so that the
    tables can be written again where the folders are not.
    """
    frame = t.read_summary(out / "summary.csv")
    for row in frame[frame.ablation == ""].to_dict("records"):
        metrics = out / str(row.get("folder", "")) / "metrics.json"
        if not metrics.is_file():
            continue
        standard = read_result(metrics)["standard"]
        if not np.allclose([row[k] for k in METRICS], [standard[k] for k in METRICS], rtol=0, atol=1e-5):
            raise UserError(
                f"{out / 'summary.csv'} says other numbers of seed {row['seed']:g} of {row['method']} than {metrics}; "
                f"rebuild it with: python reproduce_tables.py --collect --out {out}"
            )
    intervals = OverClassesTable(out / "over_classes.csv", out)
    tables = all_tables(frame, intervals)
    intervals.write(out / "over_classes.csv")
    write_bytes(out / "tables.md", tables.encode())
    if docs is not None:
        write_bytes(docs / "results.csv", (out / "summary.csv").read_bytes())
        intervals.write(docs / "results_over_classes.csv")
        write_bytes(docs / "results.md", published(tables).encode())
    groups = t.tables_of(frame)
    for part in groups:
        if (part.ablation == "").any():
            _figures(out, part[part.ablation == ""], groups)
    return tables


def published(tables: str) -> str:
    """The page docs/results.md."""
    return f"# Results\n\nWritten by `reproduce_tables.py` from `docs/results.csv`; do not edit.\n\n{tables}"


class OverClassesTable:
    """Paired intervals over the draw of test classes: from run folders in ``out``, or as written down in ``path``."""

    def __init__(self, path: Path, out: Path | None = None) -> None:
        self.out, self._used = out, dict[str, Mapping[str, Interval]]()
        written = pd.read_csv(path).groupby("pair") if path.is_file() else []
        self._written = {
            pair: {r.metric: Interval(mean=r.mean_, low=r.low, high=r.high) for r in rows.itertuples()}
            for pair, rows in written
        }

    def __call__(self, mine: pd.DataFrame, other: pd.DataFrame) -> Mapping[str, Interval] | None:
        """Differences of the runs in ``mine`` minus those in ``other``; None where nothing is known of them."""
        if "folder" not in mine:
            return None
        pair = " minus ".join("+".join(sorted(map(str, runs.folder))) for runs in (mine, other))
        if pair not in self._used:
            folders = [_finished(self.out, runs) for runs in (mine, other)]
            if all(folders):
                a, b = ([read_scores(folder) for folder in side] for side in folders)
                self._used[pair] = bootstrap_over_classes(a, b, rng=np.random.default_rng(0))
            elif pair in self._written:
                self._used[pair] = self._written[pair]
        return self._used.get(pair)

    def write(self, path: Path) -> None:
        """Write down every interval that was asked for."""
        rows = [(pair, k, i.mean, i.low, i.high) for pair, found in self._used.items() for k, i in found.items()]
        frame = pd.DataFrame(rows, columns=["pair", "metric", "mean_", "low", "high"])
        write_bytes(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())


def _finished(out: Path | None, runs: pd.DataFrame) -> list[Path]:
    """Folders of the runs; none where not all of them are there."""
    folders = [out / str(folder) for folder in runs.folder] if out is not None and "folder" in runs else []
    return folders if all((folder / "metrics.json").is_file() for folder in folders) else []


def _figures(out: Path, part: pd.DataFrame, groups: Sequence[pd.DataFrame]) -> None:
    """Where the run folders are there: calibration curves, and what our method takes unseen classes for."""
    runs, first, folder = with_lines(part), part.iloc[0], out / "figures"
    lines = sorted((own for _, own in runs.groupby("line")), key=lambda own: -own.AUSUC.mean())
    there = [(own, [read_outcome(run) for run in folders]) for own in lines if (folders := _finished(out, own))]
    if not there:
        return
    title = f"{first.dataset}, {first.backbone}, {first.regions}{t.telling(part, groups)}"
    plain = "_".join(re.sub(r"[^\w.+-]+", "-", str(first[c])) for c in ("dataset", "backbone", "regions"))
    name = f"{plain[:100]}_{_digest(*(str(first[column]) for column in t.TABLE))}"  # that of no other table
    most = max(len(outcomes) for _, outcomes in there)
    of = {_with_caveats(own, len(outcomes), most): outcomes for own, outcomes in there}
    calibration_figure(of, folder / f"calibration_{name}.png", title)
    if any(run.reliability is not None for outcomes in of.values() for run in outcomes):
        reliability_figure(of, folder / f"reliability_{name}.png", title)
    ours = [says for says, (own, _) in zip(of, there, strict=True) if own.method.iloc[0] == OURS]
    for says in ours:  # several where settings or code differ: a figure each
        path = folder / f"confusion_{f'{name}_{_digest(says)}' if len(ours) > 1 else name}.png"
        confusion_figure(of[says], path, f"{title}: what {says} takes unseen classes for")


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def _with_caveats(runs: pd.DataFrame, seeds: int, most: int) -> str:
    """The label of a line in a figure, with why it is no equal of the others there, where it is none."""
    first = runs.iloc[0]
    few = [f"{seeds} seed{'s' * (seeds > 1)}"] * (seeds < most)
    cut = [f"cut off: {first.cut_off}"] * bool(first.cut_off)
    return "; ".join([first.label, *few, *cut, *["nothing validated"] * (not first.validated)])
