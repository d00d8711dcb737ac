"""The page that explains: what it writes and what it refuses (test_page_browser.py: how it behaves)."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from core.files.errors import UserError
from core.inference import page as page_module
from core.inference.page import Item, check_replaceable, script_json, text, write_page
from core.reporting.run_page import spread
from tests.helpers_page import HOSTILE, made


# ------------------------------------------------------------------------------------------------------------ files
def test_the_folder_stands_alone(tmp_path):
    trained, items = made()
    index = write_page(trained, items, tmp_path / "page")
    assert index == tmp_path / "page" / "index.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page"]
    for file in (tmp_path / "page").glob("*.*"):
        found = re.findall(
            r"(?:https?:)?//[\w.]+\.\w+|\bimport\b|\bfetch\(|innerHTML|\beval\(", file.read_text("utf-8")
        )
        assert set(found) <= {"http://www.w3.org"}, (file, found)
    for number in range(len(items)):
        with Image.open(tmp_path / "page" / "images" / f"{number:04d}.jpg") as image:
            assert image.format == "JPEG" and max(image.size) <= 320 and not image.getexif()


def test_attention_that_looks_everywhere_alike_is_the_middle_of_the_scale(tmp_path):
    trained, items = made()
    with torch.no_grad():
        trained.model.attention.W2.zero_()
    write_page(trained, items, tmp_path / "p")
    assert data_of(tmp_path / "p")["largest"] == 2 / len(items[0].x)


def data_of(folder):
    return json.loads((folder / "data.js").read_text().partition("= ")[2].rstrip().rstrip(";"))


def test_data_are_ascii_and_hold_no_markup(tmp_path):
    trained, items = made(names=HOSTILE)
    write_page(trained, items, tmp_path / "p")
    for file in [tmp_path / "p/data.js", *(tmp_path / "p/images").glob("*.js")]:
        content = file.read_bytes().decode("ascii")
        assert not set("<>&\x00\u2028") & set(content)
    assert data_of(tmp_path / "p")["classes"] == [text(name) for name in HOSTILE]
    assert {p.name for p in (tmp_path / "p/images").iterdir()} == {
        f"{i:04d}.{e}" for i in range(12) for e in ("jpg", "js")
    }


def test_names_lose_only_what_no_file_can_hold():
    assert text("a\x00b\ud800c\u202e é") == "a\ufffdb\ufffdc\u202e é"
    assert script_json("</a>\u2028") == '"\\u003c/a\\u003e\\u2028"'


def test_a_page_is_replaced_and_anything_else_refused(tmp_path):
    trained, items = made()
    write_page(trained, items, tmp_path / "page")
    write_page(trained, items[:3], tmp_path / "page")
    assert len(list((tmp_path / "page/images").glob("*.jpg"))) == 3
    (tmp_path / "page" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis.txt.*would be lost"):
        write_page(trained, items, tmp_path / "page")
    assert (tmp_path / "page" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no folder"):
        check_replaceable(tmp_path / "file")
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    with pytest.raises(UserError, match="something else"):  # a folder that merely holds images/
        check_replaceable(other)
    (tmp_path / "empty").mkdir()
    write_page(trained, items[:1], tmp_path / "empty")


def test_what_fails_leaves_the_old_page(tmp_path):
    trained, items = made()
    write_page(trained, items, tmp_path / "page")
    before = (tmp_path / "page/data.js").read_bytes()
    damaged = tmp_path / "bird.jpg"
    damaged.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"bird.jpg cannot be shown"):
        write_page(trained, [*items, Item(picture=damaged, x=items[0].x)], tmp_path / "page")
    assert (tmp_path / "page/data.js").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"page", "bird.jpg"}
    with pytest.raises(UserError, match="no image to show"):
        write_page(trained, [], tmp_path / "page")


def test_a_page_is_bounded_in_images(tmp_path, monkeypatch, caplog):
    trained, items = made(n=9)
    monkeypatch.setattr(page_module, "IMAGES", 6)
    write_page(trained, items, tmp_path / "page")
    assert "first 6 of 9 images" in caplog.text
    assert len(list((tmp_path / "page/images").glob("*.jpg"))) == 6


def test_test_images_are_spread_over_classes():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 20)
    rows = spread(np.arange(73), labels, 12)
    assert np.bincount(labels[rows]).tolist() == [5, 3, 4]
