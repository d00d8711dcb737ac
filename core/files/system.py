"""What is needed of the operating system, or a sentence that says which ones have it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from core.files.errors import UserError

try:
    import fcntl as fcntl  # handed on
    import resource as resource
except ImportError as error:
    raise UserError(
        "this program runs on Linux and macOS: it needs their file locks and limits of memory, which this system "
        "lacks. On Windows use WSL 2 (wsl --install) or a Linux container"
    ) from error


@contextlib.contextmanager
def utf8_name(path: Path | str) -> Iterator[Path | str]:
    """A name of a file for libraries that open UTF-8 names alone (safetensors): its own where that is UTF-8."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield f"/dev/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        yield path
