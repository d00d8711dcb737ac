"""MATLAB files (.mat, up to -v7) by scipy: the wanted variables only, as plain data."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from core.files.kinds import unreadable


def read_mat(path: Path, names: Collection[str]) -> dict[str, Any]:
    """Those of the named variables that a file has.

    Numbers become arrays (sparse ones dense), text str, cells lists in MATLAB's order.
    """
    import scipy.io  # takes a second, which --help does not need

    try:
        with path.open("rb") as file:
            content = scipy.io.loadmat(file, variable_names=list(names))
    except Exception as error:  # a damaged file raises nearly anything
        raise unreadable(path, "MATLAB file", error) from error
    return {name: _plain(content[name]) for name in names if name in content}


def _plain(value: Any) -> Any:
    if hasattr(value, "toarray"):
        return value.toarray()
    if value.dtype.kind == "U" and value.size < 2:
        return "".join(value.ravel())
    return [_plain(cell) for cell in value.ravel()] if value.dtype.kind in "UO" else value
