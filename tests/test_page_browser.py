"""The page that explains, in a real browser: headless Chromium by file://. Without one, these say they did not run."""

import io
import shutil
import time
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from core.inference import explain as explain_module
from core.inference.added_classes import add_classes
from core.inference.explain import explain
from core.inference.names import shown_reason
from core.inference.page import write_page
from core.inference.sure import Sure
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
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    downloads = tmp_path_factory.mktemp("downloads")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    opened.downloads = downloads
    yield opened
    opened.quit()


@pytest.fixture(autouse=True)
def few_classes_do(monkeypatch):
    monkeypatch.setattr(explain_module, "MAPS_FROM", 7)


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


def calibrated(trained, shows, found):
    """(C,) scores with γ of what a photograph shows (K,)."""
    return shows @ found.y.T + sum(v[0] for v in found.corrections.values()) + trained.gamma * (torch.arange(11) >= 7)


@pytest.mark.parametrize(("name", "settings"), [("vsmr", {}), ("dazle", {}), ("vsmr", {"root_attributes": False})])
def test_bars_add_up_to_the_models_score(opened, name, settings):
    trained, items = made(name, **settings)
    browser = opened(trained, items)
    for position in (0, 3):
        click(browser, f'[data-image="{position}"]')
        found = explain(trained, items[position].x[None])
        scores = calibrated(trained, found.g[0], found)
        for c in torch.argsort(-scores)[[0, 2, 4]].tolist():
            click(browser, f"#class-{c}")
            parts, total = parts_and_sum(browser, "why")
            assert number(browser, "#score") == pytest.approx(float(scores[c]), abs=1e-4)
            assert sum(parts) == pytest.approx(total, abs=1e-9)
            assert total == pytest.approx(float(scores[c]), abs=1e-4 * max(1, abs(float(scores[c]))))
        parts, total = parts_and_sum(browser, "against")
        assert sum(parts) == pytest.approx(number(browser, "#ahead"), abs=1e-3)


def test_maps_add_up_to_their_bars_and_words_have_the_sign_of_the_photograph(opened):
    trained, items = made()
    browser = opened(trained, items)
    click(browser, '[data-image="3"]')
    found = explain(trained, items[3].x[None])
    c = browser.execute_script("return state.chosen.number")
    parts, total = found.attributes(0, c), 0.0
    sums = """const content = loaded.get(3), sum = (i) => cellsOf(content, state.chosen, i).reduce((a, b) => a + b);
        return content && [...Array(M.K).keys(), -1].map(sum)"""
    *single, total = wait(lambda: browser.execute_script(sums))
    assert single == pytest.approx(parts.tolist(), abs=0.02 * float(parts.abs().max()))  # 127 steps of each
    assert total == pytest.approx(float(parts.sum()), abs=0.05 * float(parts.abs().sum()))
    for i in range(7):
        text = browser.execute_script(f"return document.querySelector('#why-{i}').textContent")
        assert text == shown_reason(trained.attributes[i], float(found.g[0, i]))
    drawn = "const c = byId('cells'); return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    maps = found.ev[0] * found.y[c]  # (R,K)
    mixed = int(torch.minimum(maps.amax(dim=0), -maps.amin(dim=0)).argmax())  # for it here, against it there
    browser.execute_script("point(arguments[0])", mixed)
    cells, pixels = maps[:, mixed], np.array(browser.execute_script(drawn)).reshape(9, 4)
    strong = cells.abs() > 0.2 * cells.abs().max()
    assert (cells[strong] < 0).any() and (cells[strong] > 0).any()
    assert ((pixels[:, 0] > pixels[:, 2]) == (cells > 0).numpy())[strong.numpy()].all()  # orange for, blue against
    assert np.corrcoef(pixels[:, 3], cells.abs())[0, 1] > 0.99  # transparent where there is none


@pytest.mark.parametrize("name", ["vsmr", "dazle"])
def test_the_slider_flips_the_answer_where_the_page_says(opened, name):
    trained, items = made(name)
    browser = opened(trained, items)
    image = browser.execute_script("return M.images.findIndex((i) => M.smallest(i, 'all'))")
    click(browser, f'[data-image="{image}"]')
    i, more, c = browser.execute_script("const s = M.smallest(state.image, 'all'); return [s.i, s.more, s.c.number]")
    click(browser, "#smallest")
    assert browser.execute_script("return document.querySelector('#decision').dataset.flipped") == "true"
    assert trained.classes[c] in browser.find_element("id", "found").text
    move = "const s = document.getElementById('slider'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))"
    found = explain(trained, items[image].x[None])
    first = calibrated(trained, found.g[0], found).argmax()
    for step, flipped in ((0.9, False), (1.1, True)):
        browser.execute_script(move, float(found.g[0, i]) + step * more)
        shown = browser.execute_script("return document.querySelector('#decision').dataset.flipped")
        shows = found.g[0].clone()
        shows[i] = float(browser.execute_script("return document.getElementById('slider').value"))
        assert (shown == "true") == flipped == bool(calibrated(trained, shows, found).argmax() != first)


def test_hostile_names_do_nothing(opened):
    trained, items = made(names=HOSTILE)
    browser = opened(trained, items)
    for position in range(0, 12, 3):
        click(browser, f'[data-image="{position}"]')
    script = """return [window.broken, document.querySelectorAll('script[src]').length === document.scripts.length,
        document.querySelectorAll('#gallery img').length, document.querySelectorAll('body img').length]"""
    assert browser.execute_script(script) == [None, True, 12, 13]
    shown = browser.execute_script("return document.querySelector('#versus-a').textContent")
    assert HOSTILE[8] in shown and "HYPERLINK" in shown
    saved = download(browser, "csv").decode("utf-8-sig")
    assert '"\'=HYPERLINK(1)"' in saved and '"""\'`;window.broken' in saved


