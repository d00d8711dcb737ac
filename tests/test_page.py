"""The page that explains: what it writes, what it refuses, and how it behaves in a browser. Data are made here."""

import json
import logging
import os
import re
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image

from core.files.errors import UserError
from core.inference import page as page_module
from core.inference.explain import explain
from core.inference.page import Item, check_replaceable, parts_of, script_json, text, write_page
from core.method import ClassSpace
from core.reporting.run_page import on_crop, part_points, spread, transform_of
from tests.test_explain import regions, trained_on

HOSTILE = [
    "</script><script>window.broken=1</script>",
    "<img src=x onerror='window.broken=1'>",
    "\"'`;window.broken=1//\\",
    "\u202egnorw\u202c \u05d0\u05d1",
    "x" * 300,
    "a\u2028b\u2029c\x00\x1b[31m\ud800",
    "../../../etc/passwd",
    "=HYPERLINK(1)",
    "__proto__",
    "${window.broken=1}",
    "]]> --> &lt;b&gt;",
]


def made(name="vsmr", names=None, n=12, **settings):
    """A model over 7 seen and 4 unseen classes, and images of each class."""
    g = torch.Generator().manual_seed(0)
    att = torch.rand(11, 7, generator=g, dtype=torch.float64)
    space = ClassSpace(att, torch.arange(7), torch.arange(7, 11), torch.randn(7, 5, generator=g))
    trained = trained_on(space, name, **({"beta": 0.5} if name == "vsmr" else {}) | settings)
    trained.model.float()
    attributes = ["has_bill_color::red", "belly color: blue", *trained.attributes[2:]]
    vars(trained).update(classes=names or trained.classes, attributes=(names or attributes)[:7])
    rng = np.random.default_rng(0)
    x = regions(torch.float32)
    items = [
        Item(
            picture=rng.integers(0, 255, (64, 64, 3), dtype=np.uint8),
            x=x[i % len(x)].roll(i, 0),
            truth=i % 11 if i % 5 else None,
            points=[("beak", 0.5, 0.2), ("tail", 0.9, 0.9)] if i % 2 else [],
            name=names[i % 11] if names else f"image {i}",
        )
        for i in range(n)
    ]
    return trained, items


# ------------------------------------------------------------------------------------------------------------ files
def test_the_folder_stands_alone(tmp_path):
    trained, items = made()
    index = write_page(trained, items, tmp_path / "page")
    assert index == tmp_path / "page" / "index.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page"]
    for file in (tmp_path / "page").glob("*.*"):
        found = re.findall(r"(?:https?:)?//[\w.]+\.\w+|\bimport\b|\bfetch\(|innerHTML|\beval\(", file.read_text("utf-8"))
        assert set(found) <= {"http://www.w3.org"}, (file, found)
    for number in range(len(items)):
        with Image.open(tmp_path / "page" / "images" / f"{number:04d}.jpg") as image:
            assert image.format == "JPEG" and max(image.size) <= 320 and not image.getexif()


def test_data_are_ascii_and_hold_no_markup(tmp_path):
    trained, items = made(names=HOSTILE)
    write_page(trained, items, tmp_path / "p")
    for file in [tmp_path / "p/data.js", *(tmp_path / "p/images").glob("*.js")]:
        content = file.read_bytes().decode("ascii")
        assert not set("<>&\x00\u2028") & set(content)
    data = json.loads((tmp_path / "p/data.js").read_text().partition("= {")[2].join(["{", ""]).rstrip().rstrip(";"))
    assert data["classes"] == [text(name) for name in HOSTILE]
    assert {p.name for p in (tmp_path / "p/images").iterdir()} == {f"{i:04d}.{e}" for i in range(12) for e in ("jpg", "js")}


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


def test_a_page_is_bounded_in_images_and_bytes(tmp_path, monkeypatch, caplog):
    trained, items = made(n=9)
    monkeypatch.setattr(page_module, "IMAGES", 6)
    monkeypatch.setattr(page_module, "SIZE", 300_000)
    with caplog.at_level(logging.INFO):
        write_page(trained, items, tmp_path / "page")
    assert "first 6 of 9 images" in caplog.text
    files = [p for p in (tmp_path / "page").rglob("*") if p.is_file()]
    assert len(list((tmp_path / "page/images").glob("*.jpg"))) == 6
    assert sum(p.stat().st_size for p in files) < 300_000
    monkeypatch.setattr(page_module, "SIZE", 200_000)
    write_page(trained, items, tmp_path / "page")
    assert '"kept":0' in (tmp_path / "page/data.js").read_text()  # maps give way first


