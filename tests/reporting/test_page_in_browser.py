"""The page in a real browser without a head: nothing is fetched, no error, and table and map work."""

import shutil

import pytest
from report_pages import HOSTILE, results_of

from skjepa.reporting.report_file import write_report

NAMES = [*HOSTILE, *(f"folder/{i:05d}.png" for i in range(10_000 - len(HOSTILE)))]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        pytest.skip("needs a browser: chromium or google-chrome")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    return write_report(results_of(10_000, names=NAMES), path, title=HOSTILE[1], duplicates=False)


@pytest.fixture(params=[1280, 360], ids=["wide", "narrow"])
def page(browser, path, request):
    context = browser.new_context(viewport={"width": request.param, "height": 800})
    page = context.new_page()
    page.set_default_timeout(120_000)  # of a busy machine
    trouble: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append("dialog"), dialog.dismiss()))
    page.on("request", lambda sent: None if sent.url.startswith(("data:", "file:")) else trouble.append(sent.url))
    page.goto(path.as_uri())
    yield page
    assert trouble == []
    context.close()


def column(page, k):
    return page.eval_on_selector_all("#rows tr", f"rows => rows.map(row => row.cells[{k}].textContent)")


def test_page_in_a_browser(page):
    assert page.title() == HOSTILE[1]
    broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate("document.images.length") > 100
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("document.scripts.length") == 2
    # Sorted by score, the most atypical first.
    scores = [float(score) for score in column(page, 2)]
    assert len(scores) == 50
    assert scores == sorted(scores)
    page.click("th[data-sort=scores] button")
    turned = [float(score) for score in column(page, 2)]
    assert turned == sorted(turned, reverse=True)
    assert turned[0] > scores[-1]
    assert page.get_attribute("th[data-sort=scores]", "aria-sort") == "descending"
    # Pages.
    page.click("#last")
    assert "page 200 of 200" in page.inner_text("#page")
    assert column(page, 4)[-1].startswith("unreadable: cannot be read as an image (<b>broken</b>)")
    assert page.is_disabled("#next")
    # Search and filter.
    for name in HOSTILE:
        page.fill("#search", name)
        assert name in column(page, 1)  # one name is part of another
    page.fill("#search", "no such name")
    assert page.inner_text("#count") == "No image matches."
    page.fill("#search", "")
    page.select_option("#filter", "u")
    assert len(column(page, 1)) == 1
    assert page.inner_text("#count") == "1 of 10,000 images"


def test_keyboard_reaches_table_and_map(page):
    page.focus("th[data-sort=ids] button")
    page.keyboard.press("Enter")
    assert page.get_attribute("th[data-sort=ids]", "aria-sort") == "ascending"
    page.focus("#canvas")
    page.keyboard.press("ArrowRight")
    first = page.inner_text("#tip")
    assert "score -" in first
    assert "flagged" in first
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tip") != first
    page.keyboard.press("Enter")
    assert len(column(page, 1)) == 1
    assert column(page, 1)[0] in page.inner_text("#tip")
    page.select_option("#which-map", "1")
    page.focus("#canvas")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tip") == first


def test_map_is_painted(page):
    colours = page.evaluate("""() => {
        const canvas = document.getElementById("canvas");
        const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(image.data.buffer)).size;
    }""")
    assert colours > 50
