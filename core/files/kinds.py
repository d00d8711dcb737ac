"""What a file really is, where it is not what its name says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from core.files.errors import UserError

# endings of photographs: torchvision's IMG_EXTENSIONS, and those that cameras and browsers give JPEG files besides
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"),
)
_PAGE = "a web page, such as a download site shows instead of the file: open the address in a browser and save the file"
_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer that stands for the file: run `git lfs pull` in its repository",
    b"<!doctype html": _PAGE,
    b"<html": _PAGE,
    b"<?xml": "an XML text, such as a server answers with instead of the file: download it again",
    b"matlab 7.3": "a MATLAB 7.3 file",
    b"matlab 5.0": "a MATLAB 5 file",
    b"\x89hdf\r\n\x1a\n": "an HDF5 file",
    b"\x93numpy": "a numpy .npy file: give it that ending",
    b"pk\x03\x04": "a zip archive",
    b"pk\x05\x06": "an empty zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"bzh": "a bzip2 archive",
    b"\xfd7zxz": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"rar!": "a rar archive",
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript file",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89png": "a PNG image",
    b"\x00\x00\x00\x0cjp  ": "a JPEG 2000 image",
    b"\xffo\xffq": "a JPEG 2000 image",
    b"\x00\x00\x00\x0cjxl ": "a JPEG XL image",
    b"\xff\x0a": "a JPEG XL image",
    b"8bps": "a Photoshop file",
    b"<svg": "an SVG image",
    b"\xba\x16\x4f\x2f": "a fastText model",
    b"\xff\xfe": "a text in UTF-16: save it as UTF-8",
    b"{": "a text that begins like JSON",
    b"#!": "a script",
}
_HEAD = 1 << 16  # bytes that are looked at
# what a damaged file of a kind still looks like: then the damage is the news
_OWN = {
    "MATLAB file": "a MATLAB",
    "weights file": "a PyTorch",
    "HDF5 file": "an HDF5",
    "feature file": "an HDF5",
    "numpy array": "a numpy",
    "file of word vectors": "a gzip",
}
_NO_FILES = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}


def what_it_is(path: Path | str) -> str:
    """A description such as "a web page, ...", with the way out where there is one; "" where the file tells nothing."""
    try:
        with open(path, "rb") as handle:
            return described(handle.read(_HEAD))
    except OSError:
        return ""


def described(content: bytes) -> str:
    """:func:`what_it_is` of a file's content."""
    head = content[:_HEAD]
    if not head.strip(b"\0"):
        return "nothing but zeros, as after a download that broke off: get it again" if head else "empty: get it again"
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begin.startswith(b"pk\x03\x04") and b"data.pkl" in head[:200]:
        return "a PyTorch file"
    if begin[257:262] == b"ustar" or head[257:262] == b"ustar":
        return "a tar archive"
    if head[4:8] == b"ftyp":
        return "an AVIF image" if head[8:12] in (b"avif", b"avis") else "an HEIC image or a film"
    return next((what for magic, what in _BEGINNINGS.items() if begin.startswith(magic)), "")


def missing(path: Path | str, kind: str) -> str:
    """The beginning of a message about a path where no regular file is: "no weights file at w.pth (it is a folder)"."""
    why = ""
    try:
        mode = stat.S_IFMT(os.stat(path).st_mode)
        why = f" (it is {_NO_FILES.get(mode, 'not a regular file')})"
    except OSError as error:
        if os.path.islink(path):
            why = " (it is a link that leads nowhere)"
        elif not isinstance(error, FileNotFoundError) and error.strerror:
            why = f" ({error.strerror})"
    return f"no {kind} at {path}{why}"


def unreadable(path: Path | str, kind: str, error: Exception | str) -> UserError:
    """The error for a file that is no ``kind`` ("MATLAB file"): what it is where that can be told, else what failed."""
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"cannot read {path}: {error.strerror}")
    detail = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    found = what_it_is(path)
    if found and not (kind in _OWN and found.startswith(_OWN[kind])):
        if ":" not in found:  # no way out yet
            found += ": unpack it and name what is in it" if found.endswith("archive") else f": name the {kind} instead"
        return UserError(f"{path} is not a readable {kind}: it is {found}")
    return UserError(f"{path} is not a readable {kind} ({detail}). If it is the right file, get it again")
