"""Rows of summary.csv, one a run: which may share a table, which may share a mean, and the labels they carry."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.files.errors import UserError

OURS = "vsmr"  # the method that the others are compared with
METRICS = ("T1", "U", "S", "H", "AUSUC")
# a table holds runs that agree in all of these
TABLE = (
    "dataset",
    "split_sha256",
    "backbone",
    "regions",
    "input_size",
    "features",
    "features_sha256",
    "vectors_sha256",
    "code",
)
DIGESTS = {"features_sha256": "features", "vectors_sha256": "vectors", "split_sha256": "split", "code": "code"}
# a mean is taken over runs that agree in all of these too
ENTRY = ("method", "method_code", "recipe", "precision", "most_epochs", "gamma_splits", "validated", "cut_off")
_TEXT = (
    *TABLE,
    "method",
    "method_code",
    "recipe",
    "precision",
    "cut_off",
    "ablation",
    "pretraining_saw_unseen",
    "finetuned",
    "device",
    "torch",
    "notes",
    "deviations",
)
_SAID = {  # what a label says of fields that tell runs of a method apart
    "method_code": "method code",
    "precision": "precision",
    "most_epochs": "epochs",
    "gamma_splits": "γ splits",
}
_REBUILD = "rebuild the summary from the run folders with: python reproduce_tables.py --collect"
PREPARED = "-prepared"  # ending of the baselines that are given vsmr's inputs; all others are as published


def read_summary(path: Path) -> pd.DataFrame:
    """results/summary.csv as it is: one row a run, digests as text, "" where a text is missing."""
    frame = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str))
    for column in frame.columns.intersection(_TEXT):
        frame[column] = frame[column].astype(object).where(frame[column].notna(), "")
    return frame


def as_frame(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows with every column that the tables ask for; what is missing is "" or NaN."""
    frame = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    for column in _TEXT:
        values = frame[column] if column in frame else [""] * len(frame)
        frame[column] = pd.Series([_text(v) for v in values], index=frame.index, dtype=object)
    numbers = [p + m for p in ("", "val_", "test_", "published_") for m in METRICS]
    extra = ["gamma", "H_gamma0", "H_all_seeds", "H_best", "seed", "epochs", "most_epochs", "gamma_splits"]
    for column in (*numbers, *extra, "seconds", "configurations"):
        frame[column] = pd.to_numeric(frame[column]) if column in frame else np.nan
    frame["gamma_splits"] = frame.gamma_splits.fillna(1)  # runs made before there was a choice
    frame["validated"] = frame.val_AUSUC.notna()
    return frame


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())  # one line, whatever a name holds


@dataclass(frozen=True, eq=False)
class Entry:
    """Runs that differ in nothing but their seed: one line of a table."""

    method: str
    label: str
    runs: pd.DataFrame  # sorted by seed

    @property
    def cut_off(self) -> str:
        """Why the runs do not count as an equal: fewer epochs than the published recipe; "" where they do."""
        return str(self.runs.cut_off.iloc[0])

    @property
    def remarks(self) -> str:
        """What must be known wherever the row is printed."""
        first, found = self.runs.iloc[0], []
        for value in sorted(set(self.runs.pretraining_saw_unseen) - {"", "no"}):
            found.append(f"pretraining saw unseen classes: {value}")
        if (self.runs.finetuned.str.lower() == "true").any():
            found.append("backbone fine-tuned")
        if self.method.endswith(PREPARED):
            found.append("given vsmr's preparation")
        if not first.validated:
            found.append(f"nothing validated (--select last): γ = {_several(self.runs.gamma)}, the method's own")
        if first.gamma_splits > 1:
            found.append(f"γ: mean over {first.gamma_splits:g} validation splits a seed")
        if self.cut_off:
            found.append(f"cut off: {self.cut_off}")
        return "; ".join(found)


def _several(values: pd.Series) -> str:
    return ", ".join(dict.fromkeys(f"{v:.3g}" for v in values))


def tables_of(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows split into groups that may share a table, in the order of their first rows."""
    return [part for _, part in frame.groupby(list(TABLE), sort=False, dropna=False)]


def entries_of(part: pd.DataFrame) -> list[Entry]:
    """The lines of a table: a method has several where its code, recipe, precision or epochs differ, and each says so.

    Raises:
        UserError: two runs of one identity and seed.
    """
    known = part.assign(most_epochs=part.most_epochs.fillna(-1))
    groups = [runs.sort_values("seed") for _, runs in known.groupby(list(ENTRY), sort=False, dropna=False)]
    entries = []
    for runs in groups:
        first = runs.iloc[0]
        twice = runs.seed[runs.seed.duplicated()]
        if len(twice):
            raise UserError(
                f"{first.dataset}, {first.method}: seed {twice.iloc[0]:.0f} is there twice among the rows; {_REBUILD}"
            )
        same = [other.iloc[0] for other in groups if other.iloc[0].method == first.method]
        differing = [field for field in ENTRY[1:] if len({str(row[field]) for row in same}) > 1]
        says = _recipe(first.recipe)
        for field, name in _SAID.items():
            if field in differing:
                value = first[field]
                says.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value or 'unknown'}")
        entries.append(Entry(first.method, first.method + (f" ({', '.join(says)})" if says else ""), runs))
    return entries


def _recipe(text: str) -> list[str]:
    try:
        changed = json.loads(text or "{}")
    except ValueError as error:
        raise UserError(
            f"the recipe {text!r} of a row is not JSON; rebuild the summary from the run folders"
        ) from error
    return [f"{key}={value}" for key, value in changed.items()] if isinstance(changed, dict) else [text]


def same_runs(runs: pd.DataFrame, what: str) -> None:
    """Refuse rows that are called the same and are not.

    Raises:
        UserError: names the column in which they differ.
    """
    for column in ENTRY[1:]:
        values = sorted({str(value) for value in runs[column]})
        if len(values) > 1:
            raise UserError(
                f"{what}: its seeds differ in {column} ({', '.join(values)}), so they have no mean; "
                "give either a folder of its own with --out"
            )