def test_key_points_belong_to_attributes_by_their_names():
    parts = ["beak", "belly", "left leg", "right leg", "tail", "left wing"]
    assert parts_of("has_bill_color::red", parts) == [0]
    assert parts_of("has_leg_color::tail", parts) == [2, 3]  # the value names no part
    assert parts_of("has_underparts_color::grey", parts) == [1]
    assert parts_of("has_size::large", parts) == []


def test_test_images_are_spread_over_classes():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 20)
    rows = spread(np.arange(73), labels, 12)
    assert np.bincount(labels[rows]).tolist() == [5, 3, 4]


def test_key_points_land_where_the_backbone_saw_them(tmp_path):
    Image.new("RGB", (400, 200)).save(tmp_path / "a.png")
    how = transform_of("Resize(256, bilinear) CenterCrop(224) mean (0.4,) std (0.2,)")
    assert (how.resize, how.crop, how.interpolation) == (256, 224, "bilinear")
    assert on_crop([("eye", 200, 100), ("tail", 10, 100)], tmp_path / "a.png", how) == [("eye", 0.5, 0.5)]
    ((_, x, y),) = on_crop([("eye", 250, 100)], tmp_path / "a.png", how)
    assert x == pytest.approx((250 * 256 / 200 - (512 - 224) / 2) / 224) and y == 0.5


def test_part_files_are_read_or_refused_with_the_line(tmp_path):
    (tmp_path / "parts").mkdir()
    assert part_points(tmp_path) == {}
    (tmp_path / "images.txt").write_text("1 a/b.jpg\n2 c.jpg\n")
    (tmp_path / "parts/parts.txt").write_text("1 back\n2 left leg\n")
    locations = tmp_path / "parts/part_locs.txt"
    locations.write_text("1 1 5.0 6.0 1\n1 2 0.0 0.0 0\n2 2 7.5 8 1\n")
    assert part_points(tmp_path) == {"a/b.jpg": [("back", 5.0, 6.0)], "c.jpg": [("left leg", 7.5, 8.0)]}
    for bad in ("1 1 5.0 6.0\n", "3 1 1 1 1\n", "1 1 x 1 1\n"):
        locations.write_text("1 1 5.0 6.0 1\n" + bad)
        with pytest.raises(UserError, match=r"part_locs.txt, line 2"):
            part_points(tmp_path)


# ------------------------------------------------------------------------------------------------------ in a browser
@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, its downloads in a folder of the test."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: the page was not tested")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver here: the page was not tested in a browser")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.downloads = downloads
    yield opened
    opened.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """Write a page and open it by file://; at the end nothing may stand on the console."""

    def open_page(trained, items):
        index = write_page(trained, items, tmp_path / "page", title=trained.classes[0])
        browser.get(index.as_uri())
        wait(lambda: browser.execute_script("return document.body.dataset.ready === 'true'"))
        return browser

    yield open_page
    assert browser.get_log("browser") == []


def wait(condition, seconds=10):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the page did not get there in time"
        time.sleep(0.05)
    return found


def click(browser, selector):
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def number(browser, selector, key="score"):
    return float(browser.execute_script(f"return document.querySelector(arguments[0]).dataset.{key}", selector))


def parts_and_sum(browser, table):
    script = "return [...document.querySelectorAll(arguments[0] + ' [data-part]')].map((n) => Number(n.dataset.part))"
    return browser.execute_script(script, f"#{table}"), number(browser, f"#{table} [data-sum]", "sum")


