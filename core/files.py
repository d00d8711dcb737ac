"""Files that are never half-written, and files from strangers that cannot run code."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import UserError

PICKLE_LIMIT = 256 << 20  # bytes; the largest published attribute file is under 1 MB


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success fsync it, rename it to ``path`` and fsync the folder.

    On an exception the temporary file is removed and ``path`` is left as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path.parent}: {error.strerror}. Choose another place.") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}. Nothing was changed there.") from error
    finally:
        temporary.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def sha256_file(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds plain numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise UserError(f"the pickle asks for {module}.{name}, which is not part of a plain numpy array; not loaded")


def load_array_pickle(path: Path | str) -> np.ndarray:
    """Load one numeric numpy array from a pickle without running anything in it.

    Raises:
        UserError: missing file, too large, truncated, or holding anything but one numeric array.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no attribute vectors at {path}")
    if path.stat().st_size > PICKLE_LIMIT:
        raise UserError(f"{path} is larger than {PICKLE_LIMIT >> 20} MiB: not an attribute vector file")
    try:
        # latin1 is how numpy arrays pickled by Python 2 (DAZLE's files) are read
        value = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{path} is not a readable pickle ({type(error).__name__}: {error})") from error
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise UserError(f"{path} holds {type(value).__name__}, not a numeric numpy array")
    return value
