"""Tables that people write: CSV out of any spreadsheet, refused with the line where a cell is not what it must be."""

from __future__ import annotations

import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from core.datasets.metadata import name_problem
from core.files.errors import UserError
from core.files.kinds import missing, what_it_is


@dataclass(frozen=True, kw_only=True)
class Description:
    """Classes described by attributes."""

    classes: list[str]  # (C,)
    attributes: list[str]  # (K,)
    values: np.ndarray  # (C,K) float32
    groups: list[str]  # (C,) of the column "group"; empty: there is none


def text_of(path: Path) -> str:
    """A text file in UTF-8, or UTF-16 with its byte-order mark; letters composed (NFC)."""
    if not path.is_file():
        raise UserError(f"{missing(path, 'table')}; docs/own-data.md shows how a folder of one's own is laid out")
    if "archive" in (what := what_it_is(path)):
        raise UserError(f"{path} is {what}, as workbooks of Excel and LibreOffice are: save the table as CSV in UTF-8")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the table as CSV in UTF-8") from error
    return unicodedata.normalize("NFC", text)


def read_table(path: Path) -> pd.DataFrame:
    """The cells as text, stripped, header first; the index is each row's line. Empty rows are left out.

    Commas, semicolons or tabs, whichever is most frequent in the first line, part the cells; where it is not commas,
    0,5 is read as 0.5.
    """
    text = text_of(path)
    body = text.lstrip()
    mark = max(",;\t", key=body.partition("\n")[0].count)
    layout = {"header": None, "keep_default_na": False, "skip_blank_lines": False, "skipinitialspace": True}
    try:
        table = pd.read_csv(io.StringIO(body), sep=mark, dtype=str, **layout).fillna("")
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise UserError(f"{path} is no table ({str(error).strip()}): is a quotation mark not closed?") from error
    table.index += 1 + text[: len(text) - len(body)].count("\n")
    table = table.apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]
    if len(table) < 2:
        raise UserError(f"{path} has no row below its header")
    if mark != ",":
        cells = table.iloc[1:, 1:].stack()  # by line and column
        commas = cells[cells.str.contains(",")]
        if len(commas) and cells.str.contains(".", regex=False).any():  # one of them may part thousands
            where = f"{path}, line {commas.index[0][0]}: {commas.iloc[0]!r}"
            raise UserError(f"{where} has a decimal comma, but other cells a point; write all numbers in one way")
        table.iloc[1:, 1:] = table.iloc[1:, 1:].replace(r"^([^,]*),([^,]*)$", r"\1.\2", regex=True)
    return table


def read_attributes(path: Path) -> Description:
    """attributes.csv: a header ``class,<attribute>,...``, one row of numbers a class; "group" is a column of text."""
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
    finite = np.isfinite(cells.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64))
    for c, k in np.argwhere(~finite)[:1]:
        where = f"{path}, line {cells.index[c]}, class {classes.iloc[c]!r}"
        raise UserError(f"{where}: {cells.iloc[c, k][:40]!r} for {header.iloc[k]!r} is not a number; fill it in")
    with np.errstate(over="ignore"):  # to infinity, which is refused where it is used
        values = cells.to_numpy().astype(np.float64).astype(np.float32)
    return Description(classes=list(classes), attributes=list(header), values=values, groups=groups)
