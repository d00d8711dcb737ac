"""Descriptions in words: the sheet that is made of them, what of it is kept, and classes added by words."""

from pathlib import Path

import numpy as np
import pytest

from core.datasets.sheets import read_attributes
from core.datasets.words import read_words, sheet_from_words
from core.files.errors import UserError
from core.inference.added_classes import add_classes

pytest.importorskip("sentence_transformers")
WORDS = 'class,description\nfinch,"A red bill. Long legs"\ncrow,its bill is red; black wings\ngull,grey wings\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
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


def test_a_class_is_added_by_words_to_a_run_with_attributes(there, tmp_path: Path) -> None:
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
