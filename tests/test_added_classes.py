"""Classes by description alone on a trained run: what is added, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from core.files.errors import UserError
from core.inference.explain import explain
from tests.helpers import refused, run_here
from tests.helpers_predict import SHORT, Made, described


@pytest.mark.parametrize("method", [m for m in SHORT if m != "vsmr-staged"])
def test_a_class_by_description_scores_as_if_it_had_been_known(there: Made, method: str) -> None:
    model = there.load(method)
    x = there.inputs.features.batch(there.tested()[0][:20])
    before = explain(model.trained, x).scores
    known = [model.trained.classes[c] for c in model.trained.space.unseen.tolist()[:2]]
    model.add_classes(described(model, {known[0]: "first", known[1]: "second"}))
    C = before.shape[1]
    after = explain(model.trained, x).scores
    assert torch.equal(after[:, :C], before)  # to the bit
    numbers = [model.trained.classes.index(name) for name in known]
    spread = float(before.max() - before.min())
    assert (after[:, C:] - before[:, numbers]).abs().max() <= 1e-5 * spread
    model.add_classes(described(model, {known[1]: "third"}))  # once more, on what was added
    more = explain(model.trained, x).scores
    assert torch.equal(more[:, :C], before)
    assert (more[:, C:] - after[:, [C, C + 1, C + 1]]).abs().max() <= 1e-5 * spread
    assert model.trained.of_side("unseen").tolist()[-3:] == [C, C + 1, C + 2]


def test_an_added_class_is_predicted(there: Made, photo: Path) -> None:
    model, other = there.load("vsmr"), there.load("vsmr")
    first = other.predict(photo, among="unseen").classes[0]
    # in percent, where the run has rows of unit length
    model.add_classes(described(other, {first.name: "mine"}, scale=100))
    found = model.predict(photo, among="unseen", top=2).classes
    assert {c.name for c in found} == {first.name, "mine"} and {c.side for c in found} == {"unseen"}
    assert found[0].score == pytest.approx(first.score, rel=1e-5) == pytest.approx(found[1].score, rel=1e-5)


def test_classes_that_cannot_be_added(there: Made) -> None:
    model = there.load("eszsl")
    unseen = model.trained.classes[int(model.trained.space.unseen[0])]
    good = described(model, {unseen: "new"})
    attribute = model.trained.attributes[3]
    for frame, said in (
        (good.drop(columns=attribute), f"1 missing.*{attribute}"),
        (good.assign(wings=1.0), "1 unknown.*wings"),
        (good.rename(columns={attribute: "wings"}), f"1 missing.*{attribute}.*1 unknown.*wings"),
        (good.assign(**{"class": unseen}), "exists already"),
        (good.assign(**{"class": "=1+1"}), "no class name"),
        (good.assign(**{attribute: "yes"}), "must be numbers"),
        (good.assign(**{attribute: np.nan}), f"no number for '{attribute}'"),
        (pd.concat([good, good]), "exists already"),
        (good.iloc[:0], "no class to add"),
    ):
        with pytest.raises(UserError, match=said):
            model.add_classes(frame)
    zero = good.copy()
    zero[model.trained.attributes] = 0.0
    with pytest.raises(UserError, match="all attributes are 0"):
        model.add_classes(zero)
    assert len(model.trained.classes) == 50


def test_a_method_whose_scores_do_not_split_says_so(there: Made) -> None:
    model = there.load("vsmr-staged")
    with pytest.raises(UserError, match="vsmr-staged cannot score a class from its description"):
        model.add_classes(described(model, {model.trained.classes[0]: "new"}))


def test_added_classes_through_the_command(there: Made, photo: Path, tmp_path: Path) -> None:
    model = there.load("vsmr")
    first = model.predict(photo, among="unseen").name
    described(model, {first: "mine"}).to_csv(tmp_path / "more.csv", index=False, sep=";")
    common = (there.run("vsmr"), photo, "--weights", there.weights, "--add-classes")
    code, out, err = run_here(tmp_path, "predict.py", *common, "more.csv", "--among", "unseen", "--explain", "page")
    assert code == 0, err
    assert "mine (unseen)" in out and '"mine"' in (tmp_path / "page" / "data.js").read_text()
    (tmp_path / "bad.csv").write_text("class,wings\nnew,1\n")
    refused(run_here(tmp_path, "predict.py", *common, "bad.csv"), "bad.csv", "85 missing", "1 unknown (wings)")
    (tmp_path / "broken.csv").write_bytes(b"\x89PNG\0\0")
    refused(run_here(tmp_path, "predict.py", *common, "broken.csv"), "broken.csv")
    refused(run_here(tmp_path, "predict.py", *common, "none.csv"), "none.csv", "no such file")
