"""What breaks in practice: disks, power, single bytes, image folders. Nothing lost, nothing silently wrong."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from core.datasets import vectors as word_vectors
from core.datasets.registry import DEMO
from core.features.extraction import extract
from core.features.feature_file import FeatureFile, verify
from core.features.writer import Writer
from core.files import atomic as files
from core.files.atomic import atomic_path, write_bytes
from core.files.errors import UserError
from core.training.checkpoint import load_checkpoint, save_checkpoint
from tests.helpers_features import SHAPE, TINY, content, make_data, maps, metadata, write


def fails_with(number: int, after: int = 0):
    """Stands in for a system call that fails from its ``after``-th call on."""
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) > after:
            raise OSError(number, os.strerror(number))
        return len(args[1]) if len(args) > 1 else None

    return call


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("posix_fallocate", 0),
        ("pwrite", 0),
        ("pwrite", 31),
        ("pwrite", 60),
        ("pwrite", 121),
        ("fsync", 0),
        ("fsync", 2),
    ],
)
def test_a_full_disk_while_rows_are_written_leaves_what_the_next_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    path, real = tmp_path / "f.hdf5", getattr(os, name)
    calls = []

    def full(*args):
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(UserError, match="No space left"):
            fill(path)
    assert not path.exists()
    fill(path)
    (tmp_path / "other").mkdir()
    assert path.read_bytes() == write(tmp_path / "other" / "f.hdf5").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.hdf5", "other"]


def fill(path: Path) -> None:
    """Write what is missing of a feature file."""
    with Writer(path, content(), SHAPE) as writer:
        for row in np.flatnonzero(~writer.done):
            writer.write(np.array([row]), maps()[[row]])
            if row % 8 == 0:
                writer.flush()
        writer.finish()


_LIMITED = """
import resource, sys
from pathlib import Path
from tests.test_faults import *
folder, size = Path(sys.argv[1]), write(Path(sys.argv[1]) / "size").stat().st_size
(folder / "size").unlink()
actions = {
    "features": lambda: write(folder / "f.hdf5"),
    "checkpoint": lambda: save_checkpoint(folder / "c.safetensors", {"a": torch.ones(99999)}, {}),
    "bytes": lambda: write_bytes(folder / "b", bytes(99999)),
}
for limit in (0, 20_000, size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for name, action in actions.items():
        try:
            action()
        except UserError as error:
            assert "File too large" in str(error) or "No space left" in str(error), error
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            print(name, *[path.name for path in folder.iterdir()], flush=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
verify(fill(folder / "f.hdf5") or folder / "f.hdf5")
"""


def test_a_disk_that_takes_no_more_bytes(tmp_path: Path) -> None:
    """RLIMIT_FSIZE refuses writes beyond a size, as a quota does; HDF5's and safetensors' own writes too."""
    command = [sys.executable, "-c", _LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    nothing = ["features", "checkpoint", "bytes"]
    found = [" ".join([line.split()[0], *sorted(line.split()[1:])]) for line in done.stdout.splitlines()]
    assert found == nothing * 3, done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes(tmp_path / "f", b"old")
    monkeypatch.setattr(os, "fsync", fails_with(errno.ENOSPC))
    with pytest.raises(UserError, match="No space left on device. Nothing was changed"):
        write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_is_said_once_and_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    files._warn_no_fsync.cache_clear()
    monkeypatch.setattr(os, "fsync", fails_with(number))
    with caplog.at_level(logging.WARNING):
        verify(write(tmp_path / "f.hdf5"))
        write_bytes(tmp_path / "b", b"1")
    assert caplog.text.count("has no fsync") == 1


def test_a_failing_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fails_with(errno.EIO))
    with pytest.raises(UserError, match="Input/output error"):
        write(tmp_path / "f.hdf5")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As root a folder's mode refuses nothing, so the refusal is played."""
    data, real = make_data(tmp_path / "data"), os.open

    def refuse(path, flags, *args, **more):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and "f.hdf5" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=rf"cannot write .*f\.hdf5: {os.strerror(number)}"):
        extract(DEMO, data_root=data, out=tmp_path / "f.hdf5", config=TINY)
    monkeypatch.setattr(Path, "mkdir", lambda path, **_: fails_with(number)())
    with pytest.raises(UserError, match="Choose another place"):
        write_bytes(tmp_path / "new" / "b", b"1")


def test_a_lock_of_a_dead_process_is_no_obstacle_and_no_locks_at_all_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f.hdf5.lock").write_text("12345")
    write(tmp_path / "f.hdf5")
    monkeypatch.setattr(files.fcntl, "flock", fails_with(errno.ENOLCK))
    with pytest.raises(UserError, match="cannot lock files"):
        write(tmp_path / "g.hdf5")
    assert [p.name for p in tmp_path.iterdir()] == ["f.hdf5"]


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for pid, age in ((child.pid, 9999), (child.pid, 0), (os.getppid(), 9999)):
        old = tmp_path / f".f.{pid}.{age}.tmp"
        old = old.with_name(f".f.{pid}.tmp") if age else tmp_path / f".f.x.{pid}.tmp"
        old.write_bytes(b"half")
        os.utime(old, (time.time() - age,) * 2)
    write_bytes(tmp_path / "f", b"1")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["f", f".f.{os.getppid()}.tmp", f".f.x.{child.pid}.tmp"]
    )


