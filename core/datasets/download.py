"""Get the data sets: checksums where one is known, and archives that cannot write elsewhere."""

import hashlib
import logging
import os
import shlex
import shutil
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from core.files.atomic import atomic_path
from core.files.errors import UserError

log = logging.getLogger(__name__)

TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """One file to download and where its content goes."""

    url: str
    into: str  # folder under the data root
    contents: tuple[str, ...]  # what must be there afterwards, relative to ``into``: then nothing is done
    md5: str | None = None  # only where known for certain


CUB_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
CUB_MD5 = "97eceeb196236b17998738112f37df78"
SUN_URL = "https://cs.brown.edu/~gmpatter/Attributes"
SOURCES: dict[str, tuple[Archive, ...]] = {
    "AWA2": (Archive("https://cvml.ista.ac.at/AwA2/AwA2-data.zip", "AWA2", ("Animals_with_Attributes2",)),),
    "CUB": (Archive(CUB_URL, "CUB", ("CUB_200_2011", "attributes.txt"), CUB_MD5),),
    "SUN": (
        Archive(f"{SUN_URL}/SUNAttributeDB_Images.tar.gz", "SUN", ("images",)),
        Archive(f"{SUN_URL}/SUNAttributeDB.tar.gz", "SUN", ("attributes.mat",)),
    ),
    "xlsa17": (Archive("https://datasets.d2.mpi-inf.mpg.de/xian/xlsa17.zip", ".", ("xlsa17",)),),
}


def download(url: str, path: Path) -> None:
    """Download ``url`` to ``path``; a broken download leaves nothing there."""
    with atomic_path(path) as part:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response, open(part, "wb") as out:
                total = int(response.headers.get("Content-Length") or 0)
                with tqdm.wrapattr(response, "read", total=total, desc=path.name) as counted:
                    shutil.copyfileobj(counted, out, 1 << 20)
                if total and out.tell() != total:
                    raise ValueError(f"{out.tell()} of {total} bytes came")
        except Exception as error:  # of the network: nearly anything
            how = f"with `curl -L -C - -o {shlex.quote(str(path))} {url}`, which continues"
            raise UserError(f"download of {url} stopped: {error}. Run the same command again, or {how}") from error


def extract(archive: Path, into: Path) -> None:
    """Unpack a .zip or tar archive in a temporary folder, then rename its top-level entries into ``into``.

    Entries that are already there are left as they are.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=into, ignore_cleanup_errors=True) as folder:
            # links and names that lead out of the folder are refused in a tar archive, and cannot be made by a zip
            shutil.unpack_archive(archive, folder, filter=None if archive.suffix == ".zip" else "data")
            for entry in sorted(Path(folder).iterdir()):
                if not (into / entry.name).exists():
                    os.rename(entry, into / entry.name)
    except Exception as error:  # damaged archives raise nearly anything
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"cannot unpack {archive} ({why}); nothing of it was kept: get the archive again") from error


def get(name: str, data_root: Path) -> None:
    """Bring one data set (a key of SOURCES) below ``data_root``; parts already there are not touched."""
    for source in SOURCES[name]:
        into, archive = data_root / source.into, data_root / "archives" / source.url.rsplit("/", 1)[-1]
        wanted = [into / content for content in source.contents]
        if all(path.exists() for path in wanted):
            log.info("%s: already unpacked in %s", archive.name, into)
            continue
        if not archive.is_file():
            download(source.url, archive)
        if source.md5:
            with open(archive, "rb") as handle:
                md5 = hashlib.file_digest(handle, "md5").hexdigest()
            if md5 != source.md5:
                raise UserError(f"{archive} has MD5 {md5}, published is {source.md5}: delete it and get it again")
        extract(archive, into)
        for path in wanted:  # SUN's attributes.mat lies in a folder of its archive
            if (below := sorted(into.glob(f"*/{path.name}"))) and not path.exists():
                os.rename(below[0], path)
        if missing := [path.name for path in wanted if not path.exists()]:
            raise UserError(f"{archive} has no {', '.join(missing)} in it: is it another file?")
        log.info("%s: unpacked in %s", archive.name, into)
