"""The feature file: checksums as HDF5's, crash-safety, damage that is noticed, DAZLE's old layout."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from core.datasets.registry import DEMO
from core.datasets.xlsa17 import Metadata
from core.features.feature_file import FeatureFile, verify
from core.features.layout import fletcher32, word_sum
from core.features.writer import Content, Writer
from core.files.errors import UserError

SHAPE = (8, 7, 7)


def metadata(n: int = 60) -> Metadata:
    """Six classes, the last two unseen; n must be a multiple of six."""
    labels = np.repeat(np.arange(6), n // 6)
    seen = np.flatnonzero(labels < 4)
    test_seen, trainval = seen[::5], np.setdiff1d(seen, seen[::5])
    return Metadata(
        name="DEMO",
        image_files=[f"images/{i}.png" for i in range(n)],
        labels=labels,
        class_names=[f"class {c}" for c in range(6)],
        att=np.random.default_rng(0).random((6, 5)).astype(np.float32),
        original_att=np.ones((6, 5), np.float32),
        trainval_loc=trainval,
        test_seen_loc=test_seen,
        test_unseen_loc=np.flatnonzero(labels >= 4),
        train_loc=trainval[labels[trainval] < 3],
        val_loc=trainval[labels[trainval] == 3],
        split_sha256="0" * 64,
    )


def content(n: int = 60, **other: str | int) -> Content:
    return Content(metadata(n), {"dataset": "DEMO", "backbone": "tiny", **other}, np.ones((5, 3), np.float32))


def maps(n: int = 60) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, *SHAPE)).astype(np.float16)


def write(path: Path, n: int = 60) -> Path:
    with Writer(path, content(n), SHAPE) as writer:
        writer.write(np.arange(n), maps(n))
        return writer.finish()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("fill", ["random", "zeros", "ones_bits", "one_word", "65535"])
def test_fletcher_equals_hdf5s(tmp_path: Path, dtype: str, fill: str) -> None:
    values = np.random.default_rng(2).standard_normal((1, 64, 7, 7)).astype(dtype)
    raw = values.reshape(-1).view(np.uint16)
    if fill != "random":
        raw[:] = 0xFFFF if fill == "ones_bits" else 0
        raw[-1] = {"one_word": 1, "65535": 0xFFFF}.get(fill, raw[-1])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=values, chunks=values.shape, fletcher32=True)
        chunk = dataset.id.read_direct_chunk((0, 0, 0, 0))[1]
    assert int.from_bytes(chunk[-4:], "little") == fletcher32(values)


def test_fletcher_of_a_very_long_row_equals_hdf5s(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 1 << 16, 500_000).astype(np.uint16)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("x", data=values, chunks=values.shape, fletcher32=True)
        chunk = dataset.id.read_direct_chunk((0,))[1]
    assert int.from_bytes(chunk[-4:], "little") == fletcher32(values)


def test_written_file_reads_back_through_h5py_and_reader(tmp_path: Path) -> None:
    path = write(tmp_path / "f.hdf5")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["feature_map"][()], maps())
        assert file["feature_map"].fletcher32 and file.attrs["complete"]
    with FeatureFile(path) as file:
        rows = np.array([5, 0, 59, 5])
        got = file.read(rows)
        assert got.shape == (4, 8, 49) and got.dtype == np.float16
        np.testing.assert_array_equal(got, maps()[rows].reshape(4, 8, 49))
        m = file.to_metadata(DEMO)
        np.testing.assert_array_equal(m.val_loc, metadata().val_loc)
        file.expect(np.array([5, 0]))  # a hint: nothing to see
        assert m.class_names == metadata().class_names and file.image_files == metadata().image_files
    assert [p.name for p in tmp_path.iterdir()] == ["f.hdf5"]
    verify(path)


def test_resume_keeps_flushed_rows_and_equals_one_run(tmp_path: Path) -> None:
    path = tmp_path / "f.hdf5"
    with Writer(path, content(), SHAPE) as writer:
        writer.write(np.arange(20), maps()[:20])
    assert not path.exists()
    with open(tmp_path / "f.hdf5.partial.rows", "ab") as handle:
        handle.write(b"torn tail")
    with Writer(path, content(), SHAPE) as writer:
        assert writer.done.sum() == 20
        with pytest.raises(UserError, match="40 rows"):
            writer.finish()
        writer.write(np.arange(20, 60), maps()[20:])
        writer.finish()
    (tmp_path / "other").mkdir()
    assert path.read_bytes() == write(tmp_path / "other" / "f.hdf5").read_bytes()


def test_a_row_that_the_journal_names_but_the_disk_lost_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "f.hdf5"
    with Writer(path, content(), SHAPE) as writer:
        writer.write(np.arange(20), maps()[:20])
        writer.flush()
        os.pwrite(writer._data, b"\0" * 16, writer._offsets[7])
    with Writer(path, content(), SHAPE) as writer:
        assert writer.done.sum() == 19 and not writer.done[7]


def test_other_settings_a_second_writer_and_nan_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.hdf5"
    with Writer(path, content(), SHAPE) as writer:
        with pytest.raises(UserError, match="another process"):
            Writer(path, content(), SHAPE)
        with pytest.raises(UserError, match="row 3"):
            writer.write(np.array([3]), np.full((1, *SHAPE), 1e6, np.float32))
    with pytest.raises(UserError, match="backbone: 'tiny' there, 'large' now.*--out"):
        Writer(path, content(backbone="large"), SHAPE)
    with pytest.raises(UserError, match="no feature file.*unfinished"):
        FeatureFile(path)


_KILLED = """
import sys, numpy as np
from tests.test_feature_file import *
with Writer(Path(sys.argv[1]), content(600), SHAPE) as writer:
    for row in np.flatnonzero(~writer.done):
        writer.write(np.array([row]), maps(600)[[row]])
        if row % 16 == 0:
            writer.flush()
    writer.finish()
