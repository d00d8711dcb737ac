"""Sheets of every spreadsheet and of words are read, and what no number can be told of is refused with its cell."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.datasets.own import read_folder
from core.datasets.sheets import read_attributes
from core.datasets.words import read_words, sheet_from_words
from core.files.errors import UserError
from core.inference.added_classes import add_classes


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
    rows = [["Birds", None, None], ["class", "red", "long"], ["NA", True, 0.5], ["a\u0308", False, 2], [1, "TRUE", 0]]
    path = tmp_path / "attributes.xlsx"
    pd.DataFrame(rows).to_excel(path, header=False, index=False)
    read = read_attributes(path)
    assert (read.classes, read.attributes) == (["NA", "ä", "1"], ["red", "long"])
    assert read.values.tolist() == [[1, 0.5], [0, 2], [1, 0]]
    with pytest.raises(UserError, match="no image"):  # the folder's sheet was found
        read_folder(tmp_path)
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"attributes\.xlsx is no readable table"):
        read_attributes(path)


# ---- descriptions in words

WORDS = 'class,description\nfinch,"A red bill. Long legs"\ncrow,its bill is red; black wings\ngull,grey wings\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    pytest.importorskip("sentence_transformers")
    (tmp_path / "descriptions.csv").write_text(WORDS)
    assert sheet_from_words(tmp_path)
    return tmp_path


def test_phrases_that_mean_the_same_are_alike_and_others_are_not(root: Path) -> None:
    sheet = read_attributes(root / "attributes.csv")
    assert sheet.classes == ["finch", "crow", "gull"]
    assert sheet.attributes == ["a red bill", "black wings", "grey wings", "its bill is red", "long legs"]
    own = [[1, 0, 0, None, 1], [None, 1, None, 1, 0], [0, None, 1, 0, 0]]
    for values, expected in zip(sheet.values, own, strict=True):
        for value, said in zip(values, expected, strict=True):
            assert value == pytest.approx(said, abs=2e-3) if said is not None else 0 <= value < 1
    finch, crow, gull = sheet.values
    assert min(finch[3], crow[0]) > 0.3 > max(crow[2], gull[1])


def test_a_corrected_sheet_is_kept_until_the_words_change_and_a_persons_own_always(root: Path) -> None:
    sheet = root / "attributes.csv"
    sheet.write_text(corrected := "\ufeff" + sheet.read_text().replace("gull,0.0", "gull,0.5"))  # a spreadsheet's BOM
    assert not sheet_from_words(root) and sheet.read_text() == corrected
    (root / "descriptions.csv").write_text(WORDS + "wren,brown wings\n")
    assert sheet_from_words(root) and read_attributes(sheet).classes[-1] == "wren"
    assert (root / "attributes.previous.csv").read_text() == corrected
    sheet.write_text("class,red bill\nfinch,1\n")
    assert not sheet_from_words(root)


def test_a_phrase_means_the_nearest_attribute_of_a_run(tmp_path: Path, caplog) -> None:
    pytest.importorskip("sentence_transformers")
    path = tmp_path / "descriptions.csv"
    path.write_text('class,description\nfinch,"its bill is red; a xylophone"\ncrow,"wings that are black"\n')
    names = ["has_bill_color::red", "has_bill_color::black", "has_wing_color::black", "has_wing_color::red"]
    with caplog.at_level("INFO", "core"):
        assert read_words(path, names).values.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    read, unknown = (record.getMessage() for record in caplog.records)
    assert read.endswith("its bill is red as red bill color; wings that are black as black wing color")
    assert unknown.endswith("no attribute that means: a xylophone")


def test_a_class_is_added_by_words_to_a_run_with_attributes(there, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    trained = there.load("vsmr").trained
    path = tmp_path / "descriptions.csv"
    path.write_text('class,description\nquagga,"black, white. It is grey"\n')
    values = dict(zip(trained.attributes, read_words(path, trained.attributes).values[0], strict=True))
    assert (
        values["black"] == pytest.approx(1, rel=1e-4)
        and values["white"] == pytest.approx(1, rel=1e-4)
        and values["sailingbill"] == 0
    )
    more = add_classes(trained, path)
    assert more.classes[-1] == "quagga"
    np.testing.assert_allclose(more.space.att[-1], list(values.values()))
    path.write_text("class,description\nquagga,xylophone\n")
    with pytest.raises(UserError, match="not 0 for all"):
        add_classes(trained, path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class,words\na,b\n", "header"),
        ("class,description\na,.\n", "has no"),
        ("class,description\na,b\na,c\n", "twice"),
    ],
)
def test_a_sheet_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "descriptions.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        sheet_from_words(tmp_path)
