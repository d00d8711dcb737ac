"""Files that are whole and hold the wrong thing: other shapes, other counts, NaN; refused by name."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from core.datasets import vectors as word_vectors
from core.features.feature_file import FeatureFile
from core.features.regions import RegionFeatures
from core.features.writer import Writer
from core.files.errors import UserError
from core.training.checkpoint import load_checkpoint
from tests.helpers_features import SHAPE, content, maps, metadata, write


@pytest.mark.parametrize(
    "header", [{}, {"vsmr": "{"}, {"vsmr": "[]"}, {"vsmr": "{}"}, {"vsmr": '{"meta": "[1]", "sha256": "x"}'}]
)
def test_a_safetensors_file_that_is_no_checkpoint(tmp_path: Path, header: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "c.safetensors", metadata=header)
    with pytest.raises(UserError, match=r"c\.safetensors"):
        load_checkpoint(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 300), np.nan), "not finite"),
        (np.full((2, 300), 1e300), "not finite"),
        (np.ones((3, 300)), r"\(2, V\), one row an attribute, is needed"),
        (np.ones(600), r"\(2, V\), one row an attribute, is needed"),
        (np.zeros((2, 300)), "zeros"),
        (np.ones((2, 300), complex), "other things than numbers"),
        ("text", "holds a str; one array of real numbers"),
    ],
)
def test_wrong_vectors(tmp_path: Path, values: object, message: str) -> None:
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(values))
    with pytest.raises(UserError, match=rf"v\.pkl.*{message}"):
        word_vectors.load_attribute_vectors(tmp_path / "v.pkl", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"att": np.full((6, 5), np.nan, np.float32)}, "att holds NaN"),
        ({"original_att": np.full((6, 5), np.inf, np.float32)}, "original_att holds NaN or inf"),
        ({"att": np.r_[np.ones((5, 5)), np.zeros((1, 5))].astype(np.float32)}, "no attribute is present"),
        ({"att": np.ones((5, 5), np.float32)}, "att is of 5 classes"),
        ({"labels": np.repeat(np.arange(1, 7), 10)}, "labels run from 1 to 6"),
        ({"trainval_loc": np.arange(1, 61)}, "trainval_loc runs from 1 to 60"),
        ({"test_seen_loc": np.array([0, 0])}, "names 1 images twice"),
        ({"class_names": ["a"] * 6}, "more than once"),
        ({"original_att": np.ones((6, 4), np.float32)}, "but original_att"),
    ],
)
def test_wrong_content_of_a_feature_file(tmp_path: Path, changes: dict, message: str) -> None:
    wrong = replace(content(), metadata=replace(metadata(), **changes))
    with Writer(tmp_path / "f.hdf5", wrong, SHAPE) as writer:
        writer.write(np.arange(60), maps())
        writer.finish()
    with pytest.raises(UserError, match=rf"f\.hdf5.*{message}"):
        FeatureFile(tmp_path / "f.hdf5")


@pytest.mark.parametrize("w2v", [np.ones((4, 3)), np.full((5, 3), np.nan)])
def test_wrong_vectors_in_a_feature_file(tmp_path: Path, w2v: np.ndarray) -> None:
    with Writer(tmp_path / "f.hdf5", replace(content(), w2v=w2v), SHAPE) as writer:
        writer.write(np.arange(60), maps())
        writer.finish()
    with pytest.raises(UserError, match=r"f\.hdf5: w2v_att"):
        FeatureFile(tmp_path / "f.hdf5")


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_features_of_another_shape_are_refused(tmp_path: Path, budget: int) -> None:
    with FeatureFile(write(tmp_path / "f.hdf5")) as file, pytest.raises(UserError, match="another backbone or resol"):
        RegionFeatures(file, np.arange(3), (1, 8), budget=budget).batch(np.arange(3))
