"""Values of HDF5 files, and numbers of any file, as plain ones."""

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from core.files.errors import UserError
from core.files.kinds import missing, unreadable


def open_hdf5(path: Path | str) -> h5py.File:
    """A feature file to read, with a lock where the disk has them."""
    if not Path(path).is_file():
        raise UserError(missing(path, "feature file"))
    try:
        # 64 MiB: automatic chunks of DAZLE's files are read many times with HDF5's default cache
        return h5py.File(path, "r", rdcc_nbytes=64 << 20, locking="best-effort")
    except OSError as error:
        raise unreadable(path, "feature file", error) from error


def matrix(values: Any, where: str) -> np.ndarray:
    """Numbers as a float32 matrix."""
    values = np.asarray(values)
    if values.dtype.kind not in "fiu" or values.ndim != 2:
        raise UserError(f"{where} is {values.shape} of {values.dtype}; a matrix of numbers is needed")
    with np.errstate(over="ignore"):  # to infinity, which Metadata.check refuses
        return values.astype(np.float32)


def whole_numbers(values: Any, where: str) -> np.ndarray:
    """Numbers as a list of int64."""
    values = np.ravel(values)
    if values.dtype.kind not in "fiu" or (values % 1 != 0).any():
        raise UserError(f"{where} is {values.shape} of {values.dtype}; whole numbers are needed")
    return values.astype(np.int64)


def names(file: h5py.File, key: str) -> list[str] | None:
    """A dataset of text; None where there is none."""
    if key not in file:
        return None
    return [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else str(v) for v in file[key][()].ravel()]


def plain(value: Any) -> Any:
    """An HDF5 attribute as a plain Python value."""
    value = value.item() if isinstance(value, (np.generic, np.ndarray)) and value.size == 1 else value
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def content_digest(file: h5py.File, rows: str = "feature_map") -> str:
    """SHA-256 of all of a feature file but its ``rows``, whose crc32 stand for them."""
    attributes = {k: plain(v) for k, v in file.attrs.items() if k != "sha256"}
    digest = hashlib.sha256(json.dumps(attributes, sort_keys=True, default=str).encode())
    for key in sorted(file):
        data = file[key]
        digest.update(f"{key} {data.shape} {data.dtype.str}".encode())
        if key != rows:
            digest.update(data[()].tobytes())
    return digest.hexdigest()
