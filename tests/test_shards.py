"""Extraction in shards: the file has the bytes of a single pass, and unfit parts are refused by name."""

import os
import shutil
import signal
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.commands.extract import main as command
from core.datasets.paths import resolve_images
from core.datasets.registry import DEMO
from core.features import writer
from core.features.extraction import extract, shard_rows
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
        path = extract(DEMO, data_root=root, out=final, config=config, shard=(index, count))
    return path


@pytest.fixture
def three(root, tmp_path) -> Path:
    """Three finished parts of which no file is made: another process holds its lock."""
    final = tmp_path / "f.hdf5"
    with Lock(final):
        shards(root, final, 3)
    assert not final.exists() and len(list(tmp_path.glob("f.hdf5.rows-*.npy"))) == 3
    return final


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_file_is_that_of_a_single_pass(root, single, tmp_path, count) -> None:
    final = tmp_path / "f.hdf5"
    assert shards(root, final, count) == final
    assert final.read_bytes() == single
    assert [p.name for p in tmp_path.iterdir()] == ["f.hdf5"]


@pytest.mark.parametrize("then", [(1, 0), (4, 0), (2, 1)])
def test_parts_of_another_division_are_taken_over(root, single, tmp_path, monkeypatch, then) -> None:
    """Two of three shards are done, and another number of processes goes on: their rows are not computed again."""
    final, (count, first), computed = tmp_path / "f.hdf5", then, []
    assert shards(root, final, 3, 2, 0).name == "f.hdf5.rows-0-12.npy"
    real = writer.Writer.write
    monkeypatch.setattr(
        writer.Writer, "write", lambda self, rows, maps: (computed.extend(rows), real(self, rows, maps))
    )
    shards(root, final, count, *[(first + i) % count for i in range(count)])
    assert sorted(computed) == [*range(12, 24)]
    assert final.read_bytes() == single and [p.name for p in tmp_path.iterdir()] == ["f.hdf5"]


@pytest.fixture
def in_tars(root, tmp_path) -> Path:
    """The same data with its photographs in two tars, unordered."""
    shutil.copytree(root / "xlsa17", tmp_path / "root" / "xlsa17")
    folder = Path("DEMO", "DEMO_creatures")
    (tmp_path / "root" / folder).mkdir(parents=True)
    for i in range(2):
        with tarfile.open(tmp_path / "root" / folder / f"{i}.tar", "w") as archive:
            for image in sorted((root / folder / "images").iterdir())[::-1][i::2]:
                archive.add(image, f"./images/{image.name}")
    return tmp_path / "root"


def test_two_photographs_of_one_key_in_tars_are_refused(in_tars) -> None:
    folder = in_tars / "DEMO" / "DEMO_creatures"
    shutil.copy(folder / "0.tar", folder / "2.tar")
    with pytest.raises(UserError, match=r"0\.tar/images/035\.png and .*2\.tar/images/035\.png have one key"):
        extract(DEMO, data_root=in_tars, out=in_tars / "f.hdf5", config=TINY)


def test_archives_beside_unpacked_photographs_are_not_opened(root, in_tars) -> None:
    folder, names = in_tars / "DEMO" / "DEMO_creatures", ["images/000.png", "images/001.png"]
    shutil.copytree(root / "DEMO" / "DEMO_creatures" / "images", folder / "images")
    (folder / "more.tar").write_bytes(b"compressed, or damaged")
    assert resolve_images(folder, names) == ([folder / name for name in names], [])


@pytest.mark.parametrize("given", ["root", "in_tars"])
def test_a_killed_shard_is_repeated(request, given, single, tmp_path) -> None:
    root = request.getfixturevalue(given)
    final, part = tmp_path / "f.hdf5", tmp_path / "f.hdf5.rows-0-16.npy"
    flags = [*FLAGS, "--data-root", str(root), "--out", str(final), "--device", "cpu", "--shard", "0/2"]
    process = forked(command, "DEMO", None, flags)
    deadline = time.time() + 60
    while time.time() < deadline and process.is_alive() and not (part.exists() and np.load(part)["crc32"].any()):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert shards(root, final, 2, 1).name == "f.hdf5.rows-16-36.npy"
    assert shards(root, final, 2, 0) == final and final.read_bytes() == single


@pytest.mark.parametrize("moment", ["copying", "renaming", "removing"])
def test_killed_while_finishing_ends_the_same(root, single, three, monkeypatch, moment) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "renaming":
            patch.setattr("core.files.atomic.os.replace", killed)
        else:
            patch.setattr(writer, "content_digest" if moment == "copying" else "remove_parts", killed)
        with pytest.raises(KeyboardInterrupt):
            shards(root, three, 3, 1)
    assert three.exists() == (moment == "removing") and len(list(three.parent.glob("*.npy"))) == 3
    assert shards(root, three, 3, 1) == three and three.read_bytes() == single
    assert [p.name for p in three.parent.iterdir()] == ["f.hdf5"]


def test_parts_of_other_settings_are_refused_by_name_and_the_command_removes_them(root, three, tmp_path) -> None:
    final = tmp_path / "my birds" / three.name
    final.parent.mkdir()
    for path in tmp_path.glob("f.hdf5.rows-*"):
        path.rename(final.with_name(path.name))
    with pytest.raises(UserError, match=r"rows-.*\.npy was begun with other settings.*pool: 1 ") as caught:
        shards(root, final, 3, 1, config=replace(TINY, pool=3))
    assert len(list(final.parent.glob("*.npy"))) == 3
    subprocess.run(["bash", "-c", str(caught.value).partition("delete it (")[2].partition(")")[0]], check=True)
    assert not list(final.parent.iterdir())


def test_a_row_that_the_disk_lost_is_refused_and_done_again(root, single, three) -> None:
    with open(three.with_name("f.hdf5.rows-12-24.npy"), "r+b") as raw:
        raw.seek(-5, os.SEEK_END)
        raw.write(b"\xff\x00\xff")
    with pytest.raises(UserError, match="row 23 .*lost.*run the same command again"):
        shards(root, three, 3, 0)
    assert not three.exists()
    assert shards(root, three, 3, 1) == three and three.read_bytes() == single


def test_a_part_cut_short_is_named(root, three) -> None:
    os.truncate(three.with_name("f.hdf5.rows-12-24.npy"), 999)
    with pytest.raises(UserError, match=r"rows-12-24\.npy is damaged.*delete it"):
        shards(root, three, 3, 0)


def test_every_row_is_in_one_shard() -> None:
    for images, size in ((36, 4), (1, 32), (14_340, 32), (1000, 7)):
        batches = -(-images // size)
        for count in {1, min(2, batches), min(7, batches), batches}:
            ranges = [shard_rows(images, size, i, count) for i in range(count)]
            assert [r for part in ranges for r in part] == list(range(images))
            assert all(r.start % size == 0 and len(r) for r in ranges)
    with pytest.raises(UserError, match="at most 9 shards"):
        shard_rows(36, 4, 0, 10)
    for text in ("8/8", "1", "a/b", "1/0"):
        with pytest.raises(UserError, match="--shard: .*i/n is needed"):
            command("DEMO", None, ["--shard", text])
