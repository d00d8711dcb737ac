"""Tables that people write: CSV of any spreadsheet, or a workbook; refused with the cell that is not as it must be."""

import contextlib
import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from core.datasets.metadata import name_problem
from core.files.errors import UserError, first_line
from core.files.kinds import missing

_TRUTH = {"true": "1", "false": "0"}


@dataclass(frozen=True, kw_only=True)
class Description:
    """Classes described by attributes."""

    classes: list[str]  # (C,)
    attributes: list[str]  # (K,)
    values: np.ndarray  # (C,K) float32
    groups: list[str]  # (C,) of the column "group"; empty: there is none


def text_of(path: Path) -> str:
    """A text file in UTF-8 or Windows' cp1252; letters composed (NFC)."""
    for code in ("utf-8-sig", "cp1252"):
        with contextlib.suppress(UnicodeDecodeError):
            return unicodedata.normalize("NFC", path.read_bytes().decode(code))
    raise UserError(f"{path} is not UTF-8 text; save the table as CSV in UTF-8")


def read_table(path: Path, first: str) -> pd.DataFrame:
    """The cells as text, stripped, under a header that begins with ``first``; the index is the line.

    What stands above the header (a title, Excel's ``sep=;``) is not read. CSV is parted by what follows ``first``.
    """
    if not path.is_file():
        raise UserError(f"{missing(path, 'table')}; docs/own-data.md shows how a folder of one's own is laid out")
    book = path.suffix.lower() == ".xlsx"
    text = "" if book else text_of(path)
    header = re.search(rf'^"?{first}"? *([,;\t])', text, re.M | re.I)
    separator, begin = (header[1], header.start()) if header else (",", 0)
    more = {"sep": separator, "skipinitialspace": True, "skip_blank_lines": False}
    try:
        how = {"header": None, "dtype": object, "keep_default_na": False}  # NA may be a class
        frame = pd.read_excel(path, **how) if book else pd.read_csv(io.StringIO(text[begin:]), **how, **more)
    except Exception as error:  # no openpyxl, and a damaged file raises nearly anything
        raise UserError(f"{path} is no readable table of {first},... ({first_line(error)})") from error
    frame.index += 1 + text.count("\n", 0, begin)
    cells = frame.astype(str).mask(frame.isna(), "").map(lambda cell: unicodedata.normalize("NFC", cell).strip())
    # decimal commas as points, where commas do not part the cells; beside points one may part thousands
    if separator != "," and not cells.map(lambda cell: bool(re.fullmatch(r"-?\d*\.\d+", cell))).any(axis=None):
        cells = cells.replace(r"^(-?\d*),(\d+)$", r"\1.\2", regex=True)
    begins = cells.iloc[:, 0].str.lower() == first
    if not begins.any():
        raise UserError(f"{path}: a header {first},... is needed, in CSV of UTF-8 or a workbook named .xlsx")
    cells = cells.iloc[begins.argmax() :]
    cells = cells.loc[(cells != "").any(axis=1), (cells != "").any(axis=0)]
    unnamed = cells.loc[:, cells.iloc[0] == ""]
    for line, row in unnamed[(unnamed != "").any(axis=1)].iterrows():
        raise UserError(f"{path}, line {line}: {max(row)[:40]!r} stands in a column without a name; name or delete it")
    return cells.iloc[1:].set_axis(cells.iloc[0], axis=1)


def read_attributes(path: Path) -> Description:
    """attributes.csv: a header ``class,<attribute>,...``, and one row of numbers (or TRUE, FALSE) a class.

    "group" is a column of text.
    """
    table = read_table(path, "class")
    of_group = table.columns.str.lower() == "group"
    groups = table.loc[:, of_group].iloc[:, 0].tolist() if of_group.any() else []
    classes, cells = table.iloc[:, 0], table.loc[:, ~of_group].iloc[:, 1:]
    for name, twice in zip(cells.columns, cells.columns.duplicated(), strict=True):
        if why := "stands there twice" if twice else name_problem(name):
            raise UserError(f"{path}: the attribute {name[:60]!r} {why}")
    with np.errstate(over="ignore"):  # to infinity, which is no number either
        numbers = cells.map(lambda cell: _TRUTH.get(cell.lower(), cell)).apply(pd.to_numeric, errors="coerce")
        values = numbers.to_numpy(np.float64).astype(np.float32)
    for c, k in np.argwhere(~np.isfinite(values))[:1]:
        where = f"{path}, line {cells.index[c]}, class {classes.iloc[c]!r}"
        raise UserError(f"{where}: {cells.iloc[c, k][:40]!r} for {cells.columns[k]!r} is not a number; fill it in")
    return Description(classes=list(classes), attributes=list(cells.columns), values=values, groups=groups)
