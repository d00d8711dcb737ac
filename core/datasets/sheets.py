"""Tables that people write: CSV of any spreadsheet, or a workbook; refused with the cell that is not as it must be.

The header is the first row that begins as it must (with ``class``); what stands above it, a title or Excel's ``sep=;``,
is not read.
"""

from __future__ import annotations

import contextlib
import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from core.datasets.metadata import name_problem
from core.files.errors import UserError, first_line, library
from core.files.kinds import missing

_TRUTH = {"true": "1", "yes": "1", "false": "0", "no": "0"}


@dataclass(frozen=True, kw_only=True)
class Description:
    """Classes described by attributes."""

    classes: list[str]  # (C,)
    attributes: list[str]  # (K,)
    values: np.ndarray  # (C,K) float32
    groups: list[str]  # (C,) of the column "group"; empty: there is none


def text_of(path: Path) -> str:
    """A text file in UTF-8, UTF-16 with its byte-order mark, or Windows' cp1252; letters composed (NFC)."""
    raw = path.read_bytes()
    for code in ["utf-16"] if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else ["utf-8-sig", "cp1252"]:
        with contextlib.suppress(UnicodeDecodeError):
            return unicodedata.normalize("NFC", raw.decode(code))
    raise UserError(f"{path} is not UTF-8 text; save the table as CSV in UTF-8")


def _cells(path: Path, first: str) -> pd.DataFrame:
    """Every cell as text, stripped; the index is the line. CSV is parted by what follows the header's first cell."""
    if not path.is_file():
        raise UserError(f"{missing(path, 'table')}; docs/own-data.md shows how a folder of one's own is laid out")
    separator = ","
    try:
        if path.suffix.lower() == ".xlsx":
            with library(path.name, "openpyxl"):
                frame = pd.read_excel(path, header=None, dtype=object)
        else:
            text = text_of(path)
            if header := re.search(rf'^[",;\t ]*{first}"? *([,;\t])', text, re.M | re.I):
                separator = header[1]
            width = 1 + max(line.count(separator) for line in text.split("\n"))
            frame = pd.read_csv(
                io.StringIO(text), sep=separator, names=range(width), header=None, dtype=str, keep_default_na=False,
                skipinitialspace=True, skip_blank_lines=False,
            )  # fmt: skip
    except UserError:
        raise
    except Exception as error:  # a damaged file raises nearly anything
        raise UserError(
            f"{path} is no readable table ({first_line(error)}); is a quotation mark not closed?"
        ) from error
    frame.index += 1
    frame = frame.astype(str).mask(frame.isna(), "").map(str.strip)
    # decimal commas as points, where commas do not part the cells; beside points one may part thousands
    if separator != "," and not frame.map(lambda cell: bool(re.fullmatch(r"-?\d*\.\d+\s*%?", cell))).any(axis=None):
        frame = frame.replace(r"^(-?\d*),(\d+\s*%?)$", r"\1.\2", regex=True)
    return frame


def read_table(path: Path, first: str) -> pd.DataFrame:
    """The cells as text under a header that begins with ``first``; columns before it, of row numbers, are left out."""
    cells = _cells(path, first)
    cells = cells[(cells != "").any(axis=1)]
    begins = [next(filter(None, row)).lower() == first for row in cells.to_numpy()]
    if not any(begins):
        raise UserError(f"{path}: a header {first},... is needed, in CSV of UTF-8 or a workbook named .xlsx")
    cells = cells.iloc[begins.index(True) :]
    header = cells.iloc[0, (cells.iloc[0] != "").argmax() :]
    table = cells.loc[cells.index[1:], header.index]
    for line, row in table.loc[:, header == ""].iterrows():
        for cell in filter(None, row):
            raise UserError(f"{path}, line {line}: {cell[:40]!r} stands in a column without a name; name or delete it")
    return table.loc[:, header != ""].set_axis(header[header != ""], axis=1)


def read_attributes(path: Path) -> Description:
    """attributes.csv: a header ``class,<attribute>,...``, and one row of numbers a class; 50% is 0.5, TRUE and yes 1.

    "group" is a column of text.
    """
    table = read_table(path, "class")
    of_group = table.columns.str.lower() == "group"
    groups = table.loc[:, of_group].iloc[:, 0].tolist() if of_group.any() else []
    classes, cells = table.iloc[:, 0], table.loc[:, ~of_group].iloc[:, 1:]
    for what, names in (("attribute", cells.columns), ("class", pd.Index(classes))):
        for name in names:
            if why := name_problem(name):
                raise UserError(f"{path}: {name[:60]!r} is no name for the {what}: it {why}")
        for name in names[names.duplicated()]:
            raise UserError(f"{path}: the {what} {name!r} stands there twice")
    percent = cells.map(lambda cell: cell.endswith("%")).to_numpy(bool)
    numbers = cells.map(lambda cell: _TRUTH.get(cell.lower(), cell.removesuffix("%").strip()))
    with np.errstate(over="ignore"):  # to infinity, which is no number either
        values = numbers.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64) / np.where(percent, 100, 1)
        values = values.astype(np.float32)
    for wrong, why in (
        (~np.isfinite(values), "is not a number; fill it in"),
        (percent.any(axis=0) & ~percent & (values != 0), "has no %, but other cells of the column have"),
    ):
        for c, k in np.argwhere(wrong)[:1]:
            where = f"{path}, line {cells.index[c]}, class {classes.iloc[c]!r}"
            raise UserError(f"{where}: {cells.iloc[c, k][:40]!r} for {cells.columns[k]!r} {why}")
    return Description(classes=list(classes), attributes=list(cells.columns), values=values, groups=groups)
