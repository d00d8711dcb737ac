"""Tables that people write: CSV out of any spreadsheet, read strictly and refused with the line."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.files.errors import UserError
from core.files.kinds import missing, what_it_is

LIMIT = 256 << 20  # bytes of a table
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")  # a decimal comma, where commas do not part the cells


@dataclass(frozen=True, kw_only=True)
class Description:
    """Classes described by attributes."""

    classes: list[str]  # (C,)
    attributes: list[str]  # (K,)
    values: np.ndarray  # (C,K) float32


def text_of(path: Path) -> str:
    """A text file in UTF-8 or UTF-16, with or without a byte-order mark; letters composed (NFC).

    Raises:
        UserError: missing, too large, or in another encoding; names the line.
    """
    if not path.is_file():
        raise UserError(f"{missing(path, 'table')}; docs/own-data.md shows how a folder of one's own is laid out")
    if (size := path.stat().st_size) > LIMIT:
        raise UserError(f"{path} has {size} bytes, more than {LIMIT}")
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
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the table as CSV in UTF-8") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path}, line {line}: a zero byte, as in no UTF-8 text; save the table as CSV in UTF-8")
    return text


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows with the line each begins in, header first; cells stripped, empty rows left out.

    Commas, semicolons or tabs, whichever is most frequent in the first line, part the cells.

    Raises:
        UserError: as :func:`text_of`, broken quotes, or no row below the header.
    """
    text = text_of(path)
    head = re.sub(r'"[^"]*"', "", next((line for line in text.splitlines() if line.strip()), ""))
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, line = [], 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: {error} (a quotation mark that is not closed?)") from error
    if len(rows) < 2:
        raise UserError(f"{path} has no row below its header")
    return _decimal_points(path, rows) if delimiter != "," else rows


def _decimal_points(path: Path, rows: list[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Rows with decimal commas made points, as spreadsheets in many languages write numbers.

    Raises:
        UserError: some numbers have a comma, others a point.
    """
    commas = [(line, cell) for line, cells in rows[1:] for cell in cells[1:] if _COMMA.fullmatch(cell)]
    points = [(line, cell) for line, cells in rows[1:] for cell in cells[1:] if "." in cell and _NUMBER.fullmatch(cell)]
    if commas and points:
        raise UserError(
            f"{path}, line {commas[0][0]}: {commas[0][1]!r} has a decimal comma, but {points[0][1]!r} in line "
            f"{points[0][0]} a point; write all numbers in one way"
        )
    return [
        (line, [c.replace(",", ".") if k and _COMMA.fullmatch(c) else c for k, c in enumerate(cells)])
        for line, cells in rows
    ]


def read_attributes(path: Path) -> Description:
    """attributes.csv: a header ``class,<attribute>,...`` and one row of numbers a class.

    Raises:
        UserError: anything that is not so; names the line.
    """
    (line, header), *rows = read_rows(path)
    if header[0].lower() != "class":
        raise UserError(
            f"{path}, line {line}: the header must be class,<attribute>,...; its first cell is {header[0]!r}"
        )
    names = header[1:]
    if not names:
        raise UserError(f"{path}, line {line}: the header names no attribute")
    _check_names(path, "attribute", [(line, name) for name in names])
    _check_names(path, "class", [(n, cells[0]) for n, cells in rows])
    values = np.empty((len(rows), len(names)), np.float32)
    for c, (n, (name, *cells)) in enumerate(rows):
        where = f"{path}, line {n}, class {name!r}"
        if len(cells) != len(names):
            lacks = f"; none for {names[len(cells)]!r}" if len(cells) < len(names) else ""
            raise UserError(f"{where}: {len(cells)} values for {len(names)} attributes{lacks}")
        for k, cell in enumerate(cells):
            if not cell:
                raise UserError(f"{where}: no value for {names[k]!r}; a missing value must be filled in")
            if not _NUMBER.fullmatch(cell):
                raise UserError(f"{where}: {cell[:40]!r} for {names[k]!r} is not a number (0.5, -2, 1e3)")
            with np.errstate(over="ignore"):
                values[c, k] = np.float64(cell)
            if not np.isfinite(values[c, k]):
                raise UserError(f"{where}: {cell[:40]} for {names[k]!r} is too large")
        if not values[c].any():
            raise UserError(f"{where}: all values are 0, which describes nothing; give it at least one attribute")
    return Description(classes=[cells[0] for _, cells in rows], attributes=names, values=values)


def _check_names(path: Path, what: str, named: list[tuple[int, str]]) -> None:
    first: dict[str, int] = {}
    for place, (line, name) in enumerate(named, start=1):
        if not name:
            raise UserError(f"{path}, line {line}: {what} {place} has no name")
        if not name.isprintable() or name[0] in "=@+-":
            article = "an" if what[0] in "aeiou" else "a"
            raise UserError(
                f"{path}, line {line}: {name[:60]!r} is no name of {article} {what}: it holds control characters, or "
                "begins with = @ + or -, which spreadsheets run as a formula"
            )
        if name in first:
            raise UserError(f"{path}, line {line}: the {what} {name!r} stands there twice (line {first[name]})")
        first[name] = line
