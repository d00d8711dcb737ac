"""MATLAB files (.mat, up to -v7), read by scipy in the sandbox: the wanted variables only, as plain data."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from core.files import sandbox
from core.files.errors import UserError
from core.files.kinds import unreadable, what_it_is

VARIABLE_LIMIT = 64 << 20  # bytes of one variable; CUB's list of images takes 3 MB


def read_mats(wanted: dict[Path, Collection[str]]) -> list[dict[str, Any]]:
    """Variables of several files, which one child process reads: of each file those of the wanted that it has.

    Numbers become arrays (sparse ones dense), text and cells lists of str and of such lists, in MATLAB's order.

    Raises:
        UserError: missing, not a MATLAB file, damaged, or larger than any of these data sets needs; names the file.
    """
    files = {str(path): sorted(names) for path, names in wanted.items()}
    found: list[dict[str, Any]] = sandbox.call("core.files.matfile:read", list(files), files, kind="MATLAB file")
    return found


def read(paths: list[str], wanted: dict[str, list[str]]) -> list[dict[str, Any]]:
    """In the sandbox: see :func:`read_mats`."""
    found = []
    for path in paths:
        try:
            found.append(_read(path, wanted[path]))
        except (UserError, OSError):
            raise
        except Exception as error:  # a damaged file raises nearly anything
            raise unreadable(path, "MATLAB file", error) from error
    return found


def _read(path: str, wanted: list[str]) -> dict[str, Any]:
    import scipy.io

    open(path, "rb").close()  # scipy hides why it cannot
    if what_it_is(path) in ("a MATLAB 7.3 file", "an HDF5 file"):
        raise UserError(
            f"{path} is of MATLAB's version 7.3 (HDF5), which is not read here. In MATLAB: "
            f"s = load('{Path(path).name}'); save('{Path(path).name}', '-struct', 's', '-v7')"
        )
    listed = scipy.io.whosmat(path, appendmat=False)
    for name, shape, kind in listed:
        if name not in wanted:
            continue
        if kind not in ("cell", "char", "sparse", "logical") and not kind.startswith(
            ("int", "uint", "double", "single")
        ):
            raise UserError(f"{path}: {name} is a MATLAB {kind}, not a matrix of numbers or a cell array of names")
        if (size := math.prod(shape) * 8) > VARIABLE_LIMIT or min(shape, default=0) < 0:
            raise UserError(f"{path}: {name} is {shape}, {size} bytes, more than any of these data sets has")
        if [n for n, *_ in listed].count(name) > 1:
            raise UserError(f"{path}: {name} is there more than once")
    there = [name for name, *_ in listed if name in wanted]
    if len(there) < len(wanted) and any(kind == "opaque" for *_, kind in listed):
        raise UserError(
            f"{path} lacks {', '.join(sorted({*wanted} - {*there}))}, but holds MATLAB objects, such as string arrays, "
            "which are not read here. In MATLAB, turn strings into a cell array: names = cellstr(names)"
        )
    content = scipy.io.loadmat(path, appendmat=False, variable_names=there)
    return {name: _plain(f"{path}: {name}", content[name]) for name in there}


def _plain(where: str, value: Any) -> Any:
    if hasattr(value, "toarray"):
        value.check_format(full_check=True)
        value = value.toarray()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufUO":
        what = getattr(value, "dtype", type(value).__name__)
        raise UserError(f"{where} is of {what}, where real numbers, text or cells are needed")
    if value.dtype.kind == "U":
        return value.ravel().tolist()
    return [_plain(where, v) for v in value.ravel()] if value.dtype.kind == "O" else value