"""


def test_killed_at_random_moments_equals_one_run(tmp_path: Path) -> None:
    path = tmp_path / "f.hdf5"
    partial = tmp_path / "f.hdf5.partial.rows"
    command = [sys.executable, "-c", _KILLED, str(path)]
    for wait in (0.0, 0.05, 0.1):
        before = partial.stat().st_size if partial.exists() else 0
        process = subprocess.Popen(command)
        while process.poll() is None and (not partial.exists() or partial.stat().st_size <= before):
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command).returncode == 0
    (tmp_path / "other").mkdir()
    assert path.read_bytes() == write(tmp_path / "other" / "f.hdf5", 600).read_bytes()


def test_flipped_byte_truncation_and_junk_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "f.hdf5")
    with FeatureFile(path) as file:
        assert file._offsets is not None
        offset = int(file._offsets[11])
    good = path.read_bytes()
    bad = bytearray(good)
    bad[offset + 100] ^= 1
    path.write_bytes(bad)
    with pytest.raises(UserError, match=r"f\.hdf5: row 11 \(images/11\.png\) is damaged"):
        verify(path)
    for damaged in (good[: len(good) // 2], good[:-1], b"", b"not hdf5 at all" * 99):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="f.hdf5"):
            verify(path)


@pytest.mark.parametrize("lacks", ["", "att", "labels", "feature_map"])
def test_old_layout(tmp_path: Path, lacks: str) -> None:
    """DAZLE's files: float32, gzip, no names, no attributes, no train/val."""
    path, m = tmp_path / "old.hdf5", metadata()
    arrays = {"labels": m.labels, "att": m.att, "original_att": m.original_att}
    arrays |= {key: getattr(m, key) for key in ("trainval_loc", "test_seen_loc", "test_unseen_loc")}
    with h5py.File(path, "w") as file:
        file.create_dataset("feature_map", data=maps().astype(np.float32), compression="gzip")
        for key, value in arrays.items():
            file.create_dataset(key, data=value, compression="gzip")
        if lacks:
            del file[lacks]
    if lacks:
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
        verify(path)


def test_incomplete_and_overlapping_splits_are_refused(tmp_path: Path) -> None:
    path, m = tmp_path / "f.hdf5", metadata()
    m.test_seen_loc = np.append(m.test_seen_loc, m.trainval_loc[0])
    with Writer(path, replace(content(), metadata=m), SHAPE) as writer:
        writer.write(np.arange(60), maps())
        writer.finish()
    with FeatureFile(path) as file, pytest.raises(UserError, match="share 1 images"):
        file.to_metadata(DEMO)
    with h5py.File(path, "r+") as file:
        file.attrs.modify("complete", False)
    with pytest.raises(UserError, match="not complete"):
        FeatureFile(path)


