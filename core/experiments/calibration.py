"""γ from several validation splits.

A validation split has few classes, so the γ of the highest H on it is a guess that another split would not make. On
whole photographs of CUB at 448 pixels (10 validation splits) the γ of one split costs `vsmr` 3.7 points of H on another
split, the mean of four costs 2.4; `eszsl-prepared` 3.4 and 2.6. Both are against that split's own best γ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.training.evaluation import CalibrationCurve

# runs that agree in all of these differ in nothing but their seed, so each seed's validation split speaks for all
_SAME = (
    *("dataset", "method", "ablation", "select", "most_epochs", "recipe", "precision", "gamma_splits"),
    *("features_sha256", "vectors_sha256", "split_sha256", "code", "method_code"),
)


def gamma_at(history: pd.DataFrame, epoch: int, settings: Mapping[str, float]) -> float:
    """The γ that a validation split had at an epoch, with these settings where they were a grid.

    Settings that each split finds for itself (a tuned share) stand once an epoch: then that row is taken.

    Args:
        history: rows of one validation split, with ``epoch``, ``val_gamma`` and ``set_*``.
    """
    rows = history[(history.epoch == epoch) & history.val_gamma.notna()]
    if len(rows) > 1:
        for name, value in settings.items():
            rows = rows[np.isclose(rows[f"set_{name}"], value, rtol=1e-9, atol=0)]  # read from a CSV file
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows of epoch {epoch} with {dict(settings)}")
    return float(rows.val_gamma.iloc[0])


def add_H_of_all_seeds(rows: Iterable[dict[str, Any]], out: Path) -> None:
    """Give each row of two or more equal but for their seed ``H_all_seeds``: H at the γ of all their validation splits.

    γ is the mean over the splits of what each has at the run's own epoch and settings: nothing of the test sets chooses
    it. Runs whose files are not there keep their row as it is.

    Args:
        rows: of summary.csv, with the ``folder`` of each below ``out``.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["select"] == "val":
            groups.setdefault(tuple(row[key] for key in _SAME), []).append(row)
    for runs in groups.values():
        if len(runs) < 2:
            continue
        try:
            histories = [pd.read_csv(out / run["folder"] / "history_validation.csv") for run in runs]
            for run in runs:
                chosen = int(run["epochs"]), json.loads(run["chosen"])
                gamma = float(np.mean([gamma_at(history, *chosen) for history in histories]))
                curve = pd.read_csv(out / run["folder"] / "curve.csv")
                steps, U, S = (curve[column].to_numpy() for column in ("gamma", "U", "S"))
                run["H_all_seeds"] = CalibrationCurve(steps[1:], U, S).H_at(gamma)
        except (OSError, ValueError, KeyError):
            continue