@pytest.mark.parametrize(("name", "settings"), [("vsmr", {}), ("dazle", {}), ("vsmr", {"root_attributes": False})])
def test_bars_add_up_to_the_models_score(opened, name, settings):
    trained, items = made(name, **settings)
    browser = opened(trained, items)
    for position in (0, 3):
        click(browser, f'[data-image="{position}"]')
        scores = explain(trained, items[position].x[None]).scores[0] + trained.gamma * (torch.arange(11) >= 7)
        for c in torch.argsort(-scores)[[0, 2, 4]].tolist():
            click(browser, f"#class-{c}")
            parts, total = parts_and_sum(browser, "why")
            assert number(browser, "#score") == pytest.approx(float(scores[c]), abs=1e-4)
            assert sum(parts) == pytest.approx(total, abs=1e-9)
            assert total == pytest.approx(float(scores[c]), abs=1e-4 * max(1, abs(float(scores[c]))))
        parts, total = parts_and_sum(browser, "against")
        assert sum(parts) == pytest.approx(number(browser, "#ahead"), abs=1e-3)


@pytest.mark.parametrize("name", ["vsmr", "dazle"])
def test_the_slider_flips_the_decision_where_the_page_says(opened, name):
    trained, items = made(name)
    browser = opened(trained, items)
    found = browser.execute_script(
        """
        for (const image of Model.images) for (const c of Model.classes.filter((c) => c.side !== 'seen')) {
          const s = Model.smallest(image, c, 'all');
          if (s && s.size > 1) return [image.number, c.number, s.i, s.value];
        }"""
    )
    assert found, "no image whose decision a single attribute flips"
    image, c, i, value = found
    click(browser, f'[data-image="{image}"]')
    choose = "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    browser.execute_script(choose, "edited", str(c))
    click(browser, "#smallest")
    assert "makes the decision" in browser.find_element("id", "found").text
    assert browser.execute_script("return state.changing") == i
    move = "const s = document.getElementById('slider'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
    flipped = "return document.getElementById('decision').dataset.flipped"
    now = float(trained.space.att[c, i]) * 100 / float(trained.space.att.max())
    for step, expected in ((0.4, "true"), (-0.4, "false")):
        browser.execute_script(move, str(value + step * np.sign(value - now)))
        assert browser.execute_script(flipped) == expected
    # and the model agrees with the score at the slider's place
    at = float(browser.execute_script("return document.getElementById('slider').value"))
    att = trained.space.att[c].clone()
    att[i] = at / 100 * float(trained.space.att.max())
    expected = float(explain(trained, items[image].x[None]).described(att[None])) + trained.gamma
    assert number(browser, "#changed") == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["vsmr", "dazle"])
def test_the_form_adds_a_class_and_scores_every_image(opened, name):
    trained, items = made(name)
    browser = opened(trained, items)
    values = [3.0, 0, 9.5, 2, 0, 7, 1]
    browser.find_element("id", "newname").send_keys("a new bird")
    for i, value in enumerate(values):
        browser.execute_script("document.getElementById(arguments[0]).value = arguments[1]", f"value-{i}", str(value))
    browser.find_element("id", "add").send_keys("\ue007")
    wait(lambda: "a new bird has the highest score" in browser.find_element("id", "added").text)
    found = browser.execute_script("const c = Model.classes.at(-1); return Model.images.map((i) => Model.score(i, c))")
    x = torch.stack([item.x for item in items])
    expected = explain(trained, x).described(torch.tensor([values], dtype=torch.float64))[:, 0] + trained.gamma
    assert found == pytest.approx(expected.tolist(), abs=1e-3)
    assert "a new bird" in browser.find_element("id", "edited").text
    click(browser, "#known button")
    assert "a new bird" not in browser.find_element("id", "edited").text


def test_hostile_names_do_nothing(opened):
    trained, items = made(names=HOSTILE)
    browser = opened(trained, items)
    for position in range(0, 12, 3):
        click(browser, f'[data-image="{position}"]')
    script = (
        "return [window.broken, document.querySelectorAll('script[src]').length === document.scripts.length,"
        "document.querySelectorAll('#gallery img').length, document.querySelectorAll('body img').length]"
    )
    assert browser.execute_script(script) == [None, True, 12, 13]
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    shown = browser.execute_script("return document.querySelector('#edited').textContent")
    assert HOSTILE[8] in shown and "HYPERLINK" in shown
    saved = download(browser, "csv").decode("utf-8-sig")
    assert "\"'=HYPERLINK(1)\"" in saved and '"""\'`;window.broken' in saved


