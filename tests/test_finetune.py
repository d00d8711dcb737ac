"""Fine-tuning opens images of the fold's training classes alone, and its features say what they saw."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core.commands import finetune as command
from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS
from core.datasets.vectors import attribute_vectors, write_attribute_vectors
from core.datasets.xlsa17 import read_metadata
from core.experiments.identity import run_config
from core.experiments.inputs import load_inputs
from core.experiments.results import row_of
from core.experiments.run import run
from core.features import extraction
from core.features import finetune as module
from core.features.backbones import build_backbone
from core.features.extraction import extract
from core.features.feature_file import FeatureFile
from core.features.settings import ExtractionConfig, default_out
from core.features.weights import finetuned_record, pack_rows, refuse_finetuned, unpack_rows
from core.files.errors import UserError
from core.methods import find_method
from core.training.folds import validation_fold
from tests.helpers import TOY
from tests.helpers_features import make_toy

SMALL = [
    *("--backbone", "mobilenet_v2", "--weights", "random", "--input-size", "64", "--batch-size", "16"),
    *("--lr", "0.01", "--device", "cpu"),
]
W2V = np.ones((8, 3), np.float32)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setitem(DATASETS, "TOY", TOY)
    return make_toy(tmp_path)


def tune(root: Path, *flags: str, split: str = "0") -> Path:
    name = "final" if split == "final" else f"split{split}_val"
    assert command.main(None, ["TOY", "--data-root", str(root), "--split", split, *SMALL, *flags]) == 0
    return root / "TOY" / f"finetuned_mobilenet_v2_{name}.safetensors"


@pytest.mark.parametrize("split", ["1", "final"])
def test_no_image_of_another_class_or_of_a_test_set_is_opened(root, monkeypatch, split):
    opened, real = set(), extraction.load_image

    def spy(path, *a):
        opened.add(path)
        return real(path, *a)

    monkeypatch.setattr(extraction, "load_image", spy)
    out = tune(root, "--epochs", "1", split=split)
    m = read_metadata(root, TOY)
    paths, _ = resolve_images(image_folder(root, TOY), m.image_files)
    rows = np.array([i for i, p in enumerate(paths) if p in opened])
    if split == "final":
        assert set(rows) == set(m.trainval_loc)
    else:
        fold = validation_fold(m, W2V, int(split))
        assert set(rows) == set(fold.train_rows)
        assert not np.isin(m.labels[rows], m.labels[fold.unseen_rows]).any() and not np.isin(rows, fold.seen_rows).any()
    assert not np.isin(m.labels[rows], m.unseen).any() and not np.isin(rows, m.test_seen_loc).any()
    record = finetuned_record(out)
    assert set(unpack_rows(record["rows"])) == set(rows) and record["split_sha256"] == m.split_sha256


def test_held_out_images_are_of_every_class_and_not_trained_on(root, monkeypatch):
    m, trained, real = read_metadata(root, TOY), [], module._Run._batches
    rows = m.trainval_loc
    train, held = module.held_out(rows, np.unique(m.labels[rows], return_inverse=True)[1], 0)
    assert set(train) | set(held) == set(rows) and not set(train) & set(held)
    assert set(m.labels[held]) == set(m.labels[train]) == set(m.seen)

    def spy(self, rows, generator=None):
        if generator is not None:
            trained.append((set(rows), generator.bit_generator.state["state"]["state"]))
        return real(self, rows, generator)

    monkeypatch.setattr(module._Run, "_batches", spy)
    tune(root, "--epochs", "2", split="final")
    assert [rows for rows, _ in trained] == [set(train)] * 2
    assert trained[0][1] != trained[1][1]  # every epoch draws its own order and crops


def test_the_same_command_makes_the_same_bytes_and_a_finished_file_of_others_is_refused(root, monkeypatch):
    made = tune(root, "--epochs", "2")
    expected = made.read_bytes()
    made.unlink()
    assert tune(root, "--epochs", "2").read_bytes() == expected
    with monkeypatch.context() as patch:
        patch.setattr(module._Run, "train", None)  # complete already
        tune(root, "--epochs", "2")
    with pytest.raises(UserError, match="made with other settings; move it away"):
        tune(root, "--epochs", "1")


def test_the_best_epoch_is_kept_and_it_stops_when_nothing_gets_better(root, monkeypatch):
    accuracies, trunks = iter([0.1, 0.6, 0.5, 0.4, 0.9]), []

    def scripted(self):
        trunks.append(self._trunk())
        return next(accuracies)

    monkeypatch.setattr(module._Run, "_accuracy", scripted)
    out = tune(root, "--epochs", "9", "--patience", "2", "--dtype", "bfloat16")
    assert len(trunks) == 4 and finetuned_record(out)["epoch"] == "2"
    saved = load_file(out)
    assert not any(key.startswith("classifier") for key in saved)
    for key, value in trunks[1].items():
        assert torch.equal(saved[key], value)
    assert any(not torch.equal(trunks[1][k], trunks[3][k]) for k in saved)
    start = build_backbone("mobilenet_v2", "random").network.state_dict()
    assert not torch.equal(saved["features.0.0.weight"], start["features.0.0.weight"])
    assert all(v.dtype == start[k].dtype for k, v in saved.items())


def test_features_say_that_they_are_fine_tuned_and_are_refused_on_classes_they_know(root, tmp_path):
    files = {}
    for split in ("0", "final"):
        weights = tune(root, "--epochs", "1", split=split)
        config = ExtractionConfig(backbone="mobilenet_v2", weights=str(weights), input_size=64, device="cpu")
        files[split] = extract(TOY, data_root=root, config=config)
        assert files[split] == default_out(root, TOY, config) and "_finetuned_" in files[split].name
    with FeatureFile(files["0"]) as file:
        known = file.provenance
    assert known["finetuned"] == "true" and known["finetuned_fold"] == "split0_val"
    assert known["pretraining_saw_unseen"] == "no"  # of random weights, which saw nothing, and of these rows
    np.save(tmp_path / "v.npy", W2V)
    write_attribute_vectors(tmp_path / "v.pkl", attribute_vectors(str(tmp_path / "v.npy"), list("abcdefgh")), "")

    def experiment(split: str, seed: int, select: str = "val"):
        inputs = load_inputs("TOY", data_root=root, features=files[split], w2v=tmp_path / "v.pkl")
        return run_config(inputs, "eszsl", find_method("eszsl").recipe("TOY"), seed=seed, select=select), inputs

    row = row_of(run(*experiment("0", 0), tmp_path / "a"))
    assert row["finetuned"] == "true" and "fine-tuned on images of seen classes (TOY, split0_val)" in row["notes"]
    for split, seed in (("0", 1), ("final", 0)):
        with pytest.raises(UserError, match=r"fine-tuned on .* python finetune.py TOY --split <seed>"):
            run(*experiment(split, seed), tmp_path / f"b{split}", ablation="")
    run(*experiment("final", 0, "last"), tmp_path / "c")


def test_rows_travel_and_are_compared():
    rows = np.array([0, 5, 11])
    assert unpack_rows(pack_rows(rows, 13)).tolist() == rows.tolist()
    known = {"finetuned": "true", "finetuned_dataset": "CUB", "finetuned_rows": pack_rows(rows, 13)}
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4])
    refuse_finetuned(known, "CUB", labels, np.array([1, 4]), np.array([6, 12]))
    refuse_finetuned(known, "AWA2", labels, np.array([5]), np.array([3]))  # another data set's rows
    refuse_finetuned({}, "CUB", labels, np.array([5]), np.array([3]))
    with pytest.raises(UserError, match="2 classes taken for unseen"):
        refuse_finetuned(known, "CUB", labels, np.array([7]), np.array([3, 9, 12]))
    with pytest.raises(UserError, match="1 images measured on"):
        refuse_finetuned(known, "CUB", labels, np.array([5, 7]), np.array([8]))


def test_a_damaged_image_is_named(root):
    (root / "TOY/TOY_images/c1/0.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match="0.jpg could not be read"):
        tune(root, split="final")
