"""Photographs in tar files, webdataset's form: `shard.tar/class/key.jpg` is one's path, and nothing is unpacked."""

import tarfile
from functools import cache
from pathlib import Path

from core.files.errors import UserError
from core.files.kinds import IMAGE_SUFFIXES, unreadable


@cache
def members(tar: Path) -> dict[str, tuple[int, int]]:
    """First byte and size of each photograph of an uncompressed tar, by its name there."""
    try:
        with tarfile.open(tar, "r:") as archive:
            files = [m for m in archive if m.isfile() and m.name.lower().endswith(IMAGE_SUFFIXES)]
    except (OSError, tarfile.TarError) as error:
        raise unreadable(tar, "uncompressed tar", error) from error
    return {m.name.removeprefix("./"): (m.offset_data, m.size) for m in files}


def find_members(folder: Path) -> dict[str, Path]:
    """Path of each photograph in a folder's tars by its key, the name without ending; of two with one key neither."""
    found: dict[str, Path] = {}
    for tar in sorted(folder.glob("*.tar")):
        for name in members(tar):
            key = name[: name.rindex(".")]
            if key in found:
                raise UserError(f"{found[key]} and {tar / name} have one key; take one of them out of its tar")
            found[key] = tar / name
    return found


def read_photograph(path: Path) -> bytes:
    """The bytes of a photograph, in a tar where the path leads through one."""
    tar = next((p for p in path.parents if p.suffix == ".tar" and p.is_file()), None)
    if tar is None:
        return path.read_bytes()
    first, size = members(tar)[path.relative_to(tar).as_posix()]
    with open(tar, "rb") as handle:
        handle.seek(first)
        return handle.read(size)