def test_the_keyboard_reaches_everything(opened):
    from selenium.webdriver import ActionChains, Keys

    trained, items = made()
    browser = opened(trained, items)
    everything = "button:not([hidden]), select, input, summary"
    script = f"""return [...document.querySelectorAll('{everything}')].filter((n) => n.offsetParent
        && !(n.type === 'radio' && !n.checked)).map((n, k) => n.dataset.order = String(k))"""
    expected, reached = set(browser.execute_script(script)), set()
    for _ in range(len(expected) + 30):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.add(browser.execute_script("return document.activeElement.dataset.order || ''"))
    assert expected <= reached, expected - reached
    browser.execute_script("document.querySelector('#gallery button').focus()")
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN).perform()
    assert browser.execute_script("return state.image.number") == 4
    browser.execute_script("document.querySelector('#why [data-attribute]:not([aria-pressed=true])').focus()")
    assert browser.execute_script("return document.activeElement.getAttribute('aria-pressed')") == "true"
    missing = "return [...document.querySelectorAll('img')].filter((n) => !n.alt).length"
    assert browser.execute_script(missing) == 0
    unlabelled = "return [...document.querySelectorAll('select,input')].filter((n) => !n.labels.length && !n.ariaLabel).length"
    assert browser.execute_script(unlabelled) == 0


def download(browser, kind):
    for old in browser.downloads.iterdir():
        old.unlink()
    click(browser, f"#{kind}")
    return wait(lambda: [p for p in browser.downloads.glob(f"*.{kind}") if p.stat().st_size])[0].read_bytes()


def test_it_saves_figures_and_numbers(opened):
    import io
    from xml.etree import ElementTree

    trained, items = made()
    browser = opened(trained, items)
    click(browser, '[data-image="4"]')
    with Image.open(io.BytesIO(download(browser, "png"))) as figure:
        drawn = np.asarray(figure.convert("RGB"))
    assert drawn.shape[1] == 1920
    assert len(np.unique(drawn[100:680, 60:620].reshape(-1, 3), axis=0)) > 1000  # the photograph, under its map
    root = ElementTree.fromstring(download(browser, "svg"))
    assert [n for n in root.iter() if n.tag.endswith("image")]
    lines = download(browser, "csv").decode("utf-8-sig").splitlines()
    best = browser.execute_script("return [state.chosen.name, Model.score(state.image, state.chosen)]")
    added = [float(line.split(",")[-1]) for line in lines[1:] if '"score"' not in line]
    assert sum(added) == pytest.approx(best[1], abs=1e-3) and f'"{best[0]}"' in lines[1]


def test_key_points_are_hit_or_missed(opened):
    trained, items = made()
    browser = opened(trained, items)
    click(browser, '[data-image="1"]')
    browser.execute_script("point(0)")  # bill color
    theta = explain(trained, items[1].x[None]).theta[0, :, 0]
    row, column = divmod(int(theta.argmax()), 3)
    hit = abs((column + 0.5) / 3 - 0.5) <= 0.5 and abs((row + 0.5) / 3 - 0.2) <= 0.5
    cells = [cell.text for cell in browser.find_elements("css selector", "#hits tbody td")]
    assert cells[1] == ("hit" if hit else "miss") and cells[4] == "hits 67 %"
    browser.execute_script("point(3)")
    assert "names no part" in browser.find_element("id", "parts").text


def test_a_method_that_does_not_split_shows_its_ranking(opened):
    trained, items = made("eszsl")
    browser = opened(trained, items)
    assert "do not split" in browser.find_element("id", "reasons").text
    assert not browser.find_element("id", "whatif").is_displayed()
    assert browser.find_elements("css selector", "#prediction [data-score]")
    click(browser, "#among-unseen")
    assert browser.execute_script("return state.chosen.side") == "unseen"


def test_a_page_without_its_maps_says_so(opened, tmp_path):
    trained, items = made()
    browser = opened(trained, items)
    os.unlink(tmp_path / "page/images/0001.js")
    click(browser, '[data-image="1"]')
    wait(lambda: "cannot be read" in browser.find_element("id", "caption").text)
    assert [e for e in browser.get_log("browser") if "0001.js" in e["message"]]  # the browser's own line, read away here
