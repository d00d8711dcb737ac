"""Downloads, checksums, and archives that try to write elsewhere."""

import contextlib
import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from core.commands.get_data import main
from core.datasets import download as D
from core.files.errors import UserError

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        cut = None  # answer with so many bytes only

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: Handler.cut])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{s.server_port}/a.tgz", Handler
        s.shutdown()


def test_a_cut_download_leaves_nothing_and_says_how_to_go_on(server, tmp_path):
    url, handler = server
    handler.cut = 1000
    with pytest.raises(UserError, match=f"stopped: .*curl -C - -O {url}.*--archive"):
        D.download(url, tmp_path / "a.tgz", timeout=5)
    assert not list(tmp_path.iterdir())
    handler.cut = None
    D.download(url, tmp_path / "a.tgz", timeout=5)
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT
    D.check_md5(tmp_path / "a.tgz", hashlib.md5(CONTENT).hexdigest())
    with pytest.raises(UserError, match="published is 000"):
        D.check_md5(tmp_path / "a.tgz", "0" * 32)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        D.download("http://127.0.0.1:9/a.tgz", tmp_path / "file" / "a.tgz", timeout=5)
    make_tar(tmp_path / "a.tgz", [("top/good", b"1")])
    with pytest.raises(UserError, match="cannot unpack"):
        D.extract(tmp_path / "a.tgz", tmp_path / "file" / "to")


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


def test_a_damaged_archive_leaves_nothing(tmp_path):
    make_tar(tmp_path / "a.tgz", [("top/good", b"1")])
    (tmp_path / "a.tgz").write_bytes((tmp_path / "a.tgz").read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot unpack"):
        D.extract(tmp_path / "a.tgz", tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_get_from_archives_and_again(tmp_path):
    make_tar(tmp_path / "SUNAttributeDB_Images.tar.gz", [("images/a/b.jpg", b"1")])
    make_tar(tmp_path / "SUNAttributeDB.tar.gz", [("SUNAttributeDB/attributes.mat", b"2")])
    archives = [str(p) for p in tmp_path.glob("*.gz")]
    root = tmp_path / "data"
    for _ in range(2):
        main(None, ["SUN", "--data-root", str(root), "--archive", *archives])
    assert (root / "SUN" / "images" / "a" / "b.jpg").is_file()
    assert (root / "SUN" / "attributes.mat").is_file()
    with pytest.raises(UserError, match="not an archive of CUB"):
        D.get("CUB", root, [tmp_path / "SUNAttributeDB.tar.gz"])
