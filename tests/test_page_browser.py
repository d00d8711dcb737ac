"""The page that explains, in a real browser: headless Chromium by file://. Without one, these say they did not run."""

import io
import os
import shutil
import time
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from core.inference.explain import explain
from core.inference.page import write_page
from tests.helpers_page import HOSTILE, made


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, its downloads in a folder of the test."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: the page was not tested")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver here: the page was not tested in a browser")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1300,1000",
    ):
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
    choose = (
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    )
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
    assert '"\'=HYPERLINK(1)"' in saved and '"""\'`;window.broken' in saved


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
    unlabelled = (
        "return [...document.querySelectorAll('select,input')].filter((n) => !n.labels.length && !n.ariaLabel).length"
    )
    assert browser.execute_script(unlabelled) == 0


def download(browser, kind):
    for old in browser.downloads.iterdir():
        old.unlink()
    browser.find_element("id", kind).click()  # as a person does: a script may not save several files
    return wait(lambda: [p for p in browser.downloads.glob(f"*.{kind}") if p.stat().st_size])[0].read_bytes()


def test_it_saves_figures_and_numbers(opened):
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


def test_a_method_that_does_not_split_shows_its_ranking(opened):
    trained, items = made("vsmr-staged")
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
    assert [e for e in browser.get_log("browser") if "0001.js" in e["message"]]  # the browser's own line, read away
