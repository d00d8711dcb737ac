"""Probabilities, none of these, γ in the user's hand, groups: measured on validation, said with every answer."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core.datasets.sheets import read_attributes
from core.inference.predictor import Predictor
from core.inference.sure import Sure
from core.training import certainty
from core.training.checkpoint import load_checkpoint, save_checkpoint
from core.training.evaluation import ScoredImages, calibration_error, compact
from tests.helpers import run_here
from tests.helpers_predict import Made

SEEN, UNSEEN, N, UNIT, GAMMA = np.arange(6), np.arange(6, 10), 4000, 7.0, 23.5
T = (2.0, 5.0)  # of answers that name a seen class, and of the others


class Scores(torch.nn.Module):
    """A model whose images are their scores, labelled by a softmax at T."""

    uses_pooled_features = False

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.scores = rng.normal(0, UNIT, (N, 10)) - 20.0 * (np.arange(10) >= 6)  # most of γ makes up for that
        offered = self.scores + GAMMA * (np.arange(10) >= 6)
        side = (offered.argmax(axis=1) >= 6).astype(int)
        p = certainty.softmax(offered / np.array(T)[side, None], axis=1)
        self.labels = np.array([rng.choice(10, p=row) for row in p])
        self.register_buffer("weight", torch.zeros(1))

    def class_encoder(self, space):
        return None

    def blocks(self, rows):
        yield rows, torch.from_numpy(self.scores[rows][:, None])


def rival(scores: np.ndarray) -> np.ndarray:
    """(n,) the score of a rival, of scores (n,10)."""
    return scores[:, ::3].mean(axis=1)


@pytest.fixture(scope="module")
def fitted():
    model = Scores()
    rows = [np.flatnonzero(np.isin(model.labels, side)) for side in (SEEN, UNSEEN)]
    space = SimpleNamespace(att=torch.eye(10), seen=torch.from_numpy(SEEN), unseen=torch.from_numpy(UNSEEN))
    parts = {"seen_rows": rows[0], "unseen_rows": rows[1]}
    parts |= {"seen_labels": model.labels[rows[0]], "unseen_labels": model.labels[rows[1]]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certainty, "replace", lambda space, **_: space)
        patch.setattr(certainty, "sample", lambda n: np.arange(n)[::-1])
        patch.setattr(certainty, "_scores", lambda model, x, _: (x[:, 0].numpy(), rival(x[:, 0].numpy())))
        found = certainty.measured(model, model, SimpleNamespace(space=space, **parts), GAMMA, UNIT)
    return model, rows, certainty.mean([found, found], UNIT)


def test_temperatures_are_those_of_either_side_and_shares_follow(fitted) -> None:
    model, rows, sure = fitted
    assert sure["temperature"] == pytest.approx(T, rel=0.25)
    given = {"scores_seen": [model.scores[rows[0]]], "labels_seen": model.labels[rows[0]], "seen": SEEN}
    given |= {"scores_unseen": [model.scores[rows[1]]], "labels_unseen": model.labels[rows[1]], "unseen": UNSEEN}
    space = SimpleNamespace(seen=torch.from_numpy(SEEN), unseen=torch.from_numpy(UNSEEN))
    arrays = compact(ScoredImages(**given), partial(certainty.confidence, sure, GAMMA, space))
    assert calibration_error(arrays, GAMMA) < 0.05
    assert calibration_error(arrays | {"confidence": np.ones(N)}, GAMMA) > 0.2
    # what γ trades: at a γ of the grid the accuracies are those of the evaluation
    g = int(np.abs(np.array(sure["gammas"]) - GAMMA).argmin())
    right = arrays["labels"] == np.where(
        sure["gammas"][g] >= arrays["margin"], arrays["best_unseen"], arrays["best_seen"]
    )
    accuracies = [np.mean([right[arrays["labels"] == c].mean() for c in side]) for side in (SEEN, UNSEEN)]
    assert [sure["S"][g], sure["U"][g]] == pytest.approx(accuracies, abs=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_the_rate_of_known_photographs_that_are_none_of_these_is_the_stated_one(fitted, rate: float) -> None:
    model, _, sure = fitted
    offered = model.scores + GAMMA * (np.arange(10) >= 6)
    top = offered.argmax(axis=1)
    side, best = (top >= 6).astype(int), model.scores[np.arange(N), top]
    ahead = best - rival(model.scores)
    refused = certainty.none_of_these(sure, [best, ahead], side, rate)
    assert [refused[side == s].mean() for s in (0, 1)] == pytest.approx([rate, rate], abs=0.03)
    for found in ([best - 100, ahead], [best, ahead - 100]):  # either is enough
        assert certainty.none_of_these(sure, found, side, rate).all()
        assert not certainty.none_of_these(sure, found, side, 0.0).any()


def test_answers_of_either_side_have_ranks_and_a_threshold_of_their_own():
    """Of seen classes scores run from 0 to 1 and a fifth is refused below 0.2; of unseen ones 10 to 11, below 10.1."""
    ranks, threshold = [certainty.LEVELS, certainty.LEVELS + 10], [certainty.LEVELS, certainty.LEVELS / 2]
    known = {"temperature": [1.0, 1.0], "ranks": [ranks], "lowest": threshold}
    trained = SimpleNamespace(certainty=known, groups=[], space=SimpleNamespace(unseen=torch.tensor([1])))
    scores = torch.tensor([[0.15, -9.0], [0.25, -9.0], [0.0, 10.05], [0.0, 10.15]])
    found = Sure.of(trained, SimpleNamespace(scores=scores, g=None), scores.numpy(), 0.2)
    assert found.is_none.tolist() == [True, False, True, False]


def test_a_run_keeps_it_and_answers_with_it(there: Made, tmp_path: Path) -> None:
    paths, run = there.tested()[1], there.run("vsmr")
    model = there.load("vsmr")
    kept, result = model.trained.certainty, json.loads((run / "metrics.json").read_text())
    unit = model.trained.gamma / result["chosen"]["gamma_in_spreads"]
    assert kept == certainty.mean([result["chosen"]["certainty"]], unit) and len(kept["ranks"]) == 2
    assert 0 <= result["standard"]["ECE"] <= 1 and "certainty" not in str(result["history"])
    answers = list(model.predict_all(paths, top=99))
    for answer in answers:
        p = [c.probability for c in answer.classes]
        assert sum(p) == pytest.approx(1) and p == sorted(p, reverse=True) and answer.none in (True, False)
    assert 0 < np.mean([a.none for a in answers]) < 0.5
    assert {a.none for a in there.load("vsmr", none_rate=0).predict_all(paths)} == {None}
    assert all(a.classes[0].side == "unseen" for a in there.load("vsmr", gamma=1e3).predict_all(paths))
    assert "on validation" in model.trained.gamma_said()
    # eszsl too; a run that is not validated, or of before: everything else is answered
    assert there.load("eszsl").predict(paths[0]).none in (True, False)
    tensors, meta = load_checkpoint(run / "checkpoint.safetensors")
    save_checkpoint(tmp_path / "checkpoint.safetensors", tensors, {k: v for k, v in meta.items() if k != "certainty"})
    old = Predictor.load(tmp_path, weights=there.weights, device="cpu")
    answer = old.predict(paths[0])
    assert answer.name == model.predict(paths[0]).name and answer.none is answer.classes[0].probability is None
    assert "was not validated" in old.trained.gamma_said()


def test_the_command_says_it(there: Made, tmp_path: Path) -> None:
    photo, given = there.tested()[1][0], ("--weights", there.weights, "--device", "cpu")
    code, out, err = run_here(tmp_path, "predict.py", there.run("vsmr"), photo, *given, "--gamma", "1000")
    assert code == 0 and "(unseen)" in out and "%" in out and "γ = 1e+03 is added" in err
    assert run_here(tmp_path, "predict.py", there.run("vsmr"), photo, *given, "--none-rate", "1")[1].count("none of")


def test_the_likely_classes_hold_the_right_one_nine_times_in_ten() -> None:
    rng = np.random.default_rng(0)
    p, weight = rng.dirichlet(np.full(10, 0.5), 3000), rng.uniform(0.5, 1.5, 3000)
    validation, others = (np.array([rng.choice(10, p=row) for row in p]) for _ in range(2))
    sure = Sure(p=p, level=certainty.level(p, validation, weight), groups=[])
    held = [others[i] in sure.likely(i) for i in range(len(p))]
    assert np.average(held, weights=weight) == pytest.approx(0.9, abs=0.02)
    by_hand = Sure(p=np.array([[0.2, 0.5, 0.3], [0.95, 0.05, 0.0]]), level=0.6, groups=[])
    assert (by_hand.likely(0), by_hand.likely(1)) == ([1, 2], [0])


def test_where_the_class_is_unsure_the_group_is_the_answer() -> None:
    p = np.array([[0.3, 0.25, 0.35, 0.1], [0.6, 0.2, 0.1, 0.1], [0.2, 0.1, 0.3, 0.4]])
    sure = Sure(p=p, groups=["heron", "heron", "duck", ""])
    assert sure.group(0) == ("heron", pytest.approx(0.55)) and sure.group(1) is None
    assert replace(sure, groups=["", "", "", ""]).group(0) is None
    assert sure.group(2) == ("heron", pytest.approx(0.3))


def test_groups_are_a_column_of_text_in_the_sheet(tmp_path: Path) -> None:
    (tmp_path / "attributes.csv").write_text("class,red,Group,long\nheron,1,Ardea,2\ncrane,0,,1\n")
    sheet = read_attributes(tmp_path / "attributes.csv")
    assert sheet.groups == ["Ardea", ""] and sheet.attributes == ["red", "long"]
    assert sheet.values.tolist() == [[1, 2], [0, 1]]
