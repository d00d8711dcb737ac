"""The split reader: real files with their counts, and every wrong file refused by name; the registry and its paths."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from core.datasets import registry
from core.datasets.metadata import cub50
from core.datasets.names import read_attribute_names
from core.datasets.registry import AWA2, CUB, CUB50, CUB50_SEEN, CUB50_UNSEEN, DATASETS, SUN, DataSet
from core.datasets.xlsa17 import read_mat_files, read_metadata
from core.files.errors import UserError
from tests.helpers import ROOT, TOY, metadata_of, toy_mats
from tests.helpers_xlsa17 import COUNTS, draw


@pytest.mark.parametrize("dataset", [AWA2, CUB, CUB50, SUN], ids=lambda d: d.name)
def test_real_metadata_has_the_published_counts(shared, dataset):
    m = read_metadata(shared, dataset)
    assert not any("subset" in note for note in m.notes)  # every published count is met
    assert (m.att >= 0).all()
    assert np.array_equal(np.sort(np.concatenate([m.train_loc, m.val_loc])), m.trainval_loc)
    assert not np.intersect1d(m.labels[m.train_loc], m.labels[m.val_loc]).size
    assert len(np.unique(m.labels[m.val_loc])) == round(dataset.val_share * dataset.counts.seen)


@pytest.mark.parametrize(("dataset", "leaked"), [(AWA2, 5882), (SUN, 2580)], ids=["AWA2", "SUN"])
def test_the_other_circulating_files_leak_test_images_and_are_cut(shared, dataset, leaked):
    splits = shared / "xlsa17_variants" / dataset.name / "att_splits.mat"
    m = read_mat_files(shared / "xlsa17/data" / dataset.name / "res101.mat", splits, dataset)
    assert any(f"{leaked} of its images" in n for n in m.notes)
    assert not np.intersect1d(np.concatenate([m.train_loc, m.val_loc]), m.test_seen_loc).size


@pytest.mark.parametrize("name", COUNTS)
def test_drawn_files_have_the_published_counts_and_another_split_is_refused(name: str, tmp_path: Path) -> None:
    place, dataset = Path("xlsa17") / "data" / name, DATASETS[name]
    m = read_metadata(draw(tmp_path, name, None).root, dataset)
    assert not any("subset" in note for note in m.notes)  # every published count is met
    assert len(read_attribute_names(dataset, tmp_path)) == m.att.shape[1]
    held = np.unique(m.labels[m.val_loc])
    assert len(held) == round(dataset.val_share * len(m.seen))
    assert not np.intersect1d(held, m.labels[m.train_loc]).size
    # one image in another split is no proposed split
    drawn = {k: v for k, v in scipy.io.loadmat(tmp_path / place / "att_splits.mat").items() if k[0] != "_"}
    drawn["test_seen_loc"] = np.append(drawn["test_seen_loc"].ravel(), drawn["trainval_loc"][0])[:, None]
    drawn["trainval_loc"] = drawn["trainval_loc"][1:]
    copy = tmp_path / "copy" / place
    copy.mkdir(parents=True)
    os.link(tmp_path / place / "res101.mat", copy / "res101.mat")
    scipy.io.savemat(copy / "att_splits.mat", drawn)
    with pytest.raises(UserError, match=f"not the proposed split of {name}"):
        read_metadata(tmp_path / "copy", dataset)


def rows(*parts):
    return np.r_[parts][:, None]


def shifted(by):
    """Splits that are counted from another number than 1."""
    of = np.arange(1, 91).reshape(9, 10) + by
    return {"trainval_loc": rows(*of[:6, :8]), "test_seen_loc": rows(*of[:6, 8:]), "test_unseen_loc": rows(*of[6:])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.repeat(np.arange(9), 10)[:, None]}, "images without a class"),  # counted from 0
        ({"labels": np.repeat(np.arange(2, 11), 10)[:, None]}, "labels runs from 1 to 9, expected 0 to 8"),
        ({"labels": np.full((90, 1), 1.5)}, "whole numbers"),
        ({"labels": np.ones((89, 1), int)}, "89 labels for 90"),
        ({"test_seen_loc": rows(9, 9)}, "twice"),
        *((shifted(by), said) for by, said in ((-1, "trainval_loc runs from -1 to"), (1, "test_unseen_loc runs from"))),
        ({"trainval_loc": rows(slice(1, 61))}, "share"),
        ({"trainval_loc": rows(slice(1, 9), 61), "test_unseen_loc": rows(slice(62, 91))}, "have images in trainval"),
        ({"test_seen_loc": rows(9, 10)}, "have no test image"),
        ({"test_unseen_loc": rows(slice(61, 81))}, "'class8' have no image in any"),
        ({"test_unseen_loc": np.empty((0, 1))}, "empty"),
        ({"test_seen_loc": None}, "lacks test_seen_loc"),
        ({"att": np.where(np.arange(72).reshape(8, 9) == 30, np.nan, 1.0)}, "NaN.*'class3', attribute 4"),
        ({"att": np.full((8, 9), 1e300)}, "att holds NaN or infinity"),
        ({"original_att": np.ones((7, 9))}, "original_att"),
        ({"att": np.r_["1", np.ones((8, 8)), np.zeros((8, 1))]}, "no attribute is present"),
        ({"att": np.ones((9, 8))}, "9 class names"),  # transposed
        ({"att": "text"}, "a matrix of numbers is needed"),
        ({"allclasses_names": np.array([["a"]] * 9, dtype=object)}, "more than once"),
        ({"allclasses_names": np.array([["a\nb"], *([c] for c in "bcdefghi")], dtype=object)}, "no class name"),
        ({"image_files": np.array([["/x/CUB/1.jpg"]], dtype=object)}, "another data set"),
    ],
)
def test_wrong_files_are_refused_with_their_name(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as info:
        read_mat_files(*toy_mats(tmp_path, **changes), TOY)
    assert ".mat" in str(info.value)


def test_negative_attributes_are_kept_or_cut_with_a_note(tmp_path):
    att = np.random.default_rng(0).standard_normal((8, 9))
    m = read_mat_files(*toy_mats(tmp_path, att=att, original_att=None), TOY)
    np.testing.assert_allclose(m.att, att.T, rtol=1e-6)
    assert any(f"{(att < 0).sum()} of 72 attributes" in n and "kept" in n for n in m.notes)
    cut = read_mat_files(*toy_mats(tmp_path, att=att), replace(TOY, clip_negative=True))
    np.testing.assert_allclose(cut.att, np.maximum(att.T, 0), rtol=1e-6)
    assert any(f"{(att < 0).sum()} of 72 attributes" in n and "set to 0" in n for n in cut.notes)
    few = np.ones((100, 9)) + np.arange(9)
    few[0, 0] = -1
    files = toy_mats(tmp_path, att=few, original_att=None)
    assert not any("negative" in n for n in read_mat_files(*files, replace(TOY, clip_negative=True)).notes)


def test_any_number_of_attributes_is_read_of_a_benchmark_too(tmp_path):
    anchored = np.array([[f"/x/Animals_with_Attributes2/{i}.jpg"] for i in range(90)], dtype=object)
    toy_mats(tmp_path / "xlsa17" / "data" / "AWA2", image_files=anchored)
    m = read_metadata(tmp_path, AWA2)
    assert m.att.shape == (9, 8) and any("attributes 8 (published 85)" in n for n in m.notes)
    folder = tmp_path / "AWA2" / "Animals_with_Attributes2"
    folder.mkdir(parents=True)
    (folder / "predicates.txt").write_text("".join(f"{k + 1} a{k}\n" for k in range(8)))
    assert read_metadata(tmp_path, AWA2).attribute_names == [f"a{k}" for k in range(8)]
    (folder / "predicates.txt").write_text("1 a\n")
    assert read_metadata(tmp_path, AWA2).attribute_names == []


def test_the_files_validation_classes_are_cut_to_trainval_or_drawn(tmp_path):
    rows = np.arange(90).reshape(9, 10) + 1
    own = {"train_loc": rows[:4].reshape(-1, 1), "val_loc": rows[4:6].reshape(-1, 1)}  # two test images of each class
    m = read_mat_files(*toy_mats(tmp_path, **own), TOY)
    np.testing.assert_array_equal(m.train_loc, rows[:4, :8].ravel() - 1)
    np.testing.assert_array_equal(m.val_loc, rows[4:6, :8].ravel() - 1)
    assert any("12 of its images lie outside trainval" in n for n in m.notes)
    assert m.with_validation(0.5).notes == m.notes
    for change in ({"val_loc": rows[3:6].reshape(-1, 1)}, {"val_loc": rows[7:].reshape(-1, 1)}, {"val_loc": None}):
        m = read_mat_files(*toy_mats(tmp_path, **{**own, **change}), TOY)
        assert any("drawn with seed 0" in n for n in m.notes) and len(np.unique(m.labels[m.val_loc])) == 2
        assert np.array_equal(np.sort(np.r_[m.train_loc, m.val_loc]), m.trainval_loc)


def test_cub50_is_its_classes_with_their_own_attributes_and_images_drawn_by_seed():
    seen, unseen = (np.random.default_rng(0).permutation(n) for n in ([*CUB50_SEEN, 6, 7, 8], CUB50_UNSEEN))
    numbers, each = np.r_[seen, unseen], 15
    att = np.stack([numbers, numbers**2], axis=1)  # a class's number is in its attributes
    m = metadata_of(len(seen), len(unseen), each, att)
    m = replace(m, name="CUB", class_names=[f"{n:03}.Bird_{n}" for n in numbers])
    labels, rows = m.labels, np.arange(len(m.labels))
    drawn = []
    for seed in (0, 1):
        part = cub50(m, seed)
        found = np.array([int(name[:3]) for name in part.class_names])
        assert np.array_equal(part.att, np.stack([found, found**2], axis=1)) and len(found) == 50
        assert {*found[part.seen]} == {*CUB50_SEEN} and {*found[part.unseen]} == {*CUB50_UNSEEN}
        for loc in (part.trainval_loc, part.test_seen_loc, part.test_unseen_loc):
            assert np.array_equal(found[part.labels[loc]], numbers[labels[loc]])
        assert np.unique(part.labels[part.test_seen_loc], return_counts=True)[1].tolist() == [10] * 40
        assert np.array_equal(part.test_unseen_loc, rows[np.isin(numbers[labels], CUB50_UNSEEN)])
        places = (part.test_seen_loc % each).reshape(40, 10)
        assert len(np.unique(places, axis=0)) > 30  # not the same ten of every class
        drawn.append(part.test_seen_loc)
    assert not np.array_equal(*drawn)


def test_a_name_is_one_data_set_and_the_same_again_is_no_error(monkeypatch):
    """A notebook's cell is run twice."""
    monkeypatch.setattr(registry, "DATASETS", dict(registry.DATASETS))
    for _ in range(2):
        new = registry.register(DataSet(name="APY", anchor="aPY"))
        assert (new.source, new.folders, new.counts) == ("APY", ("APY/aPY", "aPY"), None)
        assert registry.DATASETS["APY"] is new
    with pytest.raises(UserError, match="another data set is named CUB"):
        registry.register(DataSet(name="CUB", anchor="x"))


def test_scripts_import_the_core_beside_them(tmp_path):
    """Another clone comes first on the path, as with an editable installation."""
    scripts = [path for folder in ("extract_feature", "data") for path in (ROOT / folder).glob("*.py")]
    for script in scripts:
        first = script.read_text().split("\nfrom core.", 1)[0].rstrip().split("\n")[-1]
        assert first.startswith("sys.path.insert(0, str(Path(__file__).resolve().parents[1]))"), script
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "__init__.py").write_text("raise SystemExit('the other core')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, ROOT / "data" / "get_data.py", "--help"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)
