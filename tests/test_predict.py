"""predict.py and core.load: photographs through the file path score as in the run's own evaluation; classes by
description; what a user sees where something is missing, damaged or of another run."""

import csv
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import core
from core.commands.predict import header, row_of
from core.features.images import load_image
from core.files.atomic import sha256_file
from core.files.errors import UserError
from core.inference import backbone
from core.inference.answer import ClassScore
from core.inference.names import shown_reason
from core.inference.predictor import SPOKEN, find_images
from core.training.loop import class_scores
from tests.helpers import ROOT, refused, run_here
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


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_backbone_computes_as_it_did_for_the_training_images(there: Made, tmp_path: Path, name: str) -> None:
    there.changed(tmp_path, backbone=there.record | {"dtype": name})
    model = core.load(tmp_path, weights=there.weights, device="cpu")
    assert {p.dtype for p in model.network.parameters()} == {getattr(torch, name)}


def test_pixels_are_cropped_and_normalised_as_the_backbone_wants_them(there: Made, photo: Path) -> None:
    """Not by ImageNet's numbers, which other backbones do not have."""
    model, given = there.load("eszsl"), []
    size, mean, std = model.network.input_size, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    how = {"resize": size + 8, "interpolation": "bicubic", "mean": mean, "std": std}
    model.network.transform = replace(model.network.transform, **how)
    model.network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0][0].clone()))
    assert len([*model.batches([photo])]) == 1
    pixels = load_image(photo, size, size + 8, "bicubic")
    np.testing.assert_allclose(given[0].permute(1, 2, 0), (pixels / 255 - mean) / std, atol=1e-5)


def test_weights_that_the_name_of_a_backbone_says_are_not_asked_for_again(tmp_path: Path) -> None:
    """open_clip takes a file or what is behind the slash, and refuses that as --weights."""
    name = "open_clip:ViT-B-32/laion2b_s34b_b79k"
    for weights, recorded, asked in (
        (None, {"backbone": name, "weights": "laion2b_s34b_b79k"}, None),
        ("file.safetensors", {"backbone": name, "weights": "laion2b_s34b_b79k"}, "file.safetensors"),
        (None, {"backbone": "timm:vit", "weights": "pretrained", "input_size": "448", "pool": "2"}, None),
        (None, {"backbone": "demo", "weights": "random"}, "random"),
    ):
        config = backbone.recorded_settings(recorded, tmp_path, weights)
        assert (config.backbone, config.weights) == (recorded["backbone"], asked)
        assert (config.input_size, config.pool) == ((448, 2) if "pool" in recorded else (None, 1))


@pytest.mark.parametrize("method", ["dazle", "vsmr"])
def test_threads_share_a_predictor_and_one_backbone(there: Made, method: str, monkeypatch) -> None:
    built, rebuild, paths = [], backbone.rebuild, there.tested()[1][:16]
    monkeypatch.setattr(backbone, "rebuild", lambda *given: built.append(given) or rebuild(*given))
    model = there.load(method)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(model.predict, paths))
    assert len(built) == 1
    assert answers == [model.predict(path) for path in paths]


def test_pictures_in_memory_are_answered_as_their_file_is(there: Made) -> None:
    model, path = there.load("eszsl"), there.tested()[1][0]
    of_file = model.predict(path)
    with Image.open(path) as image, open(path, "rb") as handle:
        pixels = np.asarray(image.convert("RGB"))
        for given in (str(path), path.read_bytes(), handle, image, pixels, pixels[:, ::-1][:, ::-1]):
            answer = model.predict(given)
            assert answer.classes == of_file.classes and answer.image in (str(path), "image 1")
    answers = list(model.predict_all([pixels, pixels / 255, path]))
    assert isinstance(answers[0], core.Prediction) and answers[0].name == answers[2].name == of_file.name
    assert answers[1].image == "image 2" and "data type" in answers[1].error
    with pytest.raises(core.UserError, match="cannot read image 1"):
        model.predict([path])


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
    with pytest.raises(UserError, match="choose among all, seen, unseen"):
        model.predict(photo, among="both")
    whole = model.predict(photo, top=1)
    assert len(whole.classes) == 1 and whole.margin == answer.margin


