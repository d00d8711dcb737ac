"""Tables that people write: CSV out of any spreadsheet, refused with the line where a cell is not what it must be."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from core.datasets.metadata import name_problem
from core.files.errors import UserError
from core.files.kinds import missing, what_it_is

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_COMMA = r"([+-]?\d*),(\d+(?:[eE][+-]?\d+)?)"  # a decimal comma, where commas do not part the cells


@dataclass(frozen=True, kw_only=True)
class Description:
    """Classes described by attributes."""

    classes: list[str]  # (C,)
    attributes: list[str]  # (K,)
    values: np.ndarray  # (C,K) float32


def text_of(path: Path) -> str:
    """A text file in UTF-8 or UTF-16, with or without a byte-order mark; letters composed (NFC).

    Raises:
        UserError: missing, a workbook, or in another encoding; names the line.
    """
    if not path.is_file():
        raise UserError(f"{missing(path, 'table')}; docs/own-data.md shows how a folder of one's own is laid out")
    if "archive" in (what := what_it_is(path)):
        raise UserError(f"{path} is {what}, as workbooks of Excel and LibreOffice are: save the table as CSV in UTF-8")
    raw = path.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif raw[1:200:2].count(0) > len(raw[1:200:2]) // 2:
        encoding = "utf-16-le"
    else:
        encoding = "utf-8-sig"
    try:
        text = unicodedata.normalize("NFC", raw.decode(encoding))
        if "\0" in text:
            raise UnicodeDecodeError(encoding, raw, raw.index(b"\0"), len(raw), "a zero byte")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the table as CSV in UTF-8") from error
    return text


def read_table(path: Path) -> pd.DataFrame:
    """The cells as text, stripped, header first; the index is each row's line. Empty rows are left out.

    Commas, semicolons or tabs, whichever is most frequent in the first line, part the cells. A cell that its row is too
    short for is NaN.

    Raises:
        UserError: as :func:`text_of`, a row too long, a quotation mark that is not closed, or no row below the header.
    """
    text = text_of(path)
    body = text.lstrip()
    above = text[: len(text) - len(body)].count("\n")
    head = re.sub(r'"[^"]*"', "", (body.splitlines() or [""])[0])
    mark = max(",;\t", key=head.count)
    try:
        table = pd.read_csv(
            io.StringIO(body),
            sep=mark,
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            skipinitialspace=True,
        )
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    except pd.errors.ParserError as error:
        said = str(error).rpartition("C error: ")[2].strip()
        said = re.sub(r"row (\d+)", lambda found: f"line {int(found[1]) + 1}", said)  # pandas counts rows from 0
        raise UserError(f"{path}: {said}; are there a quotation mark that is not closed, or too many cells?") from error
    table.index += above + 1
    table = table.apply(lambda column: column.str.strip())
    table = table[(table.fillna("") != "").any(axis=1)]
    if len(table) < 2:
        raise UserError(f"{path} has no row below its header")
    return table if mark == "," else _decimal_points(path, table)


def _decimal_points(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Decimal commas made points, as spreadsheets in many languages write numbers.

    Raises:
        UserError: some numbers have a comma, others a point: one of them may part thousands.
    """
    cells = table.iloc[1:, 1:].stack()  # by line and column
    commas = cells[cells.str.fullmatch(_COMMA, na=False)]
    points = cells[cells.str.fullmatch(_NUMBER, na=False) & cells.str.contains(".", regex=False, na=False)]
    if len(commas) and len(points):
        raise UserError(
            f"{path}, line {commas.index[0][0]}: {commas.iloc[0]!r} has a decimal comma, but {points.iloc[0]!r} in "
            f"line {points.index[0][0]} a point; write all numbers in one way"
        )
    table.iloc[1:, 1:] = table.iloc[1:, 1:].replace(f"^{_COMMA}$", r"\1.\2", regex=True)
    return table


def read_attributes(path: Path) -> Description:
    """attributes.csv: a header ``class,<attribute>,...`` and one row of numbers a class.

    Raises:
        UserError: anything that is not so; names the line.
    """
    table = read_table(path)
    header, body = table.iloc[0].fillna(""), table.iloc[1:]
    line = table.index[0]
    if header[0].lower() != "class":
        raise UserError(
            f"{path}, line {line}: the header must be class,<attribute>,...; its first cell is {header[0]!r}"
        )
    names, classes, cells = list(header[1:]), list(body[0]), body.iloc[:, 1:]
    if not names:
        raise UserError(f"{path}, line {line}: the header names no attribute")
    _check_names(path, "attribute", ((line, name) for name in names))
    _check_names(path, "class", body[0].items())
    where = [f"{path}, line {line}, class {name!r}" for line, name in body[0].items()]
    wrong = ~cells.apply(lambda column: column.str.fullmatch(_NUMBER, na=False))
    for c, k in np.argwhere(wrong.to_numpy())[:1]:
        if not isinstance(cell := cells.iloc[c, k], str) or not cell:
            raise UserError(f"{where[c]}: no value for {names[k]!r}; a missing value must be filled in")
        raise UserError(f"{where[c]}: {cell[:40]!r} for {names[k]!r} is not a number (0.5, -2, 1e3)")
    with np.errstate(over="ignore"):  # to infinity, which is refused
        values = cells.to_numpy().astype(np.float64).astype(np.float32)
    for c, k in np.argwhere(~np.isfinite(values))[:1]:
        raise UserError(f"{where[c]}: {cells.iloc[c, k][:40]} for {names[k]!r} is too large")
    for c in np.flatnonzero(~values.any(axis=1))[:1]:
        raise UserError(f"{where[c]}: all values are 0, which describes nothing; give it at least one attribute")
    return Description(classes=classes, attributes=names, values=values)


def _check_names(path: Path, what: str, named: Iterable[tuple[int, str]]) -> None:
    first: dict[str, int] = {}
    for line, name in named:
        if why := name_problem(name):
            raise UserError(f"{path}, line {line}: {name[:60]!r} is no name for the {what}: it {why}")
        if name in first:
            raise UserError(f"{path}, line {line}: the {what} {name!r} stands there twice (line {first[name]})")
        first[name] = line
