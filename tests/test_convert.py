"""Feature files of other axes and of DAZLE's gzip layout, rewritten to ours."""

from pathlib import Path

import numpy as np
import pytest

from core.commands import convert as module
from core.commands.convert import LAYOUTS, convert, main
from core.features.feature_file import FeatureFile
from core.files.errors import UserError
from tests.helpers_features import dazle, metadata

N, D, SIDE = 90, 96, 4


@pytest.fixture
def maps() -> np.ndarray:
    """(N,D,h,w)"""
    return np.random.default_rng(0).random((N, D, SIDE, SIDE)).astype(np.float32)


def arranged(maps: np.ndarray, layout: str) -> np.ndarray:
    tokens = maps.reshape(N, D, SIDE * SIDE).transpose(0, 2, 1)
    return {
        "ndhw": maps,
        "nhwc": maps.transpose(0, 2, 3, 1),
        "nrd": tokens,
        "tokens": np.concatenate([tokens[:, :3] * 0 - 1, tokens], axis=1),  # a class and two register tokens
    }[layout]


def write(path: Path, values: np.ndarray) -> Path:
    return dazle(path, metadata(N), values)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_becomes_ours(
    tmp_path: Path, maps: np.ndarray, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", 8 * D * SIDE * SIDE * 4)  # several blocks
    source, out = write(tmp_path / "theirs.hdf5", arranged(maps, layout)), tmp_path / "f.hdf5"
    before = source.read_bytes()
    assert main([str(source), str(out), "--layout", layout, "--store", "float32"]) == 0
    with FeatureFile(out) as file:
        assert file.grid == (SIDE, SIDE) and file.provenance["pretraining_saw_unseen"] == "unknown"
        assert file.provenance["converted_from"].startswith("theirs.hdf5 sha256 ")
        np.testing.assert_array_equal(file.read(np.arange(N)), maps.reshape(N, D, -1))
        assert not file.metadata.image_files and file.metadata.labels[15] == 1
    assert source.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["f.hdf5", "theirs.hdf5"]


def test_an_interrupted_conversion_goes_on(tmp_path: Path, maps: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "theirs.hdf5", arranged(maps, "nrd"))
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


def test_axes_that_cannot_be(tmp_path: Path, maps: np.ndarray) -> None:
    source = write(tmp_path / "theirs.hdf5", maps)
    with pytest.raises(UserError, match=r"4 axes, --layout tokens is \(N,T,D\)"):
        convert(source, tmp_path / "f.hdf5", layout="tokens")
    (tmp_path / "junk.hdf5").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"junk\.hdf5 is not a readable feature file"):
        convert(tmp_path / "junk.hdf5", tmp_path / "f.hdf5", layout="tokens")
