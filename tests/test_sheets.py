"""Sheets of every spreadsheet are read alike, and what no number can be told of is refused with its cell."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.datasets.own import read_folder
from core.datasets.sheets import read_attributes
from core.files.errors import UserError


@pytest.mark.parametrize(
    ("sheet", "says"),
    [
        ("", "is no readable table of class,..."),
        ("name,red\na,1\n", "a header class,... is needed"),
        ("class,red,red\na,1,1\n", "the attribute 'red' stands there twice"),
        ("\n\nclass,red,blue\na,1,1\nb,1\n", "line 5, class 'b': '' for 'blue' is not a number"),
        ("class,red,\na,1,\nb,1,old sheet\n", "line 3: 'old sheet' stands in a column without a name"),
        ("class,red\na,1e99\n", "line 2, class 'a': '1e99' for 'red' is not a number"),
        ('class,red\na,1\n"b,1\n', "is no readable table"),
        ("class;red;blue\na;0,5;1\nb;1;0.5\n", "line 2, class 'a': '0,5' for 'red' is not a number"),
        ('class,red\na,"1,234"\n', "line 2, class 'a': '1,234' for 'red' is not a number"),
        (b"class,red\na,1\nb\x81,1\n", "is not UTF-8"),
        ("class,red\na,1\n".encode("utf-16"), "in CSV of UTF-8"),
        (b"PK\3\4", "or a workbook named .xlsx"),
    ],
)
def test_sheets_that_are_refused(tmp_path: Path, sheet: str | bytes, says: str) -> None:
    path = tmp_path / "attributes.csv"
    path.write_bytes(sheet.encode() if isinstance(sheet, str) else sheet)
    with pytest.raises(UserError) as error:
        read_attributes(path)
    assert str(path) in str(error.value) and says in str(error.value)


@pytest.mark.parametrize(
    "sheet",
    [
        "class,long bill,b\nä,0.5,-1\nc,2,0\n".encode("utf-8-sig"),
        "class\tlong bill\tb\nä\t0.5\t-1\nc\t2\t0\n".encode(),
        "Class;long bill;b\nä;0,5;-1\nc;2;0\n\n".encode(),
        '"class","long bill","b"\n"ä","0.5",-1\nc,2e0,0'.encode(),
        "class,long bill,b\na\u0308,.5,-1\nc,+2,0\n".encode(),  # a decomposed letter
        "sep=;\nClass;long bill;b\nä;0,5;-1\nc;2;0\n".encode("cp1252"),
        "Birds, of the bay,,\n\nclass,long bill,b,,\nä,0.5,-1,,\n\nc,2,False,,\n".encode(),
    ],
)
def test_sheets_of_every_spreadsheet(tmp_path: Path, sheet: bytes) -> None:
    (tmp_path / "attributes.csv").write_bytes(sheet)
    read = read_attributes(tmp_path / "attributes.csv")
    assert (read.classes, read.attributes) == (["ä", "c"], ["long bill", "b"])
    assert np.array_equal(read.values, np.array([[0.5, -1], [2, 0]], np.float32))


def test_a_workbook_in_place_of_a_sheet(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    rows = [["Birds", None, None], ["class", "red", "long"], ["a", True, 0.5], ["b", False, 2], [1, "TRUE", 0]]
    path = tmp_path / "attributes.xlsx"
    pd.DataFrame(rows).to_excel(path, header=False, index=False)
    read = read_attributes(path)
    assert (read.classes, read.attributes) == (["a", "b", "1"], ["red", "long"])
    assert read.values.tolist() == [[1, 0.5], [0, 2], [1, 0]]
    with pytest.raises(UserError, match="no image"):  # the folder's sheet was found
        read_folder(tmp_path)
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"attributes\.xlsx is no readable table"):
        read_attributes(path)