@pytest.mark.parametrize("method", ["vsmr", "dazle"])
def test_reasons_are_those_that_count_most_in_words_with_their_sign(there: Made, photo: Path, method: str) -> None:
    model = there.load(method)
    answer, found = model.predict(photo), model.explain(photo)
    c = model.trained.classes.index(answer.name)
    parts = found.attributes(0, c)
    gamma = model.trained.gamma if answer.classes[0].side == "unseen" else 0.0
    total = float(parts.sum() + sum(v[0, c] for v in found.corrections.values()) + gamma)
    assert total == pytest.approx(answer.classes[0].score, abs=1e-5 * max(1, abs(total)))
    for sign, said in ((1, answer.attributes), (-1, answer.against)):
        values, places = (sign * parts).topk(SPOKEN if sign > 0 else 2)
        named = [shown_reason(model.trained.attributes[k], float(found.g[0, k])) for k in places.tolist()]
        expected = [(n, v) for n, v in zip(named, values.tolist(), strict=True) if v > 0]
        assert [words for words, _ in said] == [n for n, _ in expected]
        assert [points for _, points in said] == pytest.approx([sign * v for _, v in expected], rel=1e-3)
    if method == "vsmr":
        assert any("less" in words for answer in model.predict_all(there.tested()[1]) for words, _ in answer.attributes)


