"""γ of several validation splits, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from core.experiments import calibration
from core.experiments.calibration import add_H_of_all_seeds, gamma_at


def test_gamma_of_a_grid_is_that_of_the_chosen_setting_and_of_a_tuned_share_that_of_the_split():
    rows = [
        {"epoch": 0, "val_gamma": 10.0 * a + b, "set_a": float(a), "set_b": float(b)} for a in (1, 2) for b in (3, 4)
    ]
    grid = pd.DataFrame([{"epoch": 0}, *rows])
    assert gamma_at(grid, 0, {"a": 2.0, "b": 3.0}) == 23
    with pytest.raises(ValueError, match="0 rows of epoch 0"):
        gamma_at(grid, 0, {"a": 2.0, "b": 5.0})
    tuned = pd.DataFrame([{"epoch": e, "val_gamma": float(e), "set_share": 0.15 * (e == 1)} for e in range(3)])
    assert gamma_at(tuned, 2, {"share": 0.15}) == 2


def test_H_of_all_seeds_is_read_at_the_mean_gamma_of_their_splits(tmp_path):
    """Seed 0 chose epoch 1, where the splits have γ 1 and 3; seed 1 epoch 0, where they have 5 and 7."""
    same = dict.fromkeys(calibration._SAME, "x") | {"ablation": "", "select": "val"}
    rows = [same | {"seed": s, "folder": f"s{s}", "epochs": 1 - s, "chosen": "{}"} for s in (0, 1)]
    rows += [
        same | {"ablation": "a", "folder": "s0"},
        same | {"method": "y", "folder": "s0"},
        same | {"select": "last"},
    ]
    for s, gammas in enumerate(((5.0, 1.0), (7.0, 3.0))):
        (tmp_path / f"s{s}").mkdir()
        history = pd.DataFrame({"epoch": [0, 1], "val_gamma": gammas})
        history.to_csv(tmp_path / f"s{s}" / "history_validation.csv", index=False)
        curve = {"gamma": [-np.inf, 2.0, 4.0, 6.0], "U": [0.0, 0.2, 0.4, 0.6], "S": [0.8, 0.6, 0.4, 0.0]}
        pd.DataFrame(curve).to_csv(tmp_path / f"s{s}" / "curve.csv", index=False)
    add_H_of_all_seeds(rows, tmp_path)
    assert rows[0]["H_all_seeds"] == pytest.approx(0.3)  # γ = 2: an image at its margin counts as unseen
    assert rows[1]["H_all_seeds"] == 0  # γ = 6
    assert not any("H_all_seeds" in row for row in rows[2:])
    (tmp_path / "s1" / "curve.csv").unlink()
    again = [{k: v for k, v in row.items() if k != "H_all_seeds"} for row in rows]
    add_H_of_all_seeds(again, tmp_path)
    assert "H_all_seeds" not in again[1]
