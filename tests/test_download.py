"""Downloads, checksums, and archives that try to write elsewhere."""

import contextlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from core.commands.get_data import main
from core.datasets import download as D
from core.files.errors import UserError

CONTENT = bytes(range(256)) * 400


class Response(io.BytesIO):
    @property
    def headers(self):
        return {"Content-Length": str(len(CONTENT))}


def test_a_cut_download_leaves_nothing_and_says_how_to_go_on(tmp_path, monkeypatch):
    url = "https://x.org/a.tgz"
    monkeypatch.setattr(D.urllib.request, "urlopen", lambda *_, **__: Response(CONTENT[:1000]))
    with pytest.raises(UserError, match=f"stopped: 1000 of .*curl -L -C - -o {tmp_path}/a.tgz {url}"):
        D.download(url, tmp_path / "a.tgz")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(D.urllib.request, "urlopen", lambda *_, **__: Response(CONTENT))
    D.download(url, tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def make_tar(path, entries):
    with tarfile.open(path, "w:gz") as t:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc"
                t.addfile(info)
            else:
                info.size = len(content)
                t.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("entry", [("/OWNED", b"x"), ("top/../../OWNED", b"x"), ("top/link", None)])
def test_a_tar_that_leaves_its_folder_is_refused_and_a_zip_cannot(tmp_path, entry):
    make_tar(tmp_path / "a.tgz", [("top/good", b"1"), entry])
    if entry[1] is None:
        with pytest.raises(UserError, match=r"cannot unpack .*a\.tgz"):
            D.extract(tmp_path / "a.tgz", tmp_path / "in" / "to")
        assert not list((tmp_path / "in" / "to").iterdir())
        return
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        z.writestr("top/good", b"1")
        z.writestr(*entry)
    for archive in ("a.tgz", "a.zip"):
        with contextlib.suppress(UserError):
            D.extract(tmp_path / archive, tmp_path / "in" / "to")
        assert not (tmp_path / "in" / "OWNED").exists() and not Path("/OWNED").exists()


def test_get_from_archives_and_again(tmp_path, monkeypatch):
    archives = tmp_path / "data" / "archives"
    archives.mkdir(parents=True)
    make_tar(archives / "SUNAttributeDB_Images.tar.gz", [("images/a/b.jpg", b"1")])
    make_tar(archives / "SUNAttributeDB.tar.gz", [("SUNAttributeDB/attributes.mat", b"2")])
    for _ in range(2):
        main(None, ["SUN", "--data-root", str(tmp_path / "data")])
    assert (tmp_path / "data/SUN/images/a/b.jpg").is_file() and (tmp_path / "data/SUN/attributes.mat").is_file()
    make_tar(archives / "CUB_200_2011.tgz", [("CUB_200_2011/a", b"1"), ("attributes.txt", b"1")])
    with pytest.raises(UserError, match=f"has MD5 .*published is {D.CUB_MD5}"):
        D.get("CUB", tmp_path / "data")
    (source,) = D.SOURCES["CUB"]
    monkeypatch.setitem(D.SOURCES, "CUB", (replace(source, md5=None, contents=("other",)),))
    with pytest.raises(UserError, match="has no other in it"):
        D.get("CUB", tmp_path / "data")
    (tmp_path / "damaged.tgz").write_bytes((archives / "CUB_200_2011.tgz").read_bytes()[:-60])
    with pytest.raises(UserError, match="cannot unpack"):
        D.extract(tmp_path / "damaged.tgz", tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
