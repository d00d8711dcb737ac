"""Tables that people write: CSV of any spreadsheet, or a workbook; refused with the cell that is not as it must be.

The header is the first row that begins with ``class`` (or ``image``); what stands above it, a title or Excel's
``sep=;``, is not read.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from core.datasets.metadata import name_problem
from core.files.errors import UserError, library
from core.files.kinds import missing, unreadable

_FIRST = ("class", "image")  # what a header begins with
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
    codes = ["utf-16"] if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else ["utf-8-sig", "cp1252"]
    for code in codes:
        try:
            return unicodedata.normalize("NFC", raw.decode(code))
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
    raise UserError(f"{path}, line {line}: not UTF-8 text; save the table as CSV in UTF-8")


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line and cells of every row; in CSV they are parted by what follows the header's first cell."""
    if not path.is_file():
        raise UserError(f"{missing(path, 'table')}; docs/own-data.md shows how a folder of one's own is laid out")
    if path.suffix.lower() == ".xlsx":
        with library(path.name, "openpyxl"):
            import openpyxl  # noqa: F401 (pandas reads workbooks with it)
        try:
            frame = pd.read_excel(path, header=None, dtype=object)
        except Exception as error:  # a damaged file raises nearly anything
            raise unreadable(path, "workbook", error) from error
        cells = frame.astype(str).mask(frame.isna(), "")
        return list(enumerate(cells.to_numpy().tolist(), 1))
    if path.read_bytes().startswith(b"PK"):
        raise UserError(f"{path} is a workbook of a spreadsheet: name it .xlsx, or save the table as CSV in UTF-8")
    text, rows, line = text_of(path), [], 1
    header = re.search(rf'^[",;\t ]*(?:{"|".join(_FIRST)})"? *([,;\t])', text, re.M | re.I)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=header[1] if header else ",", strict=True,
                        skipinitialspace=True)  # fmt: skip
    try:
        for row in reader:
            rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: {error}; is a quotation mark not closed?") from error
    if header and header[1] != ",":
        return _with_points(path, rows)
    return rows


def _with_points(path: Path, rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Decimal commas as points, where commas do not part the cells; where points stand too, one may part thousands."""
    commas = [(line, cell) for line, row in rows for cell in row if re.fullmatch(r"\s*-?\d*,\d+\s*%?\s*", cell)]
    if commas and any(re.fullmatch(r"\s*-?\d*\.\d+\s*%?\s*", cell) for _, row in rows for cell in row):
        where = f"{path}, line {commas[0][0]}: {commas[0][1].strip()!r}"
        raise UserError(f"{where} has a decimal comma, but other cells a point; write all numbers in one way")
    numbers = {cell for _, cell in commas}
    return [(line, [cell.replace(",", ".") if cell in numbers else cell for cell in row]) for line, row in rows]


def read_table(path: Path) -> pd.DataFrame:
    """The cells as text, stripped, header first; the index is each row's line. A column of row numbers is left out."""
    rows = [(line, [cell.strip() for cell in row]) for line, row in _rows(path)]
    rows = [(line, row) for line, row in rows if any(row)]
    begins = [next((cell.lower() for cell in row if cell), "") for _, row in rows]
    top = next((i for i, cell in enumerate(begins) if cell in _FIRST), None)
    if top is None:
        where = f"{path}, line {rows[0][0] if rows else 1}"
        raise UserError(f"{where}: the header must be class,<attribute>,<attribute>,...")
    left = rows[top][1].index(next(filter(None, rows[top][1])))
    rows = [(line, row[left:]) for line, row in rows[top:]]
    if len(rows) < 2:
        raise UserError(f"{path} has no row below its header")
    width = max(len(row) for _, row in rows)
    table = pd.DataFrame([row + [""] * (width - len(row)) for _, row in rows], [line for line, _ in rows], dtype=object)
    named = (table.iloc[0] != "").to_numpy()
    for line, row in table.loc[:, ~named].iterrows():
        for cell in filter(None, row):
            raise UserError(f"{path}, line {line}: {cell[:40]!r} stands in a column without a name; name or delete it")
    return table.loc[:, named]


def read_attributes(path: Path) -> Description:
    """attributes.csv: a header ``class,<attribute>,...``, and one row of numbers a class; 50% is 0.5, TRUE and yes 1.

    "group" is a column of text.
    """
    table = read_table(path)
    of_group = [k for k in table.columns[1:] if table.loc[table.index[0], k].lower() == "group"]
    groups = [str(cell) for cell in table.loc[table.index[1:], of_group[0]]] if of_group else []
    table = table.drop(columns=of_group)
    header, classes, cells = table.iloc[0, 1:], table.iloc[1:, 0], table.iloc[1:, 1:]
    if table.iloc[0, 0].lower() != "class" or not len(header):
        raise UserError(f"{path}, line {table.index[0]}: the header must be class,<attribute>,...")
    named = [("attribute", name, table.index[0], header) for name in header]
    named += [("class", name, line, classes) for line, name in classes.items()]
    for what, name, line, names in named:
        if why := name_problem(name):
            raise UserError(f"{path}, line {line}: {name[:60]!r} is no name for the {what}: it {why}")
        if (names == name).sum() > 1:
            raise UserError(f"{path}: the {what} {name!r} stands there twice")
    percent = cells.apply(lambda column: column.str.endswith("%"))
    plain = cells.apply(lambda column: column.str.removesuffix("%").str.strip())
    plain = plain.apply(lambda column: column.str.lower().map(_TRUTH).fillna(column))
    values = plain.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64) / np.where(percent, 100, 1)
    mixed = percent.any().to_numpy() & ~percent.to_numpy() & (values != 0)
    for wrong, why in (
        (~np.isfinite(values), "is not a number; fill it in"),
        (mixed, "has no %, but other cells of the column have; write all of them in one way"),
    ):
        for c, k in np.argwhere(wrong)[:1]:
            where = f"{path}, line {cells.index[c]}, class {classes.iloc[c]!r}"
            raise UserError(f"{where}: {cells.iloc[c, k][:40]!r} for {header.iloc[k]!r} {why}")
    with np.errstate(over="ignore"):  # to infinity, which is refused where it is used
        values = values.astype(np.float32)
    return Description(classes=list(classes), attributes=list(header), values=values, groups=groups)
