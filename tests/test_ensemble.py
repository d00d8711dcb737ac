"""Ensembles of finished runs: the mean of standardised scores, chosen on validation, named by its members."""

import re
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

import core
from core.experiments import ensemble as e
from core.experiments import identity
from core.experiments.board import collect_board, read_board
from core.experiments.identity import RunConfig
from core.experiments.inputs import load_inputs
from core.experiments.results import read_result, row_of
from core.experiments.run import run
from core.files.errors import UserError
from core.inference.trained import load_trained
from core.reporting.tables import all_tables
from core.training.evaluation import ScoredImages, evaluate, spread
from core.training.folds import final_fold
from core.training.loop import class_scores
from tests.helpers import extraction, run_here, weights_file
from tests.helpers_predict import scores_by_name
from tests.helpers_runs import config_of, inputs_of


@pytest.fixture
def runs(toy, tmp_path, monkeypatch):
    """A run of two methods on seed 1, and what they read."""
    inputs = inputs_of(toy)
    for method in ("eszsl", "vsmr"):
        run(config_of(method, inputs, seed=1), inputs, tmp_path / method / "seed1")

    def member(folder, *_):
        result = read_result(folder / "metrics.json")
        return e.Member(folder=folder, result=result, config=RunConfig(**result["config"]), inputs=inputs)

    monkeypatch.setattr(e, "_member", member)
    return inputs, tmp_path / "eszsl", tmp_path / "vsmr"


def test_two_members_score_as_their_mean_and_their_row_stands_apart(runs, tmp_path):
    inputs, *both = runs
    e.ensembles(both, tmp_path / "out")
    (path,) = (tmp_path / "out").rglob("eszsl+vsmr/seed1/metrics.json")
    found, fold = read_result(path), final_fold(inputs.metadata, inputs.w2v)
    areas = [read_result(folder / "seed1" / "metrics.json")["chosen"]["validation"]["AUSUC"] for folder in both]
    odds, mixed = [min(a, 0.999) / (1 - min(a, 0.999)) for a in areas], []
    for share, folder in zip(odds, both, strict=True):
        model = load_trained(folder / "seed1").model
        unit = spread([class_scores(model, inputs.features, fold.train_rows)])
        scores = [class_scores(model, inputs.features, rows) for rows in (fold.seen_rows, fold.unseen_rows)]
        mixed.append([share * s / unit / sum(odds) for s in scores])
    seen, unseen = (sum(parts) for parts in zip(*mixed, strict=True))
    expected = evaluate(
        ScoredImages(
            scores_seen=seen, labels_seen=fold.seen_labels, scores_unseen=unseen, labels_unseen=fold.unseen_labels,
            seen=fold.space.seen.numpy(), unseen=fold.space.unseen.numpy(),
        ), found["standard"]["gamma"],
    )  # fmt: skip
    assert {k: found["standard"][k] for k in asdict(expected)} == pytest.approx(asdict(expected))
    assert found["chosen"]["recipe"] == pytest.approx({f"share_{k}": o / sum(odds) for k, o in enumerate(odds, 1)})
    text = all_tables([row_of(found), row_of(read_result(both[0] / "seed1" / "metrics.json"))])
    assert text.index("| eszsl |") < text.index("ENSEMBLES") < text.index("| eszsl+vsmr |")
    collect_board(tmp_path / "out", tmp_path / "board")
    assert [row["config"]["method"] for row in read_board(tmp_path / "board")] == ["eszsl+vsmr"]


def test_an_ensemble_of_two_backbones_answers_photographs_as_it_was_measured(there, tmp_path):
    data, other, members = there.place / "data", "mobilenet_v3_small", [there.run("vsmr"), there.run("eszsl")]
    weights, features = weights_file(tmp_path, other), data / "AWA2" / f"feature_map_{other}_AWA2.hdf5"
    how = ("--weights", weights, "--input-size", there.inputs.provenance["input_size"], "--out", features)
    try:
        code, _, err = run_here(there.place, extraction("AWA2"), "--backbone", other, *map(str, how))
        assert code == 0, err
        where = {"data_root": data, "w2v": there.place / "w2v" / "AWA2_attribute.pkl"}
        inputs = load_inputs("AWA2", **where, features=features)
        run(config_of("vsmr", inputs), inputs, tmp_path / "vsmr")
        folder = e.ensemble([*members, tmp_path / "vsmr"], tmp_path / "out", **where)
    finally:
        features.unlink(missing_ok=True)
    model, paths = core.load(folder, weights=[weights, there.weights], device="cpu"), there.tested()[1]
    assert len(model.views) == 2  # two members share one
    found, stored = scores_by_name(model, paths), np.load(folder / "scores.npz")
    seen, unseen = model.trained.of_side("seen"), model.trained.of_side("unseen")
    margin = found[:, seen].max(axis=1) - found[:, unseen].max(axis=1) + model.trained.gamma
    assert margin == pytest.approx(stored["margin"], abs=1e-4)
    parts, answer = model.explain(paths[0]), model.predict(paths[0])
    whole = parts.g @ parts.y.T + sum(parts.corrections.values())
    assert whole[0, seen].numpy() == pytest.approx(found[0, seen], abs=1e-5)
    assert parts.ev is None  # one of the members says no places
    assert answer.classes[0].probability and re.search(r" \((vsmr|eszsl), ", answer.attributes[0][0])
    with pytest.raises(UserError, match="not here; name it with --weights"):
        core.load(folder, weights=there.weights, device="cpu").predict(paths[0])
    with pytest.raises(UserError, match="cannot score a class from its description"):
        model.add_classes(pd.DataFrame({"class": ["new"]}))


def test_what_is_no_ensemble_is_refused(runs, tmp_path, monkeypatch):
    inputs, one, two = runs
    run(config_of("eszsl", inputs, seed=0), inputs, tmp_path / "seed0")
    with pytest.raises(UserError, match="not of one split and one seed"):
        e.ensemble([one / "seed1", tmp_path / "seed0"], tmp_path / "out")
    with pytest.raises(UserError, match="no finished run of a common seed"):
        e.ensembles([one, tmp_path / "nothing"], tmp_path / "out")
    monkeypatch.setattr(e, "evaluate", lambda *_: replace(evaluate(*_), AUSUC=np.pi))
    with pytest.raises(UserError, match=r"on validation AUSUC was .* and is 3.14"):
        e.ensemble([one / "seed1", two / "seed1"], tmp_path / "out")


def test_an_ensembles_gamma_is_of_one_split_and_its_own_code_is_in_its_identity(runs, tmp_path, monkeypatch):
    """Whatever its members' γ is of; and one that was made by another law of shares is not read back as this one."""
    inputs, _, two = runs
    run(replace(config_of("eszsl", inputs, seed=1), gamma_splits=2), inputs, tmp_path / "several" / "seed1")
    members = [tmp_path / "several" / "seed1", two / "seed1"]
    found = read_result(e.ensemble(members, tmp_path / "out") / "metrics.json")
    assert len(found["chosen"]["gammas"]) == found["config"]["gamma_splits"] == 1
    assert "γ: mean over 2" not in all_tables([row_of(found)])
    law = identity.ROOT / "ensemble.py"
    monkeypatch.setitem(identity.SOURCES, law, identity.SOURCES[law] + b"# changed\n")
    monkeypatch.setattr(e, "method_digest", identity.method_digest.__wrapped__)  # nothing kept of before
    with pytest.raises(UserError, match="other method_code"):
        e.ensemble(members, tmp_path / "out")