def test_files_and_a_damaged_image_through_the_command(there: Made, tmp_path: Path) -> None:
    _, paths = there.tested()
    folder = tmp_path / "photos"
    (folder / "b" / ".hidden").mkdir(parents=True)
    for target, source in {"b/2.jpg": 0, "a.JPG": 1, "b/.x.jpg": 2, "b/.hidden/y.jpg": 3}.items():
        shutil.copy(paths[source], folder / target)
    (folder / "notes.txt").write_text("no image")
    (folder / "b" / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    run = there.run("vsmr")
    result = run_here(tmp_path, "predict.py", run, folder, "--weights", there.weights, "--top", "2", "--out", "p.csv")
    refused(result, "1 of 3 images could not be read", "p.csv", "bad.jpg")
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as handle:
        table = list(csv.DictReader(handle))
    assert list(table[0]) == header(2)
    names = [Path(row["image"]).relative_to(folder).as_posix() for row in table]
    assert names == ["a.JPG", "b/2.jpg", "b/bad.jpg"]
    assert not table[2]["class"] and "no image, or a damaged one" in table[2]["error"]
    row, whole = table[0], there.load("vsmr").predict(folder / "a.JPG", top=2)
    assert [row["error"], row["class"], row["class_2"]] == ["", *(c.name for c in whole.classes)]
    assert float(row["margin"]) == pytest.approx(whole.margin, rel=1e-4)
    assert row["attributes"].startswith(whole.attributes[0][0])
    assert "1 files passed over" in result[2] and "notes.txt" in result[2]


def test_an_image_counts_once_and_a_file_that_is_named_is_one(there: Made, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    images = [tmp_path / name for name in ("5.JFIF", "6.txt")]
    for path in images:
        path.touch()
    assert find_images([tmp_path, *images]) == images
    with pytest.raises(UserError, match="no image found in"):
        find_images([tmp_path / "empty"])
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "disk").symlink_to(tmp_path / "empty")
    (tmp_path / "empty" / "7.png").touch()
    assert find_images([tmp_path / "album"]) == [tmp_path / "album" / "disk" / "7.png"]
    (answer,) = there.load("eszsl").predict_all([tmp_path / "nowhere.jpg"])
    assert "No such file" in answer.error


# ------------------------------------------------------------------------------------------------------------ errors
def test_runs_and_weights_that_do_not_do(there: Made, photo: Path, tmp_path: Path) -> None:
    run, weights = there.run("eszsl"), there.weights

    def says(folder: Path, *said: str, weights: Path | str | None = weights) -> None:
        flags = ("--weights", weights) if weights else ()
        refused(run_here(tmp_path, "predict.py", folder, photo, *flags), *said)

    says(tmp_path / "nowhere", f"no finished run in {tmp_path / 'nowhere'}", "goes on with the same command")
    broken = tmp_path / "broken"
    broken.mkdir()
    content = bytearray((run / "checkpoint.safetensors").read_bytes())
    content[-9] ^= 1
    (broken / "checkpoint.safetensors").write_bytes(content)
    says(broken, "does not match its checksum")
    for change, said in (
        ({"backbone": {"store": "float16"}}, "do not say which backbone"),
        ({"backbone": there.record | {"transform": "Resize(9)"}}, "has the transform"),
        # versions before averaged both views of a photograph, and put earlier layers behind the last
        ({"backbone": there.record | {"flip": "average of both views"}}, "and had average of both views when"),
        ({"backbone": there.record | {"layer": "conv5+stage3"}}, "and had conv5+stage3 when"),
        ({"recipe": {"colour": 1}}, "another version"),
    ):
        says(there.changed(broken, **change), said)
    # weights: none, not there, others
    digest = there.record["weights_sha256"]
    says(run, "--weights FILE", digest, weights.name, weights=None)
    says(run, "no weights file at", weights="elsewhere.pth")
    state = load_file(weights)
    next(iter(state.values())).view(-1)[0] += 1
    save_file(state, tmp_path / "other.safetensors")
    says(run, digest, sha256_file(tmp_path / "other.safetensors"), weights="other.safetensors")
    refused(run_here(tmp_path, "predict.py", run), "no image given")
    refused(run_here(tmp_path, "predict.py", run, "p.jpg", "--none-rate", "10"), "--none-rate 10: a share is needed")


def test_a_table_replaces_its_like_alone(there: Made, photo: Path, tmp_path: Path) -> None:
    command = ("predict.py", there.run("eszsl"), photo, "--weights", there.weights, "--out")
    (tmp_path / "attributes.csv").write_text("class,red\nheron,1\n")
    refused(run_here(tmp_path, *command, "attributes.csv"), "attributes.csv is there and holds no answers")
    refused(run_here(tmp_path, *command, "p.jpg"), "must end in .csv")
    assert [run_here(tmp_path, *command, "p.csv")[0] for _ in range(2)] == [0, 0]


def test_one_run_answers(there: Made, photo: Path, tmp_path: Path) -> None:
    """A pattern such as */vsmr/seed0 may stand for two runs: the second is no folder of photographs."""
    runs = [tmp_path / features / "eszsl" / "seed0" for features in ("a-3x3", "b-3x3")]
    for run in runs:
        shutil.copytree(there.run("eszsl"), run)
    given = ("--weights", there.weights)
    refused(run_here(tmp_path, "predict.py", *runs, photo, *given), f"{runs[1]} is a run, and one run answers")
    refused(run_here(tmp_path, "predict.py", runs[0], photo, tmp_path, *given), "is a run, and one run answers")
    code, out, err = run_here(tmp_path, "predict.py", runs[0].parent.parent, photo, *given)  # the only one below
    assert code == 0 and str(photo) in out and f"run {runs[0]}: eszsl on AWA2" in err
    refused(run_here(tmp_path, "predict.py", tmp_path, photo, *given), "holds 2 finished runs", *map(str, runs))


def test_the_folder_of_a_run_tells_image_side_and_pooling(there: Made) -> None:
    """448 pixels pooled by 2 have the grid that 224 have."""
    told = there.inputs.provenance
    inputs = replace(there.inputs, provenance=told | {"input_size": "448", "pool": "2"})
    assert inputs.variant.startswith(f"{told['name']}-448px-pool2-{told['regions']}-")


def test_a_page_comes_with_the_answers_of_one_pass(there: Made, tmp_path: Path, monkeypatch) -> None:
    passed, regions = [], backbone.View.regions
    monkeypatch.setattr(backbone.View, "regions", lambda self, x: passed.append(len(x)) or regions(self, x))
    paths = there.tested()[1][:3]
    code, out, err = run_here(
        tmp_path, "predict.py", there.run("eszsl"), *paths, "--weights", there.weights, "--explain", "page",
    )  # fmt: skip
    assert code == 0, err
    assert passed == [3]
    assert (tmp_path / "page" / "index.html").is_file() and all(str(path) in out for path in paths)


def test_core_is_light_and_loads() -> None:
    code = "import sys, core; assert 'torch' not in sys.modules; assert core.load"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_nothing_in_the_table_is_a_formula() -> None:
    c = ClassScore(name="=HYPERLINK(1)", side="seen", score=-1.5)
    answer = core.Prediction(image="=cmd.jpg", classes=(c, c), likely=(c.name,), group=("@me", 0.4), error="-1+1")
    row = dict(zip(header(3), row_of(answer, 3), strict=True))
    assert row == dict.fromkeys(row, "") | {"image": "'=cmd.jpg", "group": "'@me 0.4", "error": "'-1+1"} | {
        **dict.fromkeys(("class", "class_2", "likely"), "'=HYPERLINK(1)"), **dict.fromkeys(("side", "side_2"), "seen"),
        **dict.fromkeys(("score", "score_2"), "-1.5"),
    }  # fmt: skip