def test_a_file_changed_by_another_program_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        file["labels"][0] = 1
    with pytest.raises(UserError, match="changed after it was written"):
        FeatureFile(path)


def test_a_file_from_before_there_were_seals_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:  # which takes off the seal
        file.attrs.modify("format_version", 1)
    with FeatureFile(path) as file:
        assert file._seal is None and file._offsets is not None
        np.testing.assert_array_equal(file.read(np.array([7]))[0], maps()[7].reshape(8, 49))


@pytest.mark.parametrize("spot", [0, 100, 783])
def test_a_row_damaged_after_it_was_read_is_named(tmp_path: Path, spot: int) -> None:
    path = write(tmp_path / "f.hdf5")
    with FeatureFile(path) as file:
        assert file._offsets is not None
        file.read(np.array([11, 12]))
        with open(path, "r+b") as raw:  # the file stays the same one to whoever has it open
            raw.seek(int(file._offsets[11]) + spot)
            byte = raw.read(1)[0]
            raw.seek(-1, os.SEEK_CUR)
            raw.write(bytes([byte ^ 1]))
        file.read(np.array([12, 10]))
        for rows in ([11], [12, 11], [11, 11]):
            with pytest.raises(UserError, match=r"f\.hdf5: row 11 \(images/11\.png\) is damaged"):
                file.read(np.array(rows))
        os.truncate(path, int(file._offsets[12]) + 5)
        with pytest.raises(UserError, match=r"truncated at row 12 \(images/12\.png\)"):
            file.read(np.array([10, 12]))


def test_nan_is_named_however_often_its_row_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "f.hdf5")
    values = maps()[7]
    values[3, 2, 1] = np.nan
    with FeatureFile(path) as file:
        assert file._offsets is not None
        with open(path, "r+b") as raw:
            raw.seek(int(file._offsets[7]))
            raw.write(values.tobytes() + fletcher32(values).to_bytes(4, "little"))
        for _ in range(2):
            with pytest.raises(UserError, match=r"row 7 \(images/7\.png\) holds NaN"):
                file.read(np.array([6, 7]))


@pytest.mark.parametrize("n", [2, 4, 8, 98, 200704])
def test_the_sum_of_words_notices_every_flipped_bit(n: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, n, dtype=np.uint8)
    before = word_sum(values)
    for bit in range(0, 8 * n, max(1, 8 * n // 50)):
        values[bit // 8] ^= 1 << bit % 8
        assert word_sum(values) != before
        values[bit // 8] ^= 1 << bit % 8
    assert word_sum(values) == before


_inherited: FeatureFile | None = None


def _read(given: FeatureFile | None, seed: int) -> np.ndarray:
    """What a worker process does; without a reader of its own it uses the one it was forked with."""
    file = given or _inherited
    assert file is not None
    rng = np.random.default_rng(seed)
    return np.concatenate([file.read(rng.integers(0, 60, 20)) for _ in range(30)])


@pytest.mark.parametrize("layout", ["new", "old"])
@pytest.mark.parametrize("how", ["fork", "spawn", "inherited"])
def test_worker_processes_read_what_the_parent_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, layout: str
) -> None:
    path = write(tmp_path / "new.hdf5")
    if layout == "old":
        with h5py.File(path) as new, h5py.File(tmp_path / "old.hdf5", "w") as old:
            for key in ("labels", "trainval_loc", "test_seen_loc", "test_unseen_loc", "att"):
                old[key] = new[key][()]
            old.create_dataset("feature_map", data=new["feature_map"][()].astype(np.float32), compression="gzip")
        path = tmp_path / "old.hdf5"
    context = multiprocessing.get_context("spawn" if how == "spawn" else "fork")
    with FeatureFile(path) as file:
        expected = [_read(file, seed) for seed in range(4)]
        monkeypatch.setattr(sys.modules[__name__], "_inherited", file if how == "inherited" else None)
        with ProcessPoolExecutor(2, context) as pool:
            found = pool.map(_read, [None if how == "inherited" else file] * 4, range(4))
            for seed, (a, b) in enumerate(zip(expected, found, strict=True)):
                assert np.array_equal(a, b), seed
                assert np.array_equal(a, _read(file, seed))  # the parent reads meanwhile
