"""MATLAB files (.mat, up to -v7) by scipy: the wanted variables only, as plain data."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from core.files.errors import UserError
from core.files.kinds import unreadable


def read_mats(wanted: dict[Path, Collection[str]]) -> list[dict[str, Any]]:
    """Variables of several files, of each those of the wanted that it has.

    Numbers become arrays (sparse ones dense), text and cells lists of str and of such lists, in MATLAB's order.
    """
    import scipy.io  # takes a second, which --help does not need

    found = []
    for path, names in wanted.items():
        try:
            path.open("rb").close()  # scipy hides why it cannot
            content = scipy.io.loadmat(path, appendmat=False, variable_names=list(names))
        except NotImplementedError as error:
            raise UserError(f"{path} is of MATLAB's version 7.3; in MATLAB, save it with the option -v7") from error
        except Exception as error:  # a damaged file raises nearly anything
            raise unreadable(path, "MATLAB file", error) from error
        found.append({name: _plain(f"{path}: {name}", content[name]) for name in names if name in content})
    return found


def _plain(where: str, value: Any) -> Any:
    value = value.toarray() if hasattr(value, "toarray") else value
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufUO":
        raise UserError(
            f"{where} is a MATLAB struct or object, where real numbers, text or cells are needed. In MATLAB, turn "
            "strings into a cell array: names = cellstr(names)"
        )
    if value.dtype.kind == "U":
        return value.ravel().tolist()
    return [_plain(where, v) for v in value.ravel()] if value.dtype.kind == "O" else value
