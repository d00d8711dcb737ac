"""Hostile archives: nothing is written outside the folder, no link or device is made, sizes are bounded."""

from __future__ import annotations

import io
import stat
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
    "symbolic link": ("top/a", tarfile.SYMTYPE, "b", 0),
    "hard link": ("top/a", tarfile.LNKTYPE, "/etc/passwd", 0),
    "device": ("top/a", tarfile.CHRTYPE, "", 0),
    "block device": ("top/a", tarfile.BLKTYPE, "", 0),
    "pipe": ("top/a", tarfile.FIFOTYPE, "", 0),
    "extended header of 64 MiB": ("top/a", tarfile.XHDTYPE, "", 1 << 26),
    "long name of 64 MiB": ("././@LongLink", tarfile.GNUTYPE_LONGNAME, "", 1 << 26),
}


@pytest.mark.parametrize("name", TARS)
def test_hostile_tar(tmp_path, name, small_memory):
    tar_of(tmp_path / "a.tgz", ("top/good", tarfile.REGTYPE, "", 3), TARS[name])
    refused(tmp_path)


@pytest.mark.parametrize("name", ["/OWNED", "C:\\OWNED", "\\OWNED", "..\\..\\OWNED", "pipe", "device"])
def test_hostile_zip(tmp_path, name):
    info = zipfile.ZipInfo(name)
    kinds = {"pipe": stat.S_IFIFO, "device": stat.S_IFCHR}
    info.external_attr = (kinds.get(name, stat.S_IFREG) | 0o644) << 16
    with zipfile.ZipFile(tmp_path / "a.tgz", "w") as z:
        z.writestr("top/good", b"1")
        z.writestr(info, b"1")
    refused(tmp_path)


def test_too_many_empty_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SIZE_LIMIT", 1 << 17)
    tar_of(tmp_path / "a.tgz", *[(f"top/{i}", tarfile.REGTYPE, "", 0) for i in range(300)])
    refused(tmp_path)


def test_damaged_xz_and_locked_zip(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:xz") as t:
        t.addfile(tarfile.TarInfo("top"), io.BytesIO())
    content = bytearray((tmp_path / "a.tgz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.tgz").write_bytes(content)
    refused(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.tgz", "w") as z:
        z.writestr("top/a", b"1")
    content = (tmp_path / "a.tgz").read_bytes()
    (tmp_path / "a.tgz").write_bytes(
        content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")
    )
    refused(tmp_path)


def refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"cannot unpack .*a\.tgz"):
        download.extract(folder / "a.tgz", folder / "in" / "to")
    assert not list((folder / "in" / "to").iterdir())
    assert sorted(p.name for p in folder.iterdir()) == ["a.tgz", "in"]
    assert not Path("/OWNED").exists()


def test_unpacking_clears_what_a_killed_process_left_and_refuses_a_second(tmp_path):
    tar_of(tmp_path / "a.tgz", ("top/good", tarfile.REGTYPE, "", 3))
    (tmp_path / "to" / ".unpack-killed" / "top").mkdir(parents=True)
    lock = download.Lock(tmp_path / "to" / ".unpack")
    with pytest.raises(UserError, match="another process"):
        download.extract(tmp_path / "a.tgz", tmp_path / "to")
    lock.release()
    download.extract(tmp_path / "a.tgz", tmp_path / "to")
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["top"]