def test_an_error_in_between_leaves_nothing(tmp_path: Path) -> None:
    def half() -> None:
        with atomic_path(tmp_path / "f") as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with pytest.raises(UserError, match="Disk quota exceeded"):
        half()
    assert not list(tmp_path.iterdir())


def flipped(good: bytes, at: int) -> bytes:
    bad = bytearray(good)
    bad[at] ^= 1 << at % 8
    return bytes(bad)


def outcome(read, path: Path):
    """What is read, or the text of the refusal."""
    try:
        return read(path)
    except UserError as error:
        return str(error)


def test_one_flipped_byte_anywhere_in_a_feature_file(tmp_path: Path) -> None:
    path = write(tmp_path / "f.hdf5")
    good = path.read_bytes()
    with FeatureFile(path) as file:
        rows, crcs = file.row_offset(0), good.index(file._row_crc32.tobytes())
    places = [*range(0, len(good), 149), *range(64), *range(505, 530), *range(crcs, crcs + 240, 7)]
    places += [*range(rows - 60, rows + 900, 31), *range(len(good) - 20, len(good))]
    for at in places:
        path.write_bytes(flipped(good, at))
        with pytest.raises(UserError, match=r"f\.hdf5"):
            verify(path)
    path.write_bytes(good)
    verify(path)


def test_a_row_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    """Alone, and with its checksum: the header holds those."""
    path = write(tmp_path / "f.hdf5")
    with FeatureFile(path) as file:
        rows, crcs = (file.row_offset(3), file.row_offset(40)), path.read_bytes().index(file._row_crc32.tobytes())
    changed = path.read_bytes()
    for (a, b), size, message in (
        (rows, 784, "row 3 .*is damaged"),
        ((crcs + 12, crcs + 160), 4, "was changed after it was finished"),
    ):
        first, second = changed[a : a + size], changed[b : b + size]
        changed = changed[:a] + second + changed[a + size : b] + first + changed[b + size :]
        path.write_bytes(changed)
        with pytest.raises(UserError, match=rf"f\.hdf5.*{message}"):
            verify(path)


def test_one_flipped_byte_in_a_partial_file_costs_its_row_only(tmp_path: Path) -> None:
    path = tmp_path / "f.hdf5"
    with Writer(path, content(), SHAPE) as writer:
        writer.write(np.arange(60), maps())
        writer.flush()
        offset, crcs = writer.row_offset(11), writer._places[0].crcs
    partial = tmp_path / "f.hdf5.partial"
    good = partial.read_bytes()
    for at in (offset + 5, crcs + 4 * 11 + 2):
        partial.write_bytes(flipped(good, at))
        with Writer(path, content(), SHAPE) as writer:
            assert np.flatnonzero(~writer.done).tolist() == [11]
    for at in (good.index(metadata().att.tobytes()), 520, good.index(b"images/30.png"), crcs - 1):
        partial.write_bytes(flipped(good, at))
        with pytest.raises(UserError, match=r"f\.hdf5\.partial (is damaged|was begun)"):
            Writer(path, content(), SHAPE)


