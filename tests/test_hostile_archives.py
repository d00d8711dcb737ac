"""Hostile archives: nothing is written outside the folder, no link or device is made, sizes are bounded."""

from __future__ import annotations

import contextlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from core.datasets import download
from core.files.errors import UserError


def tar_of(path: Path, *members: tuple[str, bytes, str, int]) -> None:
    with tarfile.open(path, "w:gz") as t:
        for name, kind, link, size in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, size
            t.addfile(info, io.BytesIO(bytes(size)))


TARS = {
    "absolute": ("/OWNED", tarfile.REGTYPE, "", 1),
    "parent": ("top/../../OWNED", tarfile.REGTYPE, "", 1),
    "symbolic link": ("top/a", tarfile.SYMTYPE, "/etc/passwd", 0),
    "hard link": ("top/a", tarfile.LNKTYPE, "/etc/passwd", 0),
    "device": ("top/a", tarfile.CHRTYPE, "", 0),
}


@pytest.mark.parametrize("name", TARS)
def test_hostile_tar(tmp_path, name):
    tar_of(tmp_path / "a.tgz", ("top/good", tarfile.REGTYPE, "", 3), TARS[name])
    nothing_outside(tmp_path)


@pytest.mark.parametrize("name", ["/OWNED", "../../OWNED", "C:\\OWNED", "..\\..\\OWNED"])
def test_hostile_zip(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.tgz", "w") as z:
        z.writestr("top/good", b"1")
        z.writestr(zipfile.ZipInfo(name), b"1")
    nothing_outside(tmp_path)


def nothing_outside(folder: Path) -> None:
    """Refused, or unpacked as plain files inside the folder."""
    with contextlib.suppress(UserError):
        download.extract(folder / "a.tgz", folder / "in" / "to")
    assert sorted(p.name for p in folder.iterdir()) == ["a.tgz", "in"]
    assert [p.name for p in (folder / "in").iterdir()] == ["to"] and not Path("/OWNED").exists()
    assert all((p.is_file() or p.is_dir()) and not p.is_symlink() for p in (folder / "in").rglob("*"))


def test_a_damaged_archive_is_one_sentence_and_leaves_nothing(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:xz") as t:
        t.addfile(tarfile.TarInfo("top"), io.BytesIO())
    content = bytearray((tmp_path / "a.tgz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.tgz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tgz"):
        download.extract(tmp_path / "a.tgz", tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


def test_unpacking_clears_what_a_killed_process_left_and_refuses_a_second(tmp_path):
    tar_of(tmp_path / "a.tgz", ("top/good", tarfile.REGTYPE, "", 3))
    (tmp_path / "to" / ".unpack-killed" / "top").mkdir(parents=True)
    lock = download.Lock(tmp_path / "to" / ".unpack")
    with pytest.raises(UserError, match="another process"):
        download.extract(tmp_path / "a.tgz", tmp_path / "to")
    lock.release()
    download.extract(tmp_path / "a.tgz", tmp_path / "to")
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["top"]
