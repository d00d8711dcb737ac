"""Get the data sets: resumed downloads, checksums where one is known, and archives that cannot write elsewhere."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from core.files.atomic import Lock, fsync_folder, sha256_file, write_bytes
from core.files.errors import UserError

log = logging.getLogger(__name__)

TIMEOUT = 60  # seconds without a byte
BLOCK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One file to download and where its content goes."""

    url: str
    into: str  # folder under the data root
    contents: tuple[str, ...]  # what must be there afterwards, relative to ``into``: then nothing is done
    md5: str | None = None  # only where known for certain

    @property
    def file(self) -> str:
        """The archive's file name."""
        return self.url.rsplit("/", 1)[-1]


SOURCES: dict[str, tuple[Archive, ...]] = {
    "AWA2": (Archive("https://cvml.ista.ac.at/AwA2/AwA2-data.zip", "AWA2", ("Animals_with_Attributes2",)),),
    "CUB": (
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "CUB",
            ("CUB_200_2011", "attributes.txt"),
            "97eceeb196236b17998738112f37df78",
        ),
    ),
    "SUN": (
        Archive("https://cs.brown.edu/~gmpatter/Attributes/SUNAttributeDB_Images.tar.gz", "SUN", ("images",)),
        Archive("https://cs.brown.edu/~gmpatter/Attributes/SUNAttributeDB.tar.gz", "SUN", ("attributes.mat",)),
    ),
    "xlsa17": (
        Archive("https://datasets.d2.mpi-inf.mpg.de/xian/xlsa17.zip", ".", ("xlsa17",)),
    ),
}  # fmt: skip


def download(url: str, path: Path, md5: str | None = None, timeout: float = TIMEOUT) -> Path:
    """Download ``url`` to ``path``, continuing ``path``.part if it is there (AWA2 has 13 GB); checks size and MD5.

    Raises:
        UserError: no connection, an incomplete download (it can be continued), or a wrong checksum (nothing kept).
    """
    if path.is_file():
        check_md5(path, md5)
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, timeout)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
        have = part.stat().st_size if part.is_file() else 0
        raise UserError(
            f"download of {url} stopped: {error}. {have} bytes are kept in {part}; run the same command to "
            "continue, or download it yourself and give it with --archive PATH."
        ) from error
    check_md5(part, md5)
    os.replace(part, path)
    fsync_folder(path.parent)
    return path


def _fetch(url: str, part: Path, timeout: float) -> None:
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if (error.headers.get("Content-Range") or "").endswith(f"/{have}"):
            return  # all of it was there
        part.unlink()
        raise
    with response:
        if response.status != 206:
            have = 0  # the server sends the file from its start
        elif not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            raise ValueError(f"the server did not continue at byte {have}")
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            open(part, "ab" if have else "wb") as out,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while block := response.read(BLOCK):
                out.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise ValueError(f"{part.stat().st_size} of {total} bytes came")


def check_md5(path: Path, md5: str | None) -> None:
    """Compare a file's MD5 with the published one; a mismatch is a UserError and a .part file is removed."""
    if md5 is None:
        return
    with open(path, "rb") as handle:
        found = hashlib.file_digest(handle, "md5").hexdigest()
    if found != md5:
        if path.suffix == ".part":
            path.unlink()
        raise UserError(f"{path} has MD5 {found}, published is {md5}: damaged; download it again")


def extract(archive: Path, into: Path) -> None:
    """Unpack a .zip or tar archive in a temporary folder, then rename its top-level entries into ``into``.

    Entries that are already there are left as they are.

    Raises:
        UserError: a damaged archive, one that would write outside its folder, or another process is unpacking there.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        with Lock(into / ".unpack"):
            for old in into.glob(".unpack-*"):  # of a killed process
                shutil.rmtree(old, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".unpack-", dir=into, ignore_cleanup_errors=True) as folder:
                _unpack(archive, folder)
                for entry in sorted(Path(folder).iterdir()):
                    if (into / entry.name).exists():
                        log.warning("%s is already there; left as it is", into / entry.name)
                    else:
                        os.rename(entry, into / entry.name)
        fsync_folder(into)
    except UserError:
        raise
    except Exception as error:  # damaged archives raise nearly anything
        raise UserError(
            f"cannot unpack {archive} ({type(error).__name__}: {error}). Nothing half-unpacked was kept; get the "
            "archive again"
        ) from error


def _unpack(archive: Path, folder: str) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)  # leaves ".." out of names, and makes no links
    else:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")


def get(name: str, data_root: Path, archives: Sequence[Path] = ()) -> None:
    """Bring one data set (a key of SOURCES) below ``data_root``; parts already there are not touched.

    Raises:
        UserError: an unknown --archive file, or what :func:`download` and :func:`extract` raise.
    """
    by_name = {a.name: a for a in archives}
    for path in archives:
        if not path.is_file():
            raise UserError(f"no archive at {path}")
    known = {s.file for s in SOURCES[name]}
    if unknown := set(by_name) - known:
        raise UserError(f"{', '.join(sorted(unknown))}: not an archive of {name}, which are {', '.join(sorted(known))}")
    for source in SOURCES[name]:
        into = data_root / source.into
        if all((into / c).exists() for c in source.contents):
            log.info("%s: already unpacked in %s", source.file, into)
            continue
        if source.file in by_name:
            path = by_name[source.file]
            check_md5(path, source.md5)
        else:
            path = download(source.url, data_root / "archives" / source.file, source.md5)
        if source.md5 is None:
            digest = sha256_file(path)
            log.info("%s: %d bytes, sha256 %s (no published checksum)", path.name, path.stat().st_size, digest)
            write_bytes(data_root / "archives" / f"{source.file}.sha256", f"{digest}  {source.file}\n".encode())
        extract(path, into)
        for content in source.contents:  # SUN's attributes.mat lies in a folder of its archive
            found = sorted(into.glob(f"*/{content}"))
            if not (into / content).exists() and len(found) == 1:
                os.rename(found[0], into / content)
        if missing := [c for c in source.contents if not (into / c).exists()]:
            raise UserError(f"{path.name} is unpacked in {into}, but {', '.join(missing)} is not there: another file?")
        log.info("%s: unpacked in %s", source.file, into)
