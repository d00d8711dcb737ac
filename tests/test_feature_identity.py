"""Whose data a feature file holds, what is said where it does not belong, lacks something or is rewritten to ours."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.commands import convert as module
from core.commands import extract
from core.commands.convert import LAYOUTS, convert, main
from core.datasets.registry import CUB, DEMO, OWN, Counts
from core.datasets.stored import check_maps
from core.features.feature_file import FeatureFile
from core.features.settings import ExtractionConfig, extraction_command
from core.files.errors import UserError
from tests.helpers import ROOT
from tests.helpers_features import content, dazle, maps, metadata, write


@pytest.mark.parametrize("layout", ["new", "dazle"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["class 0", "class 1", "cat", "class 3", "class 4", "class 5"]}, "class 3 is class 2, .* cat"),
        ({"class_names": [f"class {c}" for c in range(5)]}, "class 6 is class 5, the split file's not there"),
        ({"labels": np.repeat(np.arange(6), 10)[::-1].copy()}, "label 1 is 0, the split file's 5"),
        ({"labels": np.arange(48)}, "label 2 is 0, the split file's 1"),
        ({"test_seen_loc": np.arange(3)}, "row of test_seen_loc"),
        ({"trainval_loc": metadata().trainval_loc + 1}, "row of trainval_loc 1 is 1, the split file's 2"),
        (
            {"image_files": [f"images/{i + (i > 8)}.jpg" for i in range(60)]},
            "image file 10 is 9.jpg, the split file's 10.jpg",
        ),
        (
            {"att": metadata().att + np.eye(6, 5, dtype=np.float32) / 1000},
            "att .* has other values",
        ),
        ({"att": np.ones((6, 4), np.float32)}, r"att \(6, 5\) has other values .* \(6, 4\)"),
    ],
)
def test_a_file_of_other_data_than_the_root_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str, layout: str
) -> None:
    path = write(tmp_path / "f.hdf5") if layout == "new" else dazle(tmp_path / "f.hdf5", metadata(), maps())
    root = replace(metadata(), **changes)
    with FeatureFile(path) as file:
        file.check_belongs(replace(metadata(), att=metadata().att + 1e-6), "x")
        if layout == "dazle" and ("class_names" in changes or "image_files" in changes):
            return  # it has no names
        with pytest.raises(UserError, match=rf"f\.hdf5 does not belong to root/att_splits\.mat: .*{message}") as caught:
            file.check_belongs(root, "root/att_splits.mat")
    assert "--data-root" in str(caught.value)


@pytest.mark.parametrize("key", ["train_loc", "val_loc"])
def test_other_validation_classes_than_the_roots_are_refused(tmp_path: Path, key: str) -> None:
    with FeatureFile(write(tmp_path / "f.hdf5", content(split_sha256="0" * 64))) as file:
        file.check_belongs(metadata(), "root/att_splits.mat")
        with pytest.raises(UserError, match=rf"does not belong to root/att_splits\.mat: .*{key}"):
            file.check_belongs(replace(metadata(), **{key: getattr(metadata(), key)[1:]}), "root/att_splits.mat")


def test_names_that_a_file_lacks_come_from_the_root(tmp_path: Path) -> None:
    m = replace(metadata(), class_names=[*"abcdef"])
    with FeatureFile(dazle(tmp_path / "f.hdf5", m, maps())) as file:
        assert file.to_metadata(DEMO).class_names[2] == "class 2"
        assert file.to_metadata(DEMO, m).class_names == m.class_names
        assert file.to_metadata(DEMO, m).image_files == m.image_files


def test_classes_that_are_missing_and_negative_attributes_are_noted(tmp_path: Path) -> None:
    m = metadata()
    att = m.att.copy()
    att[0, 0] = -1
    with FeatureFile(dazle(tmp_path / "f.hdf5", m, maps(), att=att)) as file:
        assert file.to_metadata(DEMO).att[0, 0] == -1
        counts = Counts(seen=9, unseen=4, attributes=5, images=90, trainval=48, test_seen=12, test_unseen=30)
        known = file.to_metadata(replace(DEMO, counts=counts, clip_negative=True))
        assert known.att[0, 0] == 0 and "set to 0" in known.notes[0]
        assert "a subset of DEMO, numbers do not compare" in " ".join(known.notes)
        file.check_belongs(replace(metadata(), att=np.maximum(att, 0)), "root")


@pytest.mark.parametrize(
    "shape", [(7, 7, 2048), (7, 2048, 7), (7, 10, 512), (49, 2048), (49, 64), (50, 64), (197, 768), (2048,), (0, 7, 7)]
)
def test_axes_that_cannot_be_are_refused_with_the_way_out(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"cannot be \(N,D,h,w\).*np\.transpose.*core\.commands\.convert"):
        check_maps((60, *shape), np.dtype("f2"), Path("f.hdf5"))


def test_axes_that_can_be_are_taken() -> None:
    for shape in ((2048, 7, 7), (512, 7, 10), (7, 7, 7), (2048, 49), (2, 2, 2), (64, 1, 1)):
        check_maps((60, *shape), np.dtype("f2"), Path("f.hdf5"))


def test_a_command_is_one_that_the_script_it_names_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    flags = {"backbone": "timm:vit_tiny_patch16_224", "weights": "w.safetensors", "input_size": 448}
    _, script, *words = shlex.split(extraction_command(CUB, "a root", out="f.hdf5", pool=None, **flags))
    monkeypatch.setattr(extract, "extract", lambda dataset, **kw: given.update(kw))
    extract.main("CUB", None, words)
    assert given["config"] == ExtractionConfig(**flags) and (ROOT / script).is_file()
    assert given["out"] == Path("f.hdf5") and given["data_root"] == Path("a root")
    _, script, *words = shlex.split(extraction_command(OWN, "data", features="f.hdf5"))
    assert (ROOT / script).is_file() and words == ["--features", "f.hdf5"]


N, D, SIDE = 90, 96, 4


# ---- rewritten


@pytest.fixture
def theirs() -> np.ndarray:
    """(N,D,h,w)"""
    return np.random.default_rng(0).random((N, D, SIDE, SIDE)).astype(np.float32)


def arranged(theirs: np.ndarray, layout: str) -> np.ndarray:
    tokens = theirs.reshape(N, D, SIDE * SIDE).transpose(0, 2, 1)
    return {
        "ndhw": theirs,
        "nhwc": theirs.transpose(0, 2, 3, 1),
        "nrd": tokens,
        "tokens": np.concatenate([tokens[:, :3] * 0 - 1, tokens], axis=1),  # a class and two register tokens
    }[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_ours(
    tmp_path: Path, theirs: np.ndarray, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 8 * D * SIDE * SIDE * 4)  # several blocks
    source, out = dazle(tmp_path / "theirs.hdf5", metadata(N), arranged(theirs, layout)), tmp_path / "f.hdf5"
    before = source.read_bytes()
    assert main([str(source), str(out), "--layout", layout, "--store", "float32"]) == 0
    with FeatureFile(out) as file:
        assert file.grid == (SIDE, SIDE) and file.provenance["pretraining_saw_unseen"] == "unknown"
        assert file.provenance["converted_from"].startswith("theirs.hdf5 sha256 ")
        np.testing.assert_array_equal(file.read(np.arange(N)), theirs.reshape(N, D, -1))
        assert not file.metadata.image_files and file.metadata.labels[15] == 1
    assert source.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["f.hdf5", "theirs.hdf5"]


def test_an_interrupted_conversion_goes_on(tmp_path: Path, theirs: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    source = dazle(tmp_path / "theirs.hdf5", metadata(N), arranged(theirs, "nrd"))
    clean = convert(source, tmp_path / "clean.hdf5", layout="nrd").read_bytes()
    monkeypatch.setattr(module, "_BLOCK", 1)
    real, calls = module.to_ndhw, []

    def stop(values: np.ndarray, layout: str) -> np.ndarray:
        calls.append(len(values))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(values, layout)

    monkeypatch.setattr(module, "to_ndhw", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "f.hdf5", layout="nrd")
    assert not (tmp_path / "f.hdf5").exists()
    made = convert(source, tmp_path / "f.hdf5", layout="nrd")
    assert made.read_bytes() == clean
    assert len(calls) < 2 * -(-N // 7)  # what was done is not done again


def test_axes_that_cannot_be(tmp_path: Path, theirs: np.ndarray) -> None:
    source = dazle(tmp_path / "theirs.hdf5", metadata(N), theirs)
    with pytest.raises(UserError, match=r"4 axes, --layout tokens is \(N,T,D\)"):
        convert(source, tmp_path / "f.hdf5", layout="tokens")
    (tmp_path / "junk.hdf5").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"junk\.hdf5 is not a readable feature file"):
        convert(tmp_path / "junk.hdf5", tmp_path / "f.hdf5", layout="tokens")
