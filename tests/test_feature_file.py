"""The feature file: crash-safety, damage that is noticed, whose data it holds, older layouts."""

import errno
import os
import zlib
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from core.datasets.registry import DEMO
from core.features import feature_file
from core.features.feature_file import FeatureFile
from core.features.writer import Writer
from core.files.atomic import Busy
from core.files.errors import UserError
from tests.helpers_features import SHAPE, content, dazle, maps, metadata, write

zlib_crc32 = zlib.crc32


def read_all(path: Path) -> None:
    """Every row, which compares it with its checksum."""
    with FeatureFile(path) as file:
        file.read(np.arange(file.shape[0]))


def version_3(path: Path) -> Path:
    """A file as format 3 was: a header in front of the HDF5 data, which holds the digest."""
    whole, crcs = content(), [zlib.crc32(one.tobytes()) for one in maps()]
    with h5py.File(path, "w", userblock_size=512) as file:
        file.attrs.update({**whole.provenance, "format_version": 3})
        file["feature_map"], file["row_crc32"] = maps(), np.array(crcs, "<u4")
        for key, values in whole.arrays().items():
            file[key] = values
    return path


def test_written_file_reads_back_through_h5py_and_reader(tmp_path: Path) -> None:
    path = write(tmp_path / "f.hdf5")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["feature_map"][()], maps())
        assert file["feature_map"].chunks is None and file.attrs["format_version"] == 4
        assert file["row_crc32"][5] == zlib.crc32(maps()[5].tobytes())
    with FeatureFile(path) as file:
        rows = np.array([5, 0, 59, 5])
        got = file.read(rows)
        assert got.shape == (4, 8, 49) and got.dtype == np.float16
        np.testing.assert_array_equal(got, maps()[rows].reshape(4, 8, 49))
        m = file.to_metadata(DEMO)
        np.testing.assert_array_equal(m.val_loc, metadata().val_loc)
        assert m.class_names == metadata().class_names and m.image_files == metadata().image_files
    assert [p.name for p in tmp_path.iterdir()] == ["f.hdf5"]
    read_all(path)


def test_other_settings_a_second_writer_and_nan_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.hdf5"
    with Writer(path, content(), SHAPE) as writer:
        with pytest.raises(Busy, match="another process"):
            Writer(path, content(), SHAPE)
        with pytest.raises(UserError, match="row 3"):
            writer.write(np.array([3]), np.full((1, *SHAPE), 1e6, np.float32))
    with pytest.raises(UserError, match="backbone: 'tiny' there, 'large' now.*another file"):
        Writer(path, content(backbone="large"), SHAPE)
    with pytest.raises(UserError, match="no feature file"):
        FeatureFile(path)


@pytest.mark.parametrize("lacks", ["", "att", "labels", "feature_map"])
def test_old_layout(tmp_path: Path, lacks: str) -> None:
    """DAZLE's files: float32, gzip, no names, no attributes, no train/val."""
    m = metadata()
    path = dazle(tmp_path / "old.hdf5", m, maps().astype(np.float32))
    if lacks:
        with h5py.File(path, "r+") as file:
            del file[lacks]
        with pytest.raises(UserError, match=f"lacks {lacks}"):
            FeatureFile(path)
        return
    with FeatureFile(path) as file:
        rows = np.array([40, 3, 3, 17])
        np.testing.assert_array_equal(file.read(rows), maps().astype(np.float32)[rows].reshape(4, 8, 49))
        drawn = file.to_metadata(DEMO)
        assert not np.intersect1d(drawn.labels[drawn.train_loc], drawn.labels[drawn.val_loc]).size
        np.testing.assert_array_equal(np.union1d(drawn.train_loc, drawn.val_loc), m.trainval_loc)
    with h5py.File(path, "r+") as file:
        file["feature_map"][5, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="row 5 holds NaN"):
        read_all(path)


def test_the_digest_is_of_the_rows_too(tmp_path: Path) -> None:
    digests = set()
    for value in (0.5, 0.25):
        with FeatureFile(write(tmp_path / f"{value}.hdf5", values=np.full((60, *SHAPE), value))) as file:
            digests.add(file.digest())
    assert len(digests) == 2


def test_files_of_the_format_before_are_read_and_their_rows_checked(tmp_path: Path) -> None:
    path = version_3(tmp_path / "f.hdf5")
    with FeatureFile(path) as file:
        np.testing.assert_array_equal(file.read(np.array([7, 3])), maps()[[7, 3]].reshape(2, 8, 49))
        assert file.to_metadata(DEMO).class_names == metadata().class_names
        first = file.digest()
    with h5py.File(path, "r+") as file:
        file["feature_map"][7, 0, 0, 0] += 1
    with pytest.raises(UserError, match=r"row 7 \(images/7\.jpg\) is damaged"):
        read_all(path)
    with h5py.File(path, "r+") as file:
        file["labels"][0] = 1
    assert FeatureFile(path).digest() != first


def test_a_row_is_compared_with_its_checksum_when_it_is_first_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, compared = write(tmp_path / "f.hdf5"), []
    monkeypatch.setattr(feature_file.zlib, "crc32", lambda data: compared.append(1) or zlib_crc32(data))
    with FeatureFile(path) as file:
        for rows, new in (([3, 4], 2), ([4, 3, 3], 0), ([5], 1)):
            compared.clear()
            file.read(np.array(rows))
            assert len(compared) == new


@pytest.mark.parametrize("labels", [["a"] * 60, metadata().labels + 0.5], ids=["words", "fractions"])
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: object) -> None:
    path = write(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        del file["labels"]
        file["labels"] = labels
    with pytest.raises(UserError, match=r"f\.hdf5: labels is .*; whole numbers are needed"):
        FeatureFile(path)


def test_one_flipped_byte_is_named_or_changes_nothing(tmp_path: Path) -> None:
    """HDF5's headers have gaps that nobody reads; everything else is under a checksum."""
    path = write(tmp_path / "f.hdf5")
    good, expected = path.read_bytes(), maps().reshape(60, 8, 49)
    with FeatureFile(path) as file:
        rows, digest = file.offset, file.digest()
    refused = 0
    for at in [*range(0, rows, 37), *range(rows, len(good), 997), *range(len(good) - 20, len(good))]:
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        with suppress(UserError):
            refused += 1
            with FeatureFile(path) as file:
                assert np.array_equal(file.read(np.arange(60)), expected) and file.digest() == digest
            refused -= 1
    assert refused > 100


@pytest.mark.parametrize(
    ("name", "after"),
    [("posix_fallocate", 0), ("posix_fallocate", 1), ("fsync", 0), ("fsync", 2)],
)
def test_a_full_disk_leaves_what_the_next_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    path, real = tmp_path / "f.hdf5", getattr(os, name)
    calls = []

    def full(*args: object) -> object:
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(UserError, match="No space left"):
            write(path)
    assert not path.exists()
    with Writer(path, content(), SHAPE) as writer:
        assert writer.done.sum() == {"posix_fallocate": 60 * after, "fsync": 30 * after}[name]
        writer.write(np.flatnonzero(~writer.done), maps()[~writer.done])
        writer.finish()
    (tmp_path / "other").mkdir()
    assert path.read_bytes() == write(tmp_path / "other" / "f.hdf5").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.hdf5", "other"]
