"""Hostile HDF5 files: links out of the file, absurd sizes, filters, and what crashes the library: refused."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from core.features import feature_file
from core.features.feature_file import FeatureFile
from core.files.errors import UserError
from tests.helpers_features import maps, metadata


def old_file(path: Path) -> Path:
    """A file in DAZLE's layout."""
    m = metadata()
    arrays = {"labels": m.labels, "att": m.att, "feature_map": maps().astype(np.float32)}
    arrays |= {key: getattr(m, key) for key in ("trainval_loc", "test_seen_loc", "test_unseen_loc")}
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file.create_dataset(key, data=value)
    return path


def external_link(file: h5py.File) -> None:
    file["labels"] = h5py.ExternalLink("other.hdf5", "labels")


def soft_link(file: h5py.File) -> None:
    file["labels"] = h5py.SoftLink("/att")


def external_storage(file: h5py.File) -> None:
    file.create_dataset("labels", (60,), "i8", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((60,), "i8")
    layout[:] = h5py.VirtualSource("other.hdf5", "labels", (60,))
    file.create_virtual_dataset("labels", layout)


def strange_filter(file: h5py.File) -> None:
    file.create_dataset("labels", data=np.repeat(np.arange(6), 10), scaleoffset=0)


def nothing_stored(file: h5py.File) -> None:
    file.create_dataset("labels", (60,), "i8", chunks=(10,))


def absurd_labels(file: h5py.File) -> None:
    file.create_dataset("labels", (1 << 40,), "i8", chunks=(1 << 20,))


def chunk_bomb(file: h5py.File) -> None:
    file.create_dataset("labels", (60,), "i8", chunks=(1 << 28,), maxshape=(None,), compression="gzip")


def group(file: h5py.File) -> None:
    file.create_group("labels")


def words(file: h5py.File) -> None:
    file.create_dataset("labels", data=["a"] * 60)


def compound(file: h5py.File) -> None:
    file.create_dataset("labels", data=np.zeros(60, dtype=[("a", "i8")]))


def not_whole(file: h5py.File) -> None:
    file.create_dataset("labels", data=np.repeat(np.arange(6), 10) + 0.5)


STRANGE = [external_link, soft_link, external_storage, virtual, strange_filter, nothing_stored, absurd_labels]
STRANGE += [chunk_bomb, group, words, compound, not_whole]


@pytest.mark.parametrize("make", STRANGE, ids=lambda make: make.__name__)
def test_hostile_hdf5(tmp_path, monkeypatch, make, small_memory):
    monkeypatch.setattr(feature_file, "parse_in_child", lambda path, finished=True: None)  # has its own tests below
    path = old_file(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        del file["labels"]
        make(file)
    with pytest.raises(UserError, match=r"f\.hdf5"):
        FeatureFile(path)


@pytest.mark.parametrize("shape", [(60, 1 << 30, 7, 7), (1 << 40, 8, 7, 7), (60, 8, 7, 7)])
def test_features_that_are_not_there(tmp_path, monkeypatch, shape, small_memory):
    monkeypatch.setattr(feature_file, "parse_in_child", lambda path, finished=True: None)
    path = old_file(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        del file["feature_map"]
        file.create_dataset("feature_map", shape, "f4", chunks=(1, 8, 7, 7))
    with pytest.raises(UserError, match=r"f\.hdf5"):
        FeatureFile(path)


@pytest.mark.parametrize(("script", "message"), [("kill -SEGV $$", "crash"), ("sleep 30", "hang"), ("exit 1", "crash")])
def test_a_file_that_breaks_the_hdf5_library_breaks_a_child_only(tmp_path, monkeypatch, real_child, script, message):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    path = old_file(tmp_path / "f.hdf5")
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(feature_file, "_CHILD_SECONDS", 1)
    with pytest.raises(UserError, match=rf"f\.hdf5.* HDF5 file.*{message}"):
        FeatureFile(path)


def test_the_child_reads_an_intact_file(tmp_path):
    with FeatureFile(old_file(tmp_path / "f.hdf5")) as file:
        np.testing.assert_array_equal(file.read(np.array([3]))[0], maps()[3].reshape(8, 49))
