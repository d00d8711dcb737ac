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
from core.method import epochs_of
from core.methods import methods

OURS = "vsmr"  # the method that the others are compared with
METRICS = ["T1", "U", "S", "H", "AUSUC"]
DIGESTS = {"features_sha256": "features", "vectors_sha256": "vectors", "split_sha256": "split", "code": "code"}
TABLE = ["dataset", "split_sha256", "backbone", "regions", "input_size", "features"]  # equal within a table
TABLE += ["features_sha256", "vectors_sha256", "code"]
# equal within a line, seeds apart
ENTRY = ["method", "method_code", "recipe", "precision", "most_epochs", "gamma_splits", "validated", "cut_off", "torch"]
# what a label says of columns in which a method's lines differ
_SAID = {"method_code": "method code", "precision": "precision", "gamma_splits": "γ splits", "torch": "torch"}
_TEXT = [*TABLE, "method", "method_code", "recipe", "precision", "cut_off", "ablation", "notes", "deviations", "how"]
_TEXT += ["pretraining_saw_unseen", "finetuned", "device", "torch"]
_NUMBERS = [prefix + metric for prefix in ("", "val_", "test_", "published_") for metric in METRICS]
_NUMBERS += ["gamma", "H_gamma0", "H_best", "seed", "epochs", "most_epochs", "recipe_epochs", "gamma_splits", "seconds"]
_NUMBERS += ["configurations"]
PREPARED = "-prepared"  # ending of the baselines that are given vsmr's inputs; all others are as published


def read_summary(path: Path) -> pd.DataFrame:
    """The rows of a summary.csv, :func:`prepared`."""
    return prepared(pd.read_csv(path, dtype=str, keep_default_na=False))


def prepared(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows with every column that a table asks for: texts are "" and numbers NaN where they are missing."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    frame = frame.reindex(columns=[*dict.fromkeys([*frame.columns, *_TEXT, *_NUMBERS])])
    frame[_TEXT] = frame[_TEXT].map(_text)
    frame[_NUMBERS] = frame[_NUMBERS].apply(pd.to_numeric)
    frame["gamma_splits"] = frame.gamma_splits.fillna(1)  # runs made before there was a choice
    frame["validated"] = frame.val_AUSUC.notna()
    planned = [_planned(method, dataset) for method, dataset in zip(frame.method, frame.dataset, strict=True)]
    frame["recipe_epochs"] = frame.recipe_epochs.fillna(pd.Series(planned, index=frame.index, dtype=float))
    return frame


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())  # one line, whatever a name holds


def _planned(method: str, dataset: str) -> float:
    """Epochs of the registered recipe, for rows from before they said it; NaN for a method that is not registered."""
    known = methods().get(method)
    return float("nan") if known is None else epochs_of(known.recipe(dataset))


@dataclass(frozen=True, eq=False, kw_only=True)
class Entry:
    """Runs that differ in nothing but their seed: one line of a table."""

    method: str
    label: str  # the method, with what tells its lines apart
    remarks: str  # what must be known wherever the line is printed
    cut_off: str  # why the runs do not count as an equal: fewer epochs than the recipe; "" where they do
    runs: pd.DataFrame  # sorted by seed


def tables_of(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows split into groups that may share a table, in the order of their first rows."""
    return [part for _, part in frame.groupby(TABLE, sort=False)]


def entries_of(part: pd.DataFrame) -> list[Entry]:
    """The lines of a table: a method has several where its code, recipe, epochs ... differ, and each says so.

    Raises:
        UserError: two runs of one identity and seed.
    """
    several = part.groupby("method")[[*_SAID]].nunique() > 1
    entries = []
    for _, runs in part.groupby(ENTRY, sort=False, dropna=False):
        first, runs = runs.iloc[0], runs.sort_values("seed")
        if runs.seed.duplicated().any():
            raise UserError(
                f"{first.dataset}, {first.method}: seed {runs.seed[runs.seed.duplicated()].iloc[0]:.0f} is there twice "
                "among the rows; rebuild the summary from the run folders with: python reproduce_tables.py --collect"
            )
        says = [f"{key}={value}" for key, value in json.loads(first.recipe or "{}").items()]
        says += [f"{name} {_text(first[c]) or 'unknown'}" for c, name in _SAID.items() if several.loc[first.method, c]]
        if 0 < first.recipe_epochs < first.most_epochs:  # fewer are said by its remark; closed forms have none
            says.append(f"{first.most_epochs:g} epochs, recipe {first.recipe_epochs:g}")
        label = first.method + (f" ({', '.join(says)})" if says else "")
        entries.append(
            Entry(method=first.method, label=label, remarks=_remarks(runs), cut_off=first.cut_off, runs=runs)
        )
    return entries


def _remarks(runs: pd.DataFrame) -> str:
    first = runs.iloc[0]
    said = [f"pretraining saw unseen classes: {v}" for v in sorted({*runs.pretraining_saw_unseen} - {"", "no"})]
    said += ["backbone fine-tuned"] * ("true" in {*runs.finetuned.str.lower()})
    said += ["given vsmr's preparation"] * first.method.endswith(PREPARED)
    if not first.validated:
        gammas = ", ".join(dict.fromkeys(f"{gamma:.3g}" for gamma in runs.gamma))
        said.append(f"nothing validated (--select last): γ = {gammas}, the method's own")
    if first.gamma_splits > 1:
        said.append(f"γ: mean over {first.gamma_splits:g} validation splits a seed")
    return "; ".join([*said, *[f"cut off: {first.cut_off}"] * bool(first.cut_off)])
