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
import pytest
import torch
from scipy.io import savemat

import core
from core.commands.predict import header
from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS
from core.datasets.xlsa17 import read_metadata
from core.experiments.inputs import load_inputs
from core.files.errors import UserError
from core.inference.predictor import find_images
from core.method import AttentionOutput
from core.training.checkpoint import load_checkpoint, save_checkpoint
from core.training.loop import class_scores
from tests.helpers import ROOT, cells, extraction, refused, run_apart, run_here, weights_file, word_vectors
from tests.helpers_predict import SHORT, Made, scores_by_name


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
    reported = json.loads((there.run(method) / "metrics.json").read_text())["standard"]["gamma"]
    assert model.trained.gamma == pytest.approx(reported, rel=1e-6)
    predicted = np.where(stored["margin"] > reported, stored["best_seen"], stored["best_unseen"])
    assert (predicted == through_files.argmax(axis=1))[clear].all()
    assert (stored["labels"] == m.labels[rows]).all()


def small_cub(root: Path, out: Path) -> Path:
    """A data root with 114 photographs of mini_cub: 6 classes seen and 3 not."""
    m = read_metadata(root, DATASETS["CUB"])
    kept, chosen = [*m.seen[:6], *m.unseen[:3]], {}
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
    rows = np.concatenate([m.test_seen_loc[:20], m.test_unseen_loc])
    assert len(rows) == 50
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


def test_the_backbone_computes_as_it_did_for_the_training_images(there: Made) -> None:
    model = there.load("eszsl")
    for name in ("float32", "bfloat16"):
        model.trained = replace(model.trained, backbone=model.trained.backbone | {"dtype": name})
        vars(model).pop("network", None)
        assert {p.dtype for p in model.network.parameters()} == {model.dtype} == {getattr(torch, name)}


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
