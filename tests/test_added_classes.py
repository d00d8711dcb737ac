"""Classes by description alone on a trained run: what is added, and what is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import core.experiments.inputs as inputs
from core.experiments.inputs import load_inputs
from core.files.errors import UserError
from core.inference.added_classes import add_classes, in_folder
from core.inference.explain import LIKENESS, explain
from core.inference.trained import load_trained
from core.preparation import prepared_attributes
from tests.helpers import run_here
from tests.helpers_predict import Made, described
from tests.helpers_runs import go


def test_a_class_that_is_described_and_shown_by_hand(there: Made) -> None:
    run = there.load("vsmr").trained
    x = there.inputs.features.batch(there.tested()[0][:20])
    before, f = explain(run, x), run.model.likeness(run.model.attend(x))
    assert f is not None and run.encoder is not None and before.g is not None
    one, two = run.space.unseen.tolist()[:2]
    frame = described(there.load("vsmr"), {run.classes[one]: "both", run.classes[two]: "told"})
    photos, model = f[:2], run.model
    more = add_classes(add_classes(run, frame, {"both": photos}), None, {"shown": photos, run.classes[two]: photos})
    found, C = explain(more, x), len(run.classes)
    assert more.classes[C:] == ["both", "told", "shown"] and more.of_side("unseen").tolist()[-3:] == [C, C + 1, C + 2]
    own = [c for c in range(C) if c != two]
    assert torch.equal(found.scores[:, own], before.scores[:, own])  # to the bit
    alone = explain(add_classes(run, frame), x).scores
    torch.testing.assert_close(found.scores[:, C + 1], alone[:, C + 1], rtol=0, atol=1e-5)

    m = F.normalize(photos.mean(dim=0), dim=0)
    e = F.normalize(model.z[one] @ model.W, dim=0)
    p, means = 0.4 * m + 0.6 * e, F.normalize(model.means, dim=1)
    for c, length, share, said in ((C, p.norm(), 0.4, before.g @ run.model.class_attributes()[one]), (C + 2, 1, 1, 0)):
        hub = 100 * model.recipe.hubness * (means @ (p / length if share < 1 else m)).max()
        by_hand = (share * f @ m + (1 - share) * said) / length - hub
        torch.testing.assert_close(found.scores[:, c], by_hand, rtol=0, atol=1e-4)
        parts = found.g @ found.y[c] + sum(values[:, c] for values in found.corrections.values())
        torch.testing.assert_close(parts, found.scores[:, c], rtol=0, atol=1e-5)
    alike = found.corrections[LIKENESS].abs()
    assert alike[:, [*own, C + 1]].max() == 0 < alike[:, two].min()
    gamma = more.calibrated(found.scores.numpy())[0] - found.scores[0].double().numpy()
    assert gamma[[one, C + 1]] == pytest.approx(run.gamma, abs=1e-9)
    assert gamma[[C, C + 2, two]] == pytest.approx(0.6 * run.gamma, abs=1e-6)
    with pytest.raises(UserError, match="exists already"):
        add_classes(run, None, {run.classes[int(run.space.seen[0])]: photos})


def test_a_folder_of_classes_described_shown_or_both(there: Made, photo: Path, tmp_path: Path) -> None:
    model = there.load("vsmr")
    names = [model.trained.classes[c] for c in model.trained.space.unseen.tolist()[:2]]
    for name, photos in (("both", 2), ("shown", 1)):
        (tmp_path / "more" / "images" / name).mkdir(parents=True)
        for i in range(photos):
            shutil.copy(photo, tmp_path / "more" / "images" / name / f"{i}{photo.suffix}")
    (tmp_path / "more" / "images" / "both" / "bad.png").write_bytes(b"no image")
    described(model, {names[0]: "both", names[1]: "told"}).to_csv(tmp_path / "more" / "attributes.csv", index=False)
    common = (there.run("vsmr"), photo, "--weights", there.weights, "--add-classes", "more", "--explain", "page")
    code, out, err = run_here(tmp_path, "predict.py", *common)
    assert code == 0, err
    assert "both (description and 2 photographs)\nadded: told (description)\nadded: shown (1 photographs)\n" in err
    assert "bad.png, of the class both, is left out" in err
    assert "    shown (unseen)" in out and f"for it: {LIKENESS} +" in out  # its very photograph
    assert LIKENESS in (tmp_path / "page" / "data.js").read_text()
    (tmp_path / "more" / "attributes.csv").rename(book := tmp_path / "more" / "attributes.xlsx")
    assert in_folder(tmp_path / "more")[0] == book  # not by photographs alone
    with pytest.raises(UserError, match="eszsl takes no class by photographs"):
        there.load("eszsl").add_classes(images={"new": [photo]})
    with pytest.raises(UserError, match="no photograph of the class 'new' could be read"):
        model.add_classes(images={"new": [tmp_path / "more" / "images" / "both" / "bad.png"]})


def test_classes_that_cannot_be_added(there: Made, tmp_path: Path) -> None:
    model = there.load("eszsl")
    (tmp_path / "bad.csv").write_text("class;wings\nnew;1\n")
    unseen, seen = (
        model.trained.classes[int(side[0])] for side in (model.trained.space.unseen, model.trained.space.seen)
    )
    good, attribute = described(model, {unseen: "new"}), model.trained.attributes[3]
    zero = good.copy()
    zero[model.trained.attributes] = 0.0
    for frame, said in (
        (good.drop(columns=attribute), f"1 missing.*{attribute}"),
        (good.rename(columns={attribute: "wings"}), f"1 missing.*{attribute}.*1 unknown.*wings"),
        (pd.concat([good, good]), "1 named twice.*new"),
        (good.assign(**{"class": seen}), "exists already"),
        (good.assign(**{"class": "a\nb"}), "is no class name"),
        (good.assign(**{attribute: "seldom"}), "'new' needs a number for every attribute"),
        (good.assign(**{attribute: np.inf}), "'new' needs a number for every attribute"),
        (zero, "and not 0 for all of them"),
        (tmp_path / "bad.csv", r"bad.csv: 85 missing.*1 unknown \('wings'\)"),
        (tmp_path / "none.csv", "no table at .*none.csv"),
    ):
        with pytest.raises(UserError, match=said):
            model.add_classes(frame)
    assert len(model.trained.classes) == 50
    staged = there.load("vsmr-staged")
    with pytest.raises(UserError, match="vsmr-staged cannot score a class from its description"):
        staged.add_classes(good)


def test_what_names_say_of_questions_reaches_the_model_and_what_it_is_asked_later(there, toy, tmp_path, monkeypatch):
    names = ["bill: long", "bill: short", *there.inputs.attribute_names[2:]]
    monkeypatch.setattr(inputs, "_attribute_names", lambda *given: names)
    read = load_inputs("AWA2", data_root=there.place / "data", w2v=there.place / "w2v" / "AWA2_attribute.pkl")
    asked = [0, 0, *[-1] * (len(names) - 2)]
    assert read.metadata.questions.tolist() == asked
    go("vsmr", replace(toy, questions=np.array(asked[: toy.att.shape[1]])), tmp_path)
    trained = load_trained(tmp_path)
    space, encoder = trained.space, trained.encoder
    z = prepared_attributes(
        space.att, space.seen, root=encoder.root, questions=torch.tensor(asked[: len(space.att[0])])
    )
    torch.testing.assert_close(trained.model.z, z)
    torch.testing.assert_close(encoder.prepare(space.att), z)
    assert encoder.root and not torch.allclose(z, prepared_attributes(space.att, space.seen))
