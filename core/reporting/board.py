"""The board's page: one table a data set and features, best first, with how sure that order is; and one figure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.experiments.board import arrays_of, flat, read_board
from core.experiments.statistics import Interval, ranks_over_classes
from core.files.atomic import write_bytes
from core.reporting import tables as t
from core.reporting.figures import seconds_figure

LEGEND = """\
T1, U, S, H and AUSUC in percent, mean ± standard deviation over seeds, as in [results.md](results.md). Behind AUSUC and
the rank by it: where they lie in 95 % of 10,000 draws of the test classes; all methods see the same draws. Epochs,
settings and γ are chosen on a class-disjoint validation split inside trainval (seed k has split k); `chosen` says what
came out, `tried` among how many, and the test sets are read once. Seconds are processor seconds of a run, all of it.
Features that two processors made alike differ in last bits; their rows share a table, which names both digests.
Every row is made from [files](adding.md#a-row-of-the-board) that a check recomputes."""


def write_board(board: Path, docs: Path, figure: Path) -> None:
    """Write DOCS/board.md and the figure of AUSUC against seconds, from checked rows."""
    rows = read_board(board)
    frame = t.prepared([flat(row) | {"number": number} for number, row in enumerate(rows)])
    lines, panels = ["# Board", "", *LEGEND.splitlines()], {}
    groups = t.tables_of(frame)
    for part in groups:
        first = rows[part.number.iloc[0]]
        said = f"{t.heading(part)}, {' and '.join(f'{len(c)} {side}' for side, c in first['classes'].items())} classes"
        found, panels[said] = _table(part, rows)
        lines += ["", f"## {said}{t.telling(part, groups)}", *found]
    write_bytes(docs / "board.md", ("\n".join(lines) + "\n").encode())
    if drawn := {said: points for said, points in panels.items() if len(points) > 2}:
        seconds_figure(drawn, figure)


def _apart(runs: pd.DataFrame) -> str:
    """The heading that a line which is no equal of the others stands under; empty for an equal."""
    first = runs.iloc[0]
    return t.CUT_OFF if first.cut_off else t.ENSEMBLE if "+" in first.method else ""


def _table(part: pd.DataFrame, rows: Sequence[dict[str, Any]]) -> tuple[list[str], dict[str, tuple[float, Interval]]]:
    """Markdown of a table, equals first, and of each of its lines the seconds and AUSUC."""
    lines = [own for _, own in t.with_lines(part).groupby("line")]
    lines.sort(key=lambda own: (_apart(own), -own.AUSUC.mean()))
    points, kinds = {}, dict[str, list[dict[str, str]]]()
    common = set.intersection(*({*own.remarks.iloc[0].split("; ")} for own in lines)) - {""}
    arrays, equals = [[arrays_of(rows[k]) for k in own.number] for own in lines], sum(not _apart(own) for own in lines)
    groups = [arrays[:equals]] * bool(equals) + [[runs] for runs in arrays[equals:]]
    found = [one for group in groups for one in ranks_over_classes(group, rng=np.random.default_rng(0))]
    for own, (area, rank) in zip(lines, found, strict=True):
        first, kind = own.iloc[0], _apart(own)
        row = {"rank": "" if kind else f"{rank.mean:.0f} ({rank.low:.0f} to {rank.high:.0f})"}
        row["method"] = f"**{first.label}**" if first.method == t.OURS else first.label
        row["AUSUC"] = f"{100 * area.mean:.1f} ({100 * area.low:.1f} to {100 * area.high:.1f})"
        row |= {key: t.mean_of(own[key]) for key in ("T1", "U", "S", "H")}
        row |= {"chosen": _chosen(own), "tried": f"{own.configurations.max():.0f}", "seeds": f"{len(own)}"}
        row |= {"seconds": f"{own.seconds.median():.0f}", "method code": first.method_code}
        row["remarks"] = "; ".join(word for word in first.remarks.split("; ") if word not in common)
        kinds.setdefault(kind, []).append(row)
        points[first.label + ", cut off" * bool(first.cut_off)] = own.seconds.median(), area
    notes = [f"Of all rows: {'; '.join([*sorted(common), *t.digests(part)])}."]
    notes += [f"Note: {note}." for note in dict.fromkeys(part.notes) if note]
    text = [line for note in notes for line in ("", note)]
    for kind, made in kinds.items():
        text += [*["", kind] * bool(kind), "", *t.markdown(made)]
    return text, points


def _chosen(own: pd.DataFrame) -> str:
    """What validation chose in the seeds of a line."""
    picked: dict[str, list[str]] = {"epochs": [f"{e:.0f}" for e in own.epochs] if own.most_epochs.max() else []}
    for text in own.chosen:
        for key, value in json.loads(text or "{}").items():
            picked.setdefault(key, []).append(f"{value:.3g}" if isinstance(value, float) else str(value))
    return ", ".join(f"{key} {'/'.join(dict.fromkeys(values))}" for key, values in picked.items() if values) or "-"