@pytest.mark.parametrize("change", ["longer", "shorter", "empty"])
def test_a_partial_file_of_another_length_is_refused(tmp_path: Path, change: str) -> None:
    path, partial = tmp_path / "f.hdf5", tmp_path / "f.hdf5.partial"
    with Writer(path, content(), SHAPE) as writer:
        writer.write(np.arange(60), maps())
    good = partial.read_bytes()
    partial.write_bytes({"longer": good + b"x", "shorter": good[:-1], "empty": b""}[change])
    with pytest.raises(UserError, match=r"f\.hdf5\.partial is damaged.*delete it"):
        Writer(path, content(), SHAPE)


def test_a_run_that_ended_before_renaming_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "f.hdf5", os.replace

    def killed(source, target):
        if target == path:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(path)
    fill(path)
    (tmp_path / "other").mkdir()
    assert path.read_bytes() == write(tmp_path / "other" / "f.hdf5").read_bytes()


def test_a_header_that_was_cut_off_half_written_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "f.hdf5"
    with Writer(path, content(), SHAPE) as writer:
        writer.write(np.arange(60), maps())
    with open(tmp_path / "f.hdf5.partial", "r+b") as handle:
        handle.write(b"VSMRFEAT" + b"\1" * 33)
    fill(path)
    (tmp_path / "other").mkdir()
    assert path.read_bytes() == write(tmp_path / "other" / "f.hdf5").read_bytes()


def test_every_flipped_byte_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}, {"epoch": 3})
    good = path.read_bytes()
    spared = 0
    for at in range(len(good)):
        path.write_bytes(flipped(good, at))
        got = outcome(load_checkpoint, path)
        if isinstance(got, str):
            assert "c.safetensors" in got
        else:  # white space of the header: nothing that is read
            assert torch.equal(got[0]["a"], torch.arange(6.0).reshape(2, 3)) and got[1] == {"epoch": 3}
            spared += 1
    assert spared < 10


def test_every_flipped_byte_of_vectors_and_their_record(tmp_path: Path, no_child: None) -> None:
    path, vectors = tmp_path / "v.pkl", np.random.default_rng(0).random((2, 300)).astype(np.float32)
    word_vectors.write_attribute_vectors(path, word_vectors.AttributeVectors(vectors, ["a", "b"], [], {}), "test", None)
    good, record = path.read_bytes(), (tmp_path / "v.json").read_bytes()
    for at in [*range(250), *range(250, len(good), 7)]:
        path.write_bytes(flipped(good, at))
        with pytest.raises(UserError, match=r"v\.pkl"):
            word_vectors.load_attribute_vectors(path, 2)
    path.write_bytes(good)
    for at in range(len(record)):
        (tmp_path / "v.json").write_bytes(flipped(record, at))
        got = outcome(lambda path: word_vectors.load_attribute_vectors(path, 2), path)
        assert "v." in got if isinstance(got, str) else np.array_equal(got, vectors)


def test_truncated_at_any_length(tmp_path: Path) -> None:
    feature = write(tmp_path / "f.hdf5")
    save_checkpoint(tmp_path / "c.safetensors", {"a": torch.arange(6.0)}, {})
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(np.ones((2, 300))))
    readers = {
        feature: (verify, 3),  # the child process takes its time
        tmp_path / "c.safetensors": (load_checkpoint, 40),
        tmp_path / "v.pkl": (lambda path: word_vectors.load_attribute_vectors(path, 2), 40),
    }
    for path, (read, count) in readers.items():
        good = path.read_bytes()
        for length in {0, 1, len(good) - 1, *np.linspace(2, len(good) - 2, count).astype(int).tolist()}:
            path.write_bytes(good[:length])
            with pytest.raises(UserError, match=path.name):
                read(path)