def test_photographs_and_attributes_are_chosen_by_the_keyboard_and_everything_has_a_name(opened):
    from selenium.webdriver import ActionChains, Keys

    trained, items = made()
    browser = opened(trained, items)
    assert browser.execute_script("return document.querySelectorAll('main [tabindex]').length") == 0
    browser.execute_script("document.querySelector('#gallery button').focus()")
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN).perform()
    assert browser.execute_script("return state.image.number") == 3
    browser.execute_script("document.querySelector('#why [data-attribute]:not([aria-pressed=true])').focus()")
    assert browser.execute_script("return document.activeElement.getAttribute('aria-pressed')") == "true"
    nameless = """return [...document.querySelectorAll('img')].filter((n) => !n.alt).length
        + [...document.querySelectorAll('select,input')].filter((n) => !n.labels.length && !n.ariaLabel).length"""
    assert browser.execute_script(nameless) == 0


def download(browser, kind, button=""):
    for old in browser.downloads.iterdir():
        old.unlink()
    browser.find_element("id", button or kind).click()  # as a person does: a script may not save several files
    return wait(lambda: [p for p in browser.downloads.glob(f"*.{kind}") if p.stat().st_size])[0].read_bytes()


def test_it_saves_figures_and_numbers(opened):
    trained, items = made()
    browser = opened(trained, items)
    click(browser, '[data-image="4"]')
    with Image.open(io.BytesIO(download(browser, "png"))) as figure:
        drawn = np.asarray(figure.convert("RGB"))
    assert drawn.shape[1] == 1960
    assert len(np.unique(drawn[100:680, 60:620].reshape(-1, 3), axis=0)) > 1000  # the photograph, under its map
    root = ElementTree.fromstring(download(browser, "svg"))
    assert [n for n in root.iter() if n.tag.endswith("image")]
    lines = download(browser, "csv").decode("utf-8-sig").splitlines()
    best = browser.execute_script("return [state.chosen.name, Model.score(state.image, state.chosen)]")
    added = [float(line.split(",")[-1]) for line in lines[1:] if '"score"' not in line]
    assert sum(added) == pytest.approx(best[1], abs=1e-3) and f'"{best[0]}"' in lines[1]


def test_gamma_probability_and_none_are_those_of_the_command(opened):
    trained, items = made()
    browser = opened(trained, items)
    nones = set()
    for gamma in (trained.gamma, 15.0):
        told = replace(trained, gamma=gamma)
        script = "const s = byId('gamma'); s.value = arguments[0]; s.dispatchEvent(new Event('change'))"
        browser.execute_script(script, gamma)
        found = explain(told, torch.stack([item.x for item in items]))
        offered = told.calibrated(found.scores.numpy())
        sure = Sure.of(told, found, offered, 0.1)
        script = """D.none_rate = 0.1; const said = (i, ranks) => [ranks[0].c.number, M.sure(i, ranks)];
            return M.images.map((i) => said(i, M.ranking(i, 'all'))).map(([c, s]) => [c, s.p[0], s.none])"""
        for i, (c, p, none) in enumerate(browser.execute_script(script)):
            assert (c, none) == (int(offered[i].argmax()), bool(sure.is_none[i]))
            assert p == pytest.approx(sure.p[i].max(), abs=1e-4)
            nones.add(none)
        said = browser.find_element("id", "gamma-said").text
    assert nones == {True, False}
    assert "23 % of photographs" in said and "79 % of those without" in said  # between the γ of 1 and of 20


def test_a_class_described_on_the_page_is_the_one_that_is_added(opened):
    trained, items = made()
    browser = opened(trained, items)
    browser.execute_script("byId('like').value = 8; byId('like').dispatchEvent(new Event('change'))")
    browser.execute_script("byId('amount').value = 0.5; byId('amount').dispatchEvent(new Event('input'))")
    table = pd.read_csv(io.BytesIO(download(browser, "csv", "row")))
    assert table.iloc[0, 1] == 0.5 and table.iloc[0, 2:].tolist() == pytest.approx(trained.space.att[8, 1:].tolist())
    more = add_classes(trained, table)
    expected = float(explain(more, items[0].x[None]).scores[0, -1]) + trained.gamma
    assert number(browser, "#mine output") == pytest.approx(expected, abs=1e-3)
    few = [0, 0, 0.2, 0, -0.1, 0, 0]  # of a question, and of those that stand alone, nothing is said
    y, _ = trained.encoder.encode(torch.tensor([few]))
    assert browser.execute_script("return Array.from(M.encode(arguments[0]).y)", few) == pytest.approx(y[0].tolist())


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_names_and_bars_are_seen_at_any_width_by_day_and_night(opened, width):
    trained, items = made()
    browser, paper = opened(trained, items), set()
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})  # fmt: skip
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        names = "return [...document.querySelectorAll('main td .name')].every((n) => n.scrollWidth <= n.clientWidth)"
        assert browser.execute_script(names)
        bars = "return [...document.querySelectorAll('#why .bar, #prediction .bar')].map((n) => n.clientWidth)"
        assert min(browser.execute_script(bars)) > 50
        paper.add(browser.execute_script("return getComputedStyle(document.querySelector('section')).backgroundColor"))
    assert len(paper) == 2
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_method_that_does_not_split_shows_its_ranking(opened):
    trained, items = made("vsmr-staged")
    browser = opened(trained, items)
    assert "do not split" in browser.find_element("id", "reasons").text
    assert not browser.find_element("id", "whatif").is_displayed()
    assert browser.find_elements("css selector", "#prediction [data-score]")
    click(browser, "#among-unseen")
    assert browser.execute_script("return state.chosen.side") == "unseen"
