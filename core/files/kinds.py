"""Messages about files that are not there, or not what their name says, and the endings of photographs."""

import io
import os
from pathlib import Path

from core.files.errors import UserError, first_line

# endings of photographs: torchvision's IMG_EXTENSIONS, and those that cameras, telephones and browsers give besides
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"),
    *(".heic", ".heif", ".avif"),
)
_OFTEN = {  # what a download gives in place of the file
    b"version https://git-lfs": "a Git LFS pointer that stands for the file: run `git lfs pull` in its repository",
    b"<": "a web page: open the address in a browser, save the file and name that",
    b"": "empty: get it again",
}


def is_heic(content: bytes) -> bool:
    """Whether the bytes of a file are HEIC; films and AVIF have the same container and other brands."""
    brands = content[8 : int.from_bytes(content[:4], "big")] if content[4:8] == b"ftyp" else b""
    return b"avif" not in brands and any(b in brands for b in (b"hei", b"hev", b"mif1"))


def what_it_is(source: Path | str | bytes) -> str:
    """What often lies in place of a file (or of its bytes), with the way out; "" where its beginning tells nothing."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as handle:
            begin = handle.read(64).lstrip()
    except OSError:
        return ""
    return next((what for magic, what in _OFTEN.items() if begin.startswith(magic) and (magic or not begin)), "")


def missing(path: Path | str, kind: str) -> str:
    """The beginning of a message about a path where no regular file is: "no weights file at w.pth (it is a folder)"."""
    return f"no {kind} at {path}{' (it is a folder)' * os.path.isdir(path)}"


def unreadable(path: Path | str, kind: str, error: Exception | str) -> UserError:
    """The error for a file that is no ``kind`` ("MATLAB file"): what it is where that can be told, else what failed."""
    if isinstance(error, OSError) and error.errno:  # h5py's text is a paragraph
        return UserError(f"cannot read {path}: {os.strerror(error.errno)}")
    if found := what_it_is(path):
        return UserError(f"{path} is not a readable {kind}: it is {found}")
    detail = error if isinstance(error, str) else f"{type(error).__name__}: {first_line(error)[:200]}"
    return UserError(f"{path} is not a readable {kind} ({detail}). If it is the right file, get it again")
