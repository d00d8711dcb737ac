"""reproduce_tables.py: runs, resuming, the CSV, the tables and their significance."""

import json
from dataclasses import replace

import numpy as np
import pytest

from core.commands.reproduce import main
from core.commands.train import Inputs
from core.experiments import sweep as r
from core.experiments.ablations import ABLATIONS
from core.experiments.run import _seal
from core.features.regions import RegionFeatures
from core.files.errors import UserError
from core.reporting.tables import all_tables, read_summary
from tests.conftest import ToyFeatures
from tests.test_training import RECIPES, W2V


@pytest.fixture
def toy_plan(toy, tmp_path, monkeypatch):
    source = ToyFeatures(toy)
    features = RegionFeatures(source, np.arange(len(toy.labels)), source.shape)
    inputs = Inputs(toy, W2V, features, {"backbone": "toy", "regions": "9 regions", "file_sha256": "ab"}, None, "none")
    monkeypatch.setattr(r, "_inputs", lambda *a: inputs)
    recipes = RECIPES | {"eszsl-prepared": replace(RECIPES["eszsl"], prepared=True)}
    monkeypatch.setattr(r, "recipe_of", lambda method, dataset: recipes[method])
    methods = ("vsmr", "dazle", "vsmr-staged", "eszsl", "eszsl-prepared")
    return r.Plan(("TOY",), methods, seeds=2, out=tmp_path / "results", epochs=2)


def test_everything_runs_once_and_the_tables_say_what_is_what(toy_plan, monkeypatch, capsys):
    path = r.reproduce(toy_plan)
    first = path.read_bytes()
    table = read_summary(path)
    assert len(table) == 2 * (5 + len(ABLATIONS))
    plain = table[table.ablation == ""]
    assert plain[["T1", "U", "S", "H", "AUSUC", "val_AUSUC", "test_H"]].notna().all().all()
    assert table[table.ablation != ""]["T1"].isna().all()  # validation only

    def forbidden(*a, **k):
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr("core.experiments.run.training", forbidden)
    assert r.reproduce(toy_plan).read_bytes() == first
    text = all_tables(table)
    for words in ("**vsmr**", "SELECTED ON TEST", "PUBLISHED PROCEDURE", "E by gradient", "sign-flip", "optimistic"):
        assert words in text
    assert main(None, ["--tables-only", "--out", str(toy_plan.out)]) == 0
    assert capsys.readouterr().out.strip() == text.strip()
    for name in ("tables.md", "calibration_TOY.png", "per_class_TOY.png"):
        assert (toy_plan.out / name).stat().st_size > 0


def test_an_ablation_needs_no_test_image(toy_plan, toy, monkeypatch):
    source = ToyFeatures(toy)
    features = RegionFeatures(source, toy.trainval_loc, source.shape)
    inputs = Inputs(toy, W2V, features, {"backbone": "toy"}, None, "none")
    monkeypatch.setattr(r, "_inputs", lambda *a: inputs)
    (row,) = r.execute(toy_plan, [r.Job("TOY", "vsmr", 1, "no whitening")], "cpu")
    assert np.isfinite(row["val_AUSUC"])


def test_results_of_another_code_are_refused(toy_plan):
    r.reproduce(replace(toy_plan, methods=("eszsl",), seeds=1, ablation=False))
    path = toy_plan.out / "TOY" / "eszsl" / "seed0" / "metrics.json"
    content = json.loads(path.read_text())
    content["config"]["code"] = "0.0.0-older"
    path.write_text(json.dumps(_seal(content)))
    with pytest.raises(UserError, match="other code"):
        r.reproduce(replace(toy_plan, methods=("eszsl",), seeds=1, ablation=False))


def test_flags_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match="single data set"):
        main(None, ["--features", str(tmp_path / "f.hdf5")])
    with pytest.raises(UserError, match="without --tables-only"):
        main(None, ["--tables-only", "--out", str(tmp_path)])
