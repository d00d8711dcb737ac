"""predict.py and core.load: photographs through the file path score as in the run's own evaluation; classes by
description; what a user sees where something is missing, damaged or of another run."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.io import savemat

import core
from core.commands.predict import header
from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS
from core.datasets.xlsa17 import read_metadata
from core.experiments.inputs import Inputs, load_inputs
from core.features.images import load_image
from core.files.errors import UserError
from core.inference.predictor import Predictor, find_images
from core.method import AttentionOutput
from core.training.checkpoint import load_checkpoint, save_checkpoint
from core.training.loop import class_scores
from tests.helpers import ROOT, cells, extraction, refused, run_apart, run_here, weights_file, word_vectors
from tests.helpers_xlsa17 import Maker

SHORT = {  # flags with which a method takes seconds
    "dazle": ("--epochs", "1"),
    "msdn": ("--epochs", "1"),
    "transzero": ("--epochs", "1"),
    "vsmr": ("--epochs", "1"),
    "vsmr-staged": (
        *("--classes-per-batch", "8", "--images-per-class", "4", "--visual-iterations", "10"),
        *("--hidden", "64", "--predictor-epochs", "2", "--semantic-epochs", "2"),
    ),
    "eszsl": (),
}


class Made:
    """A drawn data set with a run of every method, trained when it is first asked for."""

    def __init__(self, place: Path, weights: Path) -> None:
        self.place, self.weights = place, weights
        self.inputs: Inputs = load_inputs("AWA2", data_root=place / "data", w2v=place / "w2v" / "AWA2_attribute.pkl")

    def run(self, method: str) -> Path:
        if not (found := list((self.place / "results" / "AWA2").glob(f"*/{method}/seed0/metrics.json"))):
            code, _, err = run_here(self.place, "AWA2_ours.py", "--method", method, *SHORT[method])
            assert code == 0, err
            found = list((self.place / "results" / "AWA2").glob(f"*/{method}/seed0/metrics.json"))
        return found[0].parent

    def load(self, method: str, **options) -> Predictor:
        return core.load(self.run(method), weights=self.weights, device="cpu", **options)

    def tested(self) -> tuple[np.ndarray, list[Path]]:
        """Rows and image files of all test images."""
        m = self.inputs.metadata
        rows = np.concatenate([m.test_seen_loc, m.test_unseen_loc])
        folder = image_folder(self.place / "data", DATASETS["AWA2"])
        return rows, resolve_images(folder, [m.image_files[r] for r in rows])[0]


@pytest.fixture(scope="module")
def there(made: Maker) -> Made:
    place, _ = made("AWA2")
    (weights,) = place.glob("*.safetensors")
    return Made(place, weights)


@pytest.fixture
def photo(there: Made) -> Path:
    return there.tested()[1][0]


def scores_by_name(model: Predictor, paths: list[Path]) -> np.ndarray:
    """(N,C) scores with γ, in the order of the classes, from answers that hold all of them."""
    classes = model.trained.classes
    rows = []
    for answer in model.predict_all(paths, top=len(classes)):
        by_name = {c.name: c.score for c in answer.classes}
        rows.append([by_name[name] for name in classes])
    return np.array(rows)


# -------------------------------------------------------------------------------------------- equal to the evaluation
@pytest.mark.parametrize("method", SHORT)
def test_predictions_are_those_of_the_runs_own_evaluation(there: Made, method: str) -> None:
    model = there.load(method)
    rows, paths = there.tested()
    assert len(rows) == 60
    own = model.trained.calibrated(class_scores(model.trained.model, there.inputs.features, rows))
    through_files = scores_by_name(model, paths)
    spread = own.max() - own.min()
    assert np.abs(own - through_files).max() <= 1e-5 * spread
    top_two = np.sort(own, axis=1)[:, -2:]
    clear = top_two[:, 1] - top_two[:, 0] > 2e-5 * spread
    assert clear.mean() > 0.9
    assert (own.argmax(axis=1) == through_files.argmax(axis=1))[clear].all()
    # the very numbers that the run reported
    stored = np.load(there.run(method) / "scores.npz")
    m = there.inputs.metadata
    predicted = np.where(stored["margin"] > model.trained.gamma, stored["best_seen"], stored["best_unseen"])
    assert (predicted == through_files.argmax(axis=1))[clear].all()
    assert (stored["labels"] == m.labels[rows]).all()


def small_cub(root: Path, out: Path) -> Path:
    """A data root with 190 photographs of mini_cub: 10 classes seen and 5 not."""
    m = read_metadata(root, DATASETS["CUB"])
    kept, chosen = [*m.seen[:10], *m.unseen[:5]], {}
    for key, count in (("trainval_loc", 8), ("test_seen_loc", 6), ("test_unseen_loc", 10)):
        loc = getattr(m, key)
        chosen[key] = np.concatenate([loc[m.labels[loc] == c][:count] for c in kept])
    rows = np.concatenate([*chosen.values()])
    place = out / "xlsa17" / "data" / "CUB"
    place.mkdir(parents=True)
    (out / "CUB").symlink_to(root / "CUB")
    number = {c: k + 1 for k, c in enumerate(kept)}
    files = cells([f"/x/CUB_200_2011/{m.image_files[r]}" for r in rows])
    labels = np.array([[number[y]] for y in m.labels[rows]])
    savemat(place / "res101.mat", {"image_files": files, "labels": labels})
    splits = {key: np.flatnonzero(np.isin(rows, loc))[:, None] + 1 for key, loc in chosen.items()}
    names = cells([m.class_names[c] for c in kept])
    att = {"att": m.att[kept].T, "original_att": m.original_att[kept].T}
    savemat(place / "att_splits.mat", {"allclasses_names": names, **att, **splits})
    return out


def test_real_photographs_score_as_in_the_evaluation(shared: Path, tmp_path: Path) -> None:
    weights = shared / "weights" / "mobilenet_v2_imagenet1k.safetensors"
    if not weights.is_file():
        pytest.skip("the shared real data are not beside the repository")
    root = small_cub(shared / "mini_cub", tmp_path / "data")
    names = ("--source", shared / "w2v" / "CUB_attribute.pkl", "--attributes", shared / "attributes" / "CUB")
    flags = ("--data-root", root, "--w2v", tmp_path / "v.pkl", "--features", tmp_path / "f.hdf5")
    for script, more in (
        (word_vectors("CUB"), ("--data-root", root, *names, "--out", tmp_path / "v.pkl")),
        (
            extraction("CUB"),
            ("--data-root", root, "--backbone", "mobilenet_v2", "--weights", weights, "--out", tmp_path / "f.hdf5"),
        ),
        *(("CUB50_ours.py", (*flags, "--method", method, *SHORT[method])) for method in ("vsmr", "eszsl")),
    ):
        code, _, err = run_here(tmp_path, script, *more)
        assert code == 0, err
    inputs = load_inputs("CUB", data_root=root, features=tmp_path / "f.hdf5", w2v=tmp_path / "v.pkl")
    m = inputs.metadata
    rows = np.concatenate([m.test_seen_loc[:50], m.test_unseen_loc])
    assert len(rows) == 100
    paths, _ = resolve_images(image_folder(root, DATASETS["CUB"]), [m.image_files[r] for r in rows])
    for method in ("vsmr", "eszsl"):
        (run,) = tmp_path.glob(f"results/CUB/*/{method}/seed0")
        model = core.load(run, weights=weights, device="cpu")
        own = model.trained.calibrated(class_scores(model.trained.model, inputs.features, rows))
        found = scores_by_name(model, paths)
        assert np.abs(own - found).max() <= 1e-5 * (own.max() - own.min())
        assert (own.argmax(axis=1) == found.argmax(axis=1)).all()


def test_without_the_rounding_or_the_right_gamma_it_would_be_noticed(there: Made) -> None:
    """The equality above is no tautology: each part of the way counts."""
    model = there.load("vsmr")
    rows, paths = there.tested()
    own = model.trained.calibrated(class_scores(model.trained.model, there.inputs.features, rows[:32]))
    other = replace(model.trained, gamma=model.trained.gamma + 1)
    model.trained = other
    assert np.abs(scores_by_name(model, paths[:32]) - own).max() > 0.5
    model = there.load("vsmr")
    model.network.flip = True
    assert np.abs(scores_by_name(model, paths[:32]) - own).max() > 1e-3


# ---------------------------------------------------------------------------------------------------------- answers
def test_an_answer_holds_classes_sides_margin_and_attributes(there: Made, photo: Path) -> None:
    model = there.load("dazle")
    answer = model.predict(photo, top=3)
    assert len(answer.classes) == 3 and answer.name == answer.classes[0].name
    assert answer.margin == pytest.approx(answer.classes[0].score - answer.classes[1].score)
    sides = {model.trained.classes[c]: "unseen" for c in model.trained.space.unseen.tolist()}
    assert all(c.side == sides.get(c.name, "seen") for c in answer.classes)
    for side in ("seen", "unseen"):
        assert {c.side for c in model.predict(photo, among=side, top=50).classes} == {side}
    with pytest.raises(UserError, match="choose all, seen, unseen"):
        model.predict(photo, among="both")
    whole = model.predict(photo, top=1)
    assert len(whole.classes) == 1 and whole.margin == answer.margin


@pytest.mark.parametrize("method", ["dazle", "msdn", "transzero", "eszsl"])
def test_what_attributes_say_adds_up_to_the_score(there: Made, method: str) -> None:
    model = there.load(method)
    x = there.inputs.features.batch(there.tested()[0][:4])
    scores, evidence = model.trained.scores(x)
    assert evidence is not None and model.trained.z is not None
    assert torch.allclose(evidence @ model.trained.z.T, scores, rtol=1e-4, atol=1e-6)


def test_the_attention_of_an_image(there: Made, photo: Path) -> None:
    found = there.load("dazle").attention(photo)
    assert found.theta.shape == (85, 3, 3) and np.allclose(found.theta.sum(axis=(1, 2)), 1, atol=1e-5)
    assert len(found.attributes) == 85 and found.e is not None
    with pytest.raises(UserError, match="eszsl has no attention"):
        there.load("eszsl").attention(photo)


def test_scoring_attends_once(there: Made, monkeypatch) -> None:
    trained = there.load("vsmr").trained
    calls = []
    kind = type(trained.model)
    attend = kind.attend

    def counted(self, x) -> AttentionOutput:
        calls.append(len(x))
        return attend(self, x)

    monkeypatch.setattr(kind, "attend", counted)
    trained.scores(there.inputs.features.batch(there.tested()[0][:4]))
    assert calls == [4] and "attend" not in vars(trained.model)


def test_files_and_a_damaged_image_through_the_command(there: Made, tmp_path: Path) -> None:
    _, paths = there.tested()
    folder = tmp_path / "photos"
    (folder / "b" / ".hidden").mkdir(parents=True)
    for target, source in {"b/2.jpg": 0, "a.JPG": 1, "b/.x.jpg": 2, "b/.hidden/y.jpg": 3, "=1+1.jpg": 4}.items():
        shutil.copy(paths[source], folder / target)
    (folder / "notes.txt").write_text("no image")
    (folder / "b" / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    run = there.run("vsmr")
    result = run_here(
        tmp_path, "predict.py", run, folder, "--weights", there.weights, "--top", "2", "--out", "p.csv",
        "--json", "p.jsonl", "--device", "cpu",
    )  # fmt: skip
    refused(result, "1 of 4 images could not be read", "p.csv", "bad.jpg")
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as handle:
        table = list(csv.DictReader(handle))
    assert list(table[0]) == header(2)
    names = [Path(row["image"]).relative_to(folder).as_posix() for row in table]
    assert names == ["=1+1.jpg", "a.JPG", "b/2.jpg", "b/bad.jpg"]
    assert [bool(row["error"]) for row in table] == [False, False, False, True]
    assert not table[3]["class"] and "no image, or a damaged one" in table[3]["error"]
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [row["image"] for row in table]
    assert set(lines[3]) == {"image", "error"}
    for row, line in zip(table[:3], lines[:3], strict=True):
        assert row["class"] == line["classes"][0]["name"] and row["class_2"] == line["classes"][1]["name"]
        assert float(row["margin"]) == pytest.approx(line["margin"], rel=1e-4)
        assert row["attributes"].startswith(line["attributes"][0]["name"])
    assert not list(tmp_path.glob(".*"))


def test_nothing_in_the_table_is_a_formula(there: Made, tmp_path: Path) -> None:
    shutil.copy(there.tested()[1][0], tmp_path / "=cmd.jpg")
    code, _, err = run_here(
        tmp_path, "predict.py", there.run("eszsl"), "=cmd.jpg", "--weights", there.weights, "--out", "p.csv"
    )
    assert code == 0, err
    assert (tmp_path / "p.csv").read_text("utf-8").splitlines()[1].startswith("'=cmd.jpg,")


def test_answers_are_printed_where_no_file_is_asked_for(there: Made, photo: Path, tmp_path: Path) -> None:
    code, out, err = run_here(
        tmp_path, "predict.py", there.run("vsmr"), "--top", "2", photo, "--weights", there.weights
    )
    assert code == 0, err
    assert str(photo) in out and "ahead by" in out and "then: " in out


def test_images_are_found_in_order(tmp_path: Path) -> None:
    for name in ("b/1.png", "a/2.jpeg", "a/.3.jpg", ".c/4.jpg", "5.HEIC", "6.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [p.relative_to(tmp_path).as_posix() for p in find_images([tmp_path, tmp_path / "b", tmp_path / "6.txt"])]
    assert found == ["5.HEIC", "a/2.jpeg", "b/1.png", "6.txt"]
    with pytest.raises(UserError, match="no file or folder"):
        find_images([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image found in"):
        find_images([tmp_path / "empty"])


# ---------------------------------------------------------------------------------------------------------- classes
def described(model: Predictor, names: dict[str, str], scale: float = 1.0) -> pd.DataFrame:
    """Known classes described anew under other names, columns in another order."""
    t = model.trained
    att = t.space.att.numpy()[[t.classes.index(old) for old in names]] * scale
    frame = pd.DataFrame(att, columns=t.attributes)[list(reversed(t.attributes))]
    frame.insert(0, "class", list(names.values()))
    return frame


@pytest.mark.parametrize("method", SHORT)
def test_a_class_by_description_scores_as_if_it_had_been_known(there: Made, method: str) -> None:
    model = there.load(method)
    x = there.inputs.features.batch(there.tested()[0][:20])
    before, _ = model.trained.scores(x)
    known = [model.trained.classes[c] for c in model.trained.space.unseen.tolist()[:2]]
    model.add_classes(described(model, {known[0]: "first", known[1]: "second"}))
    C = before.shape[1]
    after, _ = model.trained.scores(x)
    assert torch.equal(after[:, :C], before)  # to the bit
    numbers = [model.trained.classes.index(name) for name in known]
    spread = float(before.max() - before.min())
    assert (after[:, C:] - before[:, numbers]).abs().max() <= 1e-5 * spread
    model.add_classes(described(model, {known[1]: "third"}))  # once more, on what was added
    more, _ = model.trained.scores(x)
    assert torch.equal(more[:, :C], before)
    assert (more[:, C:] - after[:, [C, C + 1, C + 1]]).abs().max() <= 1e-5 * spread
    assert model.trained.of_side("unseen").tolist()[-3:] == [C, C + 1, C + 2]


def test_an_added_class_is_predicted_renamed_and_removed(there: Made, photo: Path) -> None:
    model = there.load("vsmr")
    first = model.predict(photo, among="unseen").name
    model.remove_classes([first])
    assert first not in {c.name for c in model.predict(photo, top=99).classes}
    other = there.load("vsmr")
    # in percent, where the run has rows of unit length
    model.add_classes(described(other, {first: "mine"}, scale=100))
    found = model.predict(photo, among="unseen", top=99)
    assert found.name == "mine" and found.classes[0].side == "unseen"
    expected = other.predict(photo, among="unseen").classes[0].score
    assert found.classes[0].score == pytest.approx(expected, rel=1e-5)
    model.rename({"mine": first})
    assert model.predict(photo, among="unseen").name == first
    model.remove_classes([first])
    model.add_classes(described(other, {first: first}))  # the name is free again
    seen = [model.trained.classes[c] for c in model.trained.space.seen.tolist()]
    model.remove_classes(seen)
    with pytest.raises(UserError, match="no seen class left"):
        model.predict(photo, among="seen")
    with pytest.raises(UserError, match="no  class left|no class"):
        model.remove_classes([model.trained.classes[c] for c in model.trained.offered])


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
    with pytest.raises(UserError, match="no class 'nowhere'"):
        model.remove_classes(["nowhere"])
    with pytest.raises(UserError, match="exists already"):
        model.rename({unseen: model.trained.classes[0] if model.trained.classes[0] != unseen else "x"})
    assert len(model.trained.classes) == 50


def test_a_method_with_a_weight_for_every_class_says_so(there: Made) -> None:
    from core.inference import added_classes
    from core.inference import trained as module

    model = there.load("eszsl")
    frame = described(model, {model.trained.classes[0]: "new"})
    build = module.build_model

    def with_bias(config, recipe, space, shape):
        built = build(config, recipe, space, shape)
        built.bias = torch.nn.Parameter(torch.zeros(len(space.att)))
        return built

    model.trained.model.bias = torch.nn.Parameter(torch.zeros(50))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(added_classes, "build_model", with_bias)
        with pytest.raises(UserError, match="learns something of every class \\(bias\\)"):
            model.add_classes(frame)


def test_added_classes_through_the_command(there: Made, photo: Path, tmp_path: Path) -> None:
    model = there.load("vsmr")
    first = model.predict(photo, among="unseen").name
    described(model, {first: "mine"}).to_csv(tmp_path / "more.csv", index=False, sep=";")
    common = (there.run("vsmr"), photo, "--weights", there.weights, "--add-classes")
    code, out, err = run_here(tmp_path, "predict.py", *common, "more.csv", "--among", "unseen")
    assert code == 0, err
    assert "mine (unseen)" in out
    (tmp_path / "bad.csv").write_text("class,wings\nnew,1\n")
    refused(run_here(tmp_path, "predict.py", *common, "bad.csv"), "bad.csv", "85 missing", "1 unknown (wings)")
    (tmp_path / "broken.csv").write_bytes(b"\x89PNG\0\0")
    refused(run_here(tmp_path, "predict.py", *common, "broken.csv"), "broken.csv")
    refused(run_here(tmp_path, "predict.py", *common, "none.csv"), "none.csv", "no such file")


# ------------------------------------------------------------------------------------------------------------ errors
def test_runs_and_weights_that_do_not_do(there: Made, photo: Path, tmp_path: Path) -> None:
    run, weights = there.run("eszsl"), there.weights

    def says(folder: Path, *said: str, weights: Path | str | None = weights) -> None:
        flags = ("--weights", weights) if weights else ()
        refused(run_here(tmp_path, "predict.py", folder, photo, *flags), *said)

    says(tmp_path / "nowhere", "no folder", "finished run")
    (tmp_path / "empty").mkdir()
    says(tmp_path / "empty", "holds no checkpoint.safetensors")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "log.jsonl").touch()
    says(tmp_path / "begun", "not finished", "run the same command again")
    says(run.parent, "not the folder of one run", str(run))
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    content = bytearray((run / "checkpoint.safetensors").read_bytes())
    content[-9] ^= 1
    (broken / "checkpoint.safetensors").write_bytes(content)
    says(broken, "damaged")
    tensors, meta = load_checkpoint(run / "checkpoint.safetensors")
    for change, said in (
        ({"attributes": meta["attributes"][1:]}, "84 attributes"),
        ({"backbone": {"store": "float16"}}, "do not say which backbone"),
        ({"backbone": meta["backbone"] | {"store": "int8"}}, "unknown type"),
        ({"backbone": meta["backbone"] | {"transform": "Resize(9)"}}, "transform"),
        ({"recipe": {"colour": 1}}, "another version"),
    ):
        save_checkpoint(broken / "checkpoint.safetensors", tensors, meta | change)
        says(broken, said)
    # weights: none, not there, others
    digest = meta["backbone"]["weights_sha256"]
    says(run, "--weights FILE", digest, weights.name, weights=None)
    says(run, "no weights file at", weights="elsewhere.pth")
    (tmp_path / "other").mkdir()
    other = weights_file(tmp_path / "other", "squeezenet1_1")
    from core.files.atomic import sha256_file

    says(run, digest, sha256_file(other), weights=other)
    refused(run_here(tmp_path, "predict.py", run), "no image given")
    refused(run_here(tmp_path, "predict.py", run, photo, "--out", "p.txt"), "must end in .csv")


def test_core_is_light_and_loads(there: Made) -> None:
    code = "import sys, core; assert 'torch' not in sys.modules; assert core.load"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    code, out, _ = run_apart(there.place, "predict.py", "--help")
    assert code == 0 and "--add-classes" in out


def test_a_hostile_class_name_in_the_checkpoint_is_no_formula(there: Made, photo: Path, tmp_path: Path) -> None:
    tensors, meta = load_checkpoint(there.run("eszsl") / "checkpoint.safetensors")
    hostile = [f"=HYPERLINK({c})" for c in range(50)]
    save_checkpoint(tmp_path / "checkpoint.safetensors", tensors, meta | {"classes": hostile})
    code, _, err = run_here(tmp_path, "predict.py", tmp_path, photo, "--weights", there.weights, "--out", "p.csv")
    assert code == 0, err
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as handle:
        (row,) = csv.DictReader(handle)
    assert row["class"].startswith("'=") and row["class_5"].startswith("'=")


# ------------------------------------------------------------------------------------------------------------ export
def test_without_onnx_the_sentence_names_the_command(there: Made, tmp_path: Path, monkeypatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnx" else real(name, *a))
    result = run_here(tmp_path, "predict.py", there.run("eszsl"), "--export", "m.onnx")
    refused(result, "pip install onnx onnxscript onnxruntime")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def runtime():
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.mark.parametrize("method", SHORT)
def test_every_head_is_exported_and_scores_as_ours(there: Made, tmp_path: Path, runtime, method: str) -> None:
    from core.inference.export import export

    model = there.load(method)
    model.add_classes(described(model, {model.trained.classes[0]: "added"}))
    model.remove_classes([model.trained.classes[1]])
    assert "onnxruntime's scores differ by at most" in export(model, tmp_path / "head.onnx")
    session = runtime.InferenceSession(str(tmp_path / "head.onnx"), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    names = json.loads(facts["classes"])
    assert names == [model.trained.classes[c] for c in model.trained.offered]
    assert names[-1] == "added" and json.loads(facts["sides"])[-1] == "unseen"
    rows = there.tested()[0][:5]
    maps = there.inputs.features.source.read(rows).astype(np.float32).reshape(5, -1, 3, 3)
    (scores,) = session.run(["scores"], {"maps": maps})
    found, _ = model.trained.scores(there.inputs.features.batch(rows))
    ours = model.trained.calibrated(found.numpy())[:, model.trained.offered]
    assert np.abs(scores - ours).max() <= 1e-4 * np.abs(ours).max()


def test_a_photograph_through_the_exported_backbone(there: Made, photo: Path, tmp_path: Path, runtime) -> None:
    from core.inference.export import export

    model = there.load("eszsl")
    export(model, tmp_path / "m.onnx", with_backbone=True)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    size = model.network.input_size
    pixels = load_image(photo, size)
    (scores,) = session.run(["scores"], {"pixels": pixels[None]})
    by_name = {c.name: c.score for c in model.predict(photo, top=99).classes}
    ours = np.array([by_name[name] for name in names])
    assert np.abs(scores[0] - ours).max() <= 1e-3 * (ours.max() - ours.min())
