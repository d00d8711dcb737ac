"""TensorBoard is an extra: what it shows where it is, a sentence where it is not, and no other number for it."""

import json
import sys
from pathlib import Path

import pytest

from tests.helpers import refused, run_here
from tests.messages import DRIVER, base

TRAIN = ["--method", "dazle", "--epochs", "2", "--device", "cpu"]


def test_without_tensorboard_a_sentence_names_it_and_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(run_here(tmp_path, DRIVER, *TRAIN, "--tensorboard"), "pip install tensorboard", "log.jsonl")


def test_losses_and_validation_are_shown_and_no_number_of_the_test_sets(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    base(tmp_path)
    assert run_here(tmp_path, DRIVER, *TRAIN, "--tensorboard")[0] == 0
    (folder,) = tmp_path.glob("results/AWA2/*/dazle/seed0")
    shown = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    keys = shown.Tags()["scalars"]
    chosen = json.loads((folder / "metrics.json").read_text())["chosen"]["epochs"]
    assert {"validation/loss", "validation/AUSUC", "validation/H"} <= {*keys}
    assert ("refit/loss" in keys) == (chosen > 0)  # with no epoch chosen there is nothing to refit
    assert not [key for key in keys if "test" in key]
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    logged = [row["loss"] for row in rows if row["fold"] == "validation" and "loss" in row]
    assert [e.value for e in shown.Scalars("validation/loss")] == pytest.approx(logged)
