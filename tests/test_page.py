"""The page that explains: what it writes and what it refuses (test_page_browser.py: how it behaves)."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.features.images import Transform
from core.files.errors import UserError
from core.inference import explain as explain_module
from core.inference.explain import explain
from core.inference.page import Item, text, write_page
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


@pytest.fixture(autouse=True)
def few_classes_do(monkeypatch):
    monkeypatch.setattr(explain_module, "MAPS_FROM", 7)


def test_evidence_of_places_is_that_of_the_model_to_a_step(tmp_path, monkeypatch):
    trained, items = made()
    write_page(trained, items, tmp_path / "p", grid=(3, 3))
    data, found = data_of(tmp_path / "p"), explain(trained, torch.stack([item.x for item in items]))
    assert data["grid"] == [3, 3] and not data["no_maps"] and data["corrections"] == ["hubness", "seen expert"]
    assert data["more"][0] == "bill color: red" and data["less"][0] == "bill color: red, less than usual"
    for number in (0, 5):
        content = json.loads((tmp_path / f"p/images/{number:04d}.js").read_text().partition(", ")[2].rstrip(");\n"))
        step = np.array(content["step"])[:, None]
        ev = np.frombuffer(base64.b64decode(content["ev"]), np.int8).reshape(7, 9) * step
        assert (np.abs(ev - found.ev[number].T.numpy()) <= 0.51 * step).all()
        assert np.abs(ev).max(axis=1) == pytest.approx(127 * step[:, 0])  # every attribute's own
    # below the bound of classes no map is written, and the page says why
    monkeypatch.setattr(explain_module, "MAPS_FROM", 8)
    write_page(trained, items, tmp_path / "p")
    data = data_of(tmp_path / "p")
    assert data["grid"] is None and "7 classes had training images, and with fewer than 8" in data["no_maps"]
    assert '"ev"' not in (tmp_path / "p/images/0000.js").read_text()


@pytest.mark.parametrize(("size", "transform", "crop"), [
    ((300, 200), None, [1 / 6, 0, 2 / 3, 1]),
    ((200, 400), Transform(crop=224, resize=256), [1 / 16, 9 / 32, 7 / 8, 7 / 16]),
])  # fmt: skip
def test_the_whole_photograph_is_shown_and_what_the_model_saw_of_it(tmp_path, size, transform, crop):
    trained, items = made(n=1)
    Image.new("RGB", size).save(tmp_path / "bird.jpg")
    write_page(trained, [Item(picture=tmp_path / "bird.jpg", x=items[0].x)], tmp_path / "p", transform=transform)
    assert data_of(tmp_path / "p")["images"][0]["crop"] == pytest.approx(crop)
    with Image.open(tmp_path / "p/images/0000.jpg") as image:
        assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.02)


def data_of(folder):
    return json.loads((folder / "data.js").read_text().partition("= ")[2].rstrip().rstrip(";"))


def test_data_are_ascii_and_hold_no_markup(tmp_path):
    trained, items = made(names=HOSTILE)
    write_page(trained, items, tmp_path / "p")
    for file in [tmp_path / "p/data.js", *(tmp_path / "p/images").glob("*.js")]:
        assert not set("<>&\x00\u2028") & set(file.read_bytes().decode("ascii"))
    assert data_of(tmp_path / "p")["classes"] == [text(name) for name in HOSTILE]
    assert text("a\x00b\ud800c\u202e é") == "a\ufffdb\ufffdc\u202e é"  # what no file can hold is lost, and no more


def test_a_page_is_replaced_and_anything_else_refused(tmp_path, monkeypatch):
    trained, items = made()
    (tmp_path / "page").mkdir()
    for shown in (items, items[:3]):  # an empty folder, and a page
        write_page(trained, shown, tmp_path / "page")
    assert len(list((tmp_path / "page/images").glob("*.jpg"))) == 3
    (tmp_path / "page" / "thesis.txt").write_text("years of work")
    (tmp_path / "other" / "images").mkdir(parents=True)  # a folder that merely holds images/
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # the folder one stands in cannot be replaced
    for folder in (tmp_path / "page", tmp_path / "other", tmp_path / "page" / "thesis.txt", Path(".")):
        with pytest.raises(UserError, match=r"something else than a page, which would be lost"):
            write_page(trained, items, folder)
    assert (tmp_path / "page" / "thesis.txt").read_text() == "years of work"


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


def test_test_images_are_spread_over_classes():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 20)
    rows = spread(np.arange(73), labels, 12)
    assert np.bincount(labels[rows]).tolist() == [5, 3, 4]
