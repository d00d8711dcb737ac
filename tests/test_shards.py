"""Extraction in shards: the merged file has the bytes of a single pass, and unfit parts are refused by name."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from core.commands.extract import main as command
from core.commands.merge import main as merge_command
from core.datasets.registry import DEMO
from core.features.extraction import extract
from core.features.feature_file import FeatureFile
from core.features.merge import merge
from core.features.shards import Shard, local_rank, parse_shard, shard_of_environment
from core.files.atomic import Lock
from core.files.errors import UserError
from tests.helpers import forked
from tests.helpers_features import TINY, make_data

FLAGS = ["--backbone", "squeezenet1_1", "--weights", "random", "--batch-size", "4", "--input-size", "64"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def single(root) -> bytes:
    return extract(DEMO, data_root=root, out=root / "single.hdf5", config=TINY).read_bytes()


def shards(root: Path, final: Path, count: int, *which: int, config=TINY) -> Path:
    path = final
    for index in which or range(count):
        path = extract(DEMO, data_root=root, out=final, config=config, shard=Shard(index, count))
    return path


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_merged_file_is_that_of_a_single_pass(root, single, tmp_path, count) -> None:
    final = tmp_path / "f.hdf5"
    assert shards(root, final, count) == final
    assert final.read_bytes() == single
    assert [p.name for p in tmp_path.iterdir()] == ["f.hdf5"]


def test_in_any_order_and_again(root, single, tmp_path) -> None:
    final = tmp_path / "f.hdf5"
    assert shards(root, final, 3, 2, 0) == Shard(0, 3).part(final)
    assert shards(root, final, 3, 0) == Shard(0, 3).part(final)  # finished: read back
    assert shards(root, final, 3, 1) == final and final.read_bytes() == single
    assert shards(root, final, 3, 1) == final  # after the merge too


def test_a_killed_shard_is_repeated(root, single, tmp_path) -> None:
    final = tmp_path / "f.hdf5"
    flags = [*FLAGS, "--data-root", str(root), "--out", str(final), "--device", "cpu", "--shard", "0/2"]
    partial = tmp_path / "f.hdf5.shard-0-of-2.partial"
    process = forked(command, "DEMO", None, flags)
    deadline = time.time() + 60
    while time.time() < deadline and process.is_alive() and not (partial.exists() and crcs(partial).any()):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    shards(root, final, 2, 1)
    with pytest.raises(UserError, match="shard 0/2 is not finished|shard 0/2 is missing"):
        merge(final)
    assert shards(root, final, 2, 0) == final and final.read_bytes() == single


def crcs(path: Path) -> np.ndarray:
    try:
        with h5py.File(path, "r", locking=False) as file:
            return file["row_crc32"][()]
    except (OSError, KeyError):
        return np.zeros(0)


def test_an_interrupted_merge_goes_on(root, single, tmp_path, monkeypatch) -> None:
    from core.features.merge import Part

    final = tmp_path / "f.hdf5"
    real, calls = Part.read, []

    def dying(self, first, count):
        calls.append(count)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, first, count)

    with monkeypatch.context() as patch:
        patch.setattr(Part, "read", dying)
        with pytest.raises(KeyboardInterrupt):
            shards(root, final, 3)
    assert not final.exists()
    assert merge_command([str(final), "--keep"]) == 0
    assert final.read_bytes() == single and Shard(2, 3).part(final).is_file()


@pytest.fixture
def three(root, tmp_path, monkeypatch) -> Path:
    """Three finished parts that are not merged."""
    final = tmp_path / "f.hdf5"
    lock = Lock(final.with_name(final.name + ".merge"))
    assert shards(root, final, 3) == Shard(2, 3).part(final)  # the last one leaves it to whoever holds the lock
    lock.release()
    return final


def test_missing_doubled_and_foreign_parts_are_refused_by_name(root, single, three) -> None:
    first, second = (Shard(i, 3).part(three) for i in range(2))
    kept = second.read_bytes()

    second.unlink()
    with pytest.raises(UserError, match=r"shard 1/3 is missing: .*f.hdf5.shard-1-of-3.* --shard 1/3"):
        merge(three)
    shutil.copy(first, second)
    with pytest.raises(UserError, match="shard-1-of-3 holds shard 0/3, not 1/3"):
        merge(three)
    second.unlink()
    other = three.with_name("other.hdf5")
    lock = Lock(other.with_name(other.name + ".merge"))
    shards(root, other, 3, config=replace(TINY, flip=True))
    lock.release()
    shutil.move(Shard(1, 3).part(other), second)
    with pytest.raises(UserError, match=r"shard-1-of-3 is of another extraction .*flip: 'average of both views' there"):
        merge(three)
    with pytest.raises(UserError, match="shard-1-of-3 was made with other settings"):
        shards(root, three, 3, 1)
    second.write_bytes(kept)
    Shard(0, 2).part(three).write_bytes(kept)
    with pytest.raises(UserError, match="divisions into 2, 3 shards"):
        merge(three)
    with pytest.raises(UserError, match="of an extraction in 2 shards"):
        shards(root, three, 3, 0)
    Shard(0, 2).part(three).unlink()
    with pytest.raises(UserError, match="of an extraction in 3 shards, and this one would be without --shard"):
        extract(DEMO, data_root=root, out=three, config=TINY)
    assert not three.exists()
    assert merge(three).read_bytes() == single
    with pytest.raises(UserError, match="no part of"):
        merge(three)


@pytest.mark.parametrize("start", [8, 16])
def test_parts_that_overlap_or_leave_rows_out_are_refused_by_name(root, three, monkeypatch, start) -> None:
    Shard(1, 3).part(three).unlink()
    lock = Lock(three.with_name(three.name + ".merge"))
    with monkeypatch.context() as patch:
        patch.setattr(Shard, "rows", lambda *_: range(start, 24))
        shards(root, three, 3, 1)
    lock.release()
    with pytest.raises(UserError, match=rf"shard-1-of-3 holds rows {start} to 23, but 12 is the next.*--shard 1/3"):
        merge(three)
    assert not three.exists()


@pytest.mark.parametrize("where", ["row", "metadata", "end"])
def test_a_damaged_part_is_refused_and_mended(root, single, three, where) -> None:
    path = Shard(1, 3).part(three)
    data = bytearray(path.read_bytes())
    with h5py.File(path) as file:
        place = {"row": file["feature_map"], "metadata": file["att"]}.get(where)
        at = place.id.get_offset() + 5 if place is not None else 0
    if where == "end":
        data = data[:-100]
    else:
        data[at] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-1-of-3.*(damaged|checksum)"):
        merge(three)
    assert not three.exists()
    if where == "row":  # as the message says
        path.rename(f"{path}.partial")
    else:
        path.unlink()
    assert shards(root, three, 3, 1) == three
    assert three.read_bytes() == single


def test_a_part_is_no_feature_file_and_is_resumed_with_its_settings_only(root, tmp_path) -> None:
    final = tmp_path / "f.hdf5"
    shards(root, final, 3, 0)
    with pytest.raises(UserError, match="part of an extraction in shards"):
        FeatureFile(Shard(0, 3).part(final))
    partial = extract(DEMO, data_root=root, out=final, config=TINY, shard=Shard(1, 3), limit=4)
    assert partial.name == "f.hdf5.shard-1-of-3.partial"
    with pytest.raises(UserError, match="begun with other settings.*flip"):
        shards(root, final, 3, 1, config=replace(TINY, flip=True))


def test_a_process_for_each_device(root, single, tmp_path, monkeypatch) -> None:
    fresh = multiprocessing.get_context
    other = tmp_path / "g.hdf5"
    flags = [*FLAGS, "--data-root", str(root), "--out", str(other)]
    image = next((root / "DEMO").rglob("030.png"))
    kept = image.read_bytes()
    image.write_bytes(b"junk")
    monkeypatch.setattr(multiprocessing, "get_context", lambda how: fresh("fork"))  # they need not import anything
    try:
        with pytest.raises(UserError, match=r"shard 1/2 on cpu \(exit code 2\) did not finish"):
            command("DEMO", None, [*flags, "--devices", "cpu,cpu"])
    finally:
        image.write_bytes(kept)
        monkeypatch.undo()
    assert Shard(0, 2).part(other).is_file()
    assert command("DEMO", None, [*flags, "--devices", "cpu,cpu"]) == 0
    assert other.read_bytes() == single


def test_the_environment_says_which_shard() -> None:
    array = {f"SLURM_ARRAY_TASK_{k}": v for k, v in {"ID": "5", "MIN": "3", "MAX": "6", "COUNT": "4"}.items()}
    assert shard_of_environment({}) == Shard(0, 1)
    assert shard_of_environment(array) == Shard(2, 4)
    assert shard_of_environment({"RANK": "3", "WORLD_SIZE": "8"}) == Shard(3, 8)
    step = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1"}
    assert shard_of_environment(step) == Shard(1, 2) and local_rank(step) == 1
    assert shard_of_environment(array | step) == Shard(5, 8)  # four tasks of two processes: none does another's
    assert shard_of_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == Shard(0, 1)  # a batch script, no step
    assert local_rank({}) is None
    with pytest.raises(UserError, match="with gaps"):
        shard_of_environment(array | {"SLURM_ARRAY_TASK_MAX": "9"})


def test_every_row_is_in_one_shard() -> None:
    for images, size in ((36, 4), (1, 32), (14_340, 32), (1000, 7)):
        batches = -(-images // size)
        for count in {1, min(2, batches), min(7, batches), batches}:
            ranges = [Shard(i, count).rows(images, size) for i in range(count)]
            assert [r for part in ranges for r in part] == list(range(images))
            assert all(r.start % size == 0 and len(r) for r in ranges)
    with pytest.raises(UserError, match="at most 9 shards"):
        Shard(0, 10).rows(36, 4)
    for text in ("8/8", "1", "-1/3", "a/b", "1/0"):
        with pytest.raises(UserError, match="i/n is needed"):
            parse_shard(text)


def test_pooled_and_projected(root, single, tmp_path) -> None:
    whole = FeatureFile(root / "single.hdf5")
    rows = np.arange(8)
    maps = whole.read(rows).astype(np.float32)
    none = extract(DEMO, data_root=root, config=replace(TINY, regions="none"), out=tmp_path / "none.hdf5")
    with FeatureFile(none) as file:
        assert file.shape == (36, 512, 1) and file.provenance["regions_kept"].startswith("none")
        np.testing.assert_allclose(file.read(rows)[:, :, 0], maps.mean(axis=2), atol=2e-3)
    both = replace(TINY, regions="none", project="16")
    small = extract(DEMO, data_root=root, config=both)
    assert small.name == "feature_map_squeezenet1_1_64px_pooled_project_16_DEMO.hdf5"
    with FeatureFile(small) as file:
        assert file.shape == (36, 16, 1) and file.provenance["projection"].startswith("random 16x512, seed 0, sha256 ")
    matrix = np.eye(512, dtype=np.float32)[[3, 1]]
    np.save(tmp_path / "pick.npy", matrix)
    picked = replace(TINY, project=str(tmp_path / "pick.npy"))
    with FeatureFile(extract(DEMO, data_root=root, config=picked, out=tmp_path / "p.hdf5")) as file:
        np.testing.assert_allclose(file.read(rows), maps[:, [3, 1]], atol=2e-3)
    np.save(tmp_path / "bad.npy", matrix[:, :5])
    for wrong, said in (("bad.npy", r"\(d,512\) is needed"), ("no.npy", "neither a number"), ("600", "from 1 to 511")):
        project = wrong if wrong == "600" else str(tmp_path / wrong)
        with pytest.raises(UserError, match=said):
            extract(DEMO, data_root=root, config=replace(TINY, project=project), out=tmp_path / "q.hdf5")
