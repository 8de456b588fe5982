"""The built book in a browser, as a reader has it: Chromium, no network, every page from disk.

Needs Chromium (Debian and Ubuntu: apt install chromium); skipped where there is none.
"""

import functools
import http.server
import io
import shutil
import threading
import zipfile
from pathlib import Path
from urllib.parse import urljoin

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "book" / "_build" / "html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(not (HTML / "index.html").is_file(), reason="no book yet; run: make book"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; on Debian: apt install chromium"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Keep requests out of the test's output."""


@pytest.fixture(scope="module")
def site():
    """Address of the built book on this machine."""
    handler = functools.partial(Quiet, directory=HTML)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, site):
    """A fresh page; at the end, nothing failed and nothing left this machine."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, base_url=site)
    context.set_default_timeout(10_000)
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))

    def failed(request):
        if request.failure != "net::ERR_ABORTED":  # by a click that leaves the page
            problems.append(f"{request.failure} {request.url}")

    page.on("requestfailed", failed)
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("response", lambda r: problems.append(f"{r.status} {r.url}") if r.status >= 400 else 0)

    def local(route):
        if not route.request.url.startswith((site, "data:", "blob:")):
            problems.append(f"remote: {route.request.url}")
        route.continue_()

    page.route("**/*", local)
    yield page
    page.wait_for_load_state("networkidle")
    context.close()
    assert problems == []


def row(page, name):
    """Row of an optimizer in the playground's table."""
    return page.locator(".playground-table tbody tr").filter(has_text=name)


def test_a_reader_finds_a_method_through_the_search(page):
    page.goto("book/index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("AdaBelief")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=AdaBelief*")
    found = page.locator("#search-results li a", has_text="Belief").first
    found.click()
    page.wait_for_url(lambda url: "search.html" not in url)
    assert "AdaBelief" in page.locator("main").inner_text()


def test_index_to_section_to_api_page_and_back(page):
    page.goto("book/index.html")
    page.get_by_role("link", name="Index of methods").first.click()
    page.get_by_label("Filter").fill("grams")
    rows = page.locator("table.methods-index tbody tr:visible")
    assert rows.count() == 1
    rows.get_by_role("link", name="Grams", exact=False).nth(1).click()
    page.wait_for_url("**/chapters/first-order/belief-difference-and-direction.html#grams")
    assert page.get_by_role("heading", name="Grams").first.is_visible()
    page.go_back()
    page.get_by_label("Filter").fill("")
    page.get_by_label("Oracle").select_option("hvp")
    assert {"AdaHessian", "OASIS"} <= set(page.locator("tbody tr:visible a code").all_inner_texts())
    page.get_by_label("Oracle").select_option("any")
    page.get_by_label("Filter").fill("grams")
    page.locator("table.methods-index tbody tr:visible a code").first.click()
    page.wait_for_url("**/book/api/optim.html#steepest.optim.Grams")
    facts = page.locator("dt[id='steepest.optim.Grams'] + dd .api-facts")
    facts.get_by_role("link", name="Grams").first.click()
    page.wait_for_url("**#grams")


def test_the_index_narrows_by_every_list_and_sorts_by_keyboard(page):
    page.goto("book/methods.html")
    rows = page.locator("table.methods-index tbody tr:visible")
    every = rows.count()
    for label, value, some in (
        ("Part", "First-order methods", "AdaBelief"),
        ("Passes", "1 + 1", "AdamW"),
        ("State", "0", "MeZO"),
        ("Claims", "scale invariant", "INNAprop"),
        ("Year", "2023", "MeZO"),
    ):
        page.get_by_label(label, exact=True).select_option(value)
        assert 0 < rows.count() < every, label
        assert some in " ".join(rows.all_inner_texts()), label
        page.get_by_label(label, exact=True).select_option("any")
    assert rows.count() == every
    year = page.get_by_role("columnheader", name="Year")
    year.get_by_role("button").focus()
    years = []
    for _ in range(2):
        page.keyboard.press("Enter")
        years.append([int(text) for text in rows.locator("td:nth-child(9)").all_inner_texts()])
    assert years[0] == sorted(years[0])
    assert years[1] == sorted(years[1], reverse=True)


def test_the_keyboard_reaches_content_search_theme_and_next_page(page):
    page.goto("chapters/start/asking-more.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.trim()") == "Skip to main content"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main-content"
    reached = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(e => e.ariaLabel || e.title || e.className || e.tagName)(document.activeElement)"
            )
        )
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or page.evaluate("document.activeElement === document.body")
        if "next page" in reached:
            break
    assert "next page" in reached
    page.keyboard.press("Enter")
    page.wait_for_url("**/book/playground.html")


def corner(image):
    """Mean lightness, 0 to 255, of the upper left corner of an element as it is on the screen."""
    from PIL import Image

    shot = Image.open(io.BytesIO(image.screenshot())).convert("L").crop((4, 4, 12, 12))
    return sum(shot.tobytes()) / 64


def test_plots_are_dark_in_dark_mode_and_pictures_keep_their_colors(page):
    for mode, low, high in (("light", 240, 255), ("dark", 0, 60)):
        page.emulate_media(color_scheme=mode)
        page.goto("chapters/zeroth-order/searching-non-differentiable-programs.html")
        assert low <= corner(page.locator("div.cell_output img.plot").first) <= high
        assert corner(page.locator("div.cell_output img.picture").first) > 100


def test_equations_stand_beside_their_lines_and_above_them_on_a_phone(page):
    for width, beside in ((1440, True), (390, False)):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto("chapters/start/asking-more.html")
        table = page.locator("table.source").filter(has_text="optim.SAM.query")
        line = table.locator("tr").filter(has_text="objective.gradient().gradient").first
        equation, code = (line.locator("td").nth(i).bounding_box() for i in (0, 1))
        assert (abs(equation["y"] - code["y"]) < 5) == beside
        assert (equation["x"] + equation["width"] <= code["x"] + 1) == beside
        bare = table.locator("tr").filter(has_text="finally:").locator("td").first
        assert beside or not bare.is_visible()


def test_no_line_of_a_display_is_out_of_sight(page):
    wide = """() => [...document.querySelectorAll("table.source")]
        .filter((e) => e.scrollWidth > e.parentElement.clientWidth + 3)
        .map((e) => e.tHead.innerText)"""
    for chapter in sorted(HTML.glob("chapters/*/*.html")):
        page.goto(chapter.relative_to(HTML).as_posix())
        page.evaluate("MathJax.startup.promise.then(() => null)")
        assert page.evaluate(wide) == [], chapter.stem


def test_dark_mode_toggles_and_stays(page):
    page.goto("book/index.html")
    background = "getComputedStyle(document.body).backgroundColor"
    seen = {page.evaluate(background)}
    for _ in range(3):
        page.locator("button.theme-switch-button:visible").first.click()
        seen.add(page.evaluate(background))
    assert len(seen) == 2
    while page.evaluate("document.documentElement.dataset.mode") != "dark":
        page.locator("button.theme-switch-button:visible").first.click()
    page.goto("book/methods.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_notebook_downloads(page, tmp_path):
    page.goto("chapters/first-order/adam-and-its-repairs.html")
    page.locator(".dropdown-download-buttons > button").click()
    tracked = ROOT / "chapters" / "first-order" / "adam-and-its-repairs.ipynb"
    with page.expect_download() as download:
        page.locator(".dropdown-download-buttons a[href$='.ipynb']").click()
    download.value.save_as(tmp_path / "chapter.ipynb")
    assert (tmp_path / "chapter.ipynb").read_bytes() == tracked.read_bytes()
    program = page.locator(".dropdown-download-buttons a[href$='.py']").get_attribute("href")
    body = page.request.get(urljoin(page.url, program)).body()
    assert body == tracked.with_suffix(".py").read_bytes()


def test_the_whole_book_downloads_as_one_file(page, site):
    page.goto("book/index.html")
    link = page.locator("main a[href$='steepest-book.zip']").get_attribute("href")
    archive = zipfile.ZipFile(io.BytesIO(page.request.get(urljoin(page.url, link)).body()))
    names = set(archive.namelist())
    built = {p.relative_to(HTML) for p in HTML.rglob("*") if p.is_file()}
    assert names == {f"steepest-book/{p}" for p in built if p.name != "steepest-book.zip"}
    assert any(name.endswith(".ipynb") for name in names)


def test_gradient_descent_diverges_past_two_over_the_curvature_and_not_before(page):
    page.goto("book/playground.html")
    assert "2/L = 0.02" in page.locator(".playground-limit").inner_text()
    mine = row(page, "gradient descent")
    rate, height = mine.locator("input[type=number]"), mine.locator(".result")
    for value, diverges in (("0.0199", False), ("0.0201", True), ("0.019", False)):
        rate.fill(value)
        assert (height.inner_text() == "diverges") == diverges, value
    mine.locator("input[type=range]").first.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert float(rate.input_value()) > 0.02
    assert height.inner_text() == "diverges"
    assert "gradient descent diverges" in page.locator(".playground-status").inner_text()


def test_the_playground_works_by_keyboard_and_by_mouse(page):
    page.goto("book/playground.html")
    across, up = page.get_by_label("start, x"), page.get_by_label("start, y")
    handle = page.locator(".playground .start")
    handle.focus()
    before = float(across.input_value()), float(up.input_value())
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert float(across.input_value()) > before[0]
    assert float(up.input_value()) > before[1]

    box = page.locator(".playground svg").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 4
    spot = handle.bounding_box()
    page.mouse.move(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
    page.mouse.down()
    page.mouse.move(x, y)
    page.mouse.up()
    assert abs(float(across.input_value())) < 0.1
    assert abs(float(up.input_value()) - 1) < 0.1
    page.mouse.move(x, y + 50)
    assert abs(float(up.input_value()) - 1) < 0.1, "the button is up"

    page.get_by_role("button", name="Race", exact=True).click()
    page.wait_for_function("Number(document.querySelector('[id$=-step]').value) > 10")
    page.get_by_role("button", name="Pause").click()
    page.locator(".playground select").select_option("rosenbrock")
    page.get_by_label("show Grams").check()
    assert row(page, "Grams").locator(".result").inner_text() != ""
    assert float(across.input_value()) == -1.2


def test_the_playground_without_javascript_shows_a_race(chromium, site):
    context = chromium.new_context(java_script_enabled=False, base_url=site)
    page = context.new_page()
    page.goto("book/playground.html")
    assert page.locator(".playground svg path.race").count() == 3
    assert "Adam" in page.locator(".playground-static").inner_text()
    page.goto("book/methods.html")
    assert page.locator("table.methods-index tbody tr").count() > 30
    context.close()


PAGES = ["book/index.html", "book/playground.html", "book/methods.html", "book/guide.html"]
PAGES += [f"book/api/{path.name}" for path in sorted(HTML.glob("book/api/*.html"))]


@pytest.mark.parametrize("path", PAGES)
def test_a_phone_shows_the_page_without_sideways_scrolling(page, path):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(path)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390
    controls = page.locator(".playground :is(input, select, button):visible").all()
    for control in controls:
        box = control.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


FAINT = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const lightness = (color) => {
    const [r, g, b] = channels(color).map((c) => {
      const x = c / 255;
      return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      const [, , , alpha = 1] = channels(color);
      if (alpha === 1) return color;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !element.checkVisibility({ visibilityProperty: true }))
      continue;
    if (element.closest("svg, script, style, noscript, mjx-assistive-mml, [disabled]")) continue;
    const pair = [lightness(style.color), lightness(behind(element))].sort((a, b) => a - b);
    const ratio = (pair[1] + 0.05) / (pair[0] + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5))
      found.add(`${ratio.toFixed(2)} ${element.className}: ${walker.currentNode.data.trim()}`);
  }
  return [...found];
}"""
"""Texts whose contrast is below what WCAG asks at level AA."""


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize(
    "path",
    [
        "book/index.html",
        "book/methods.html",
        "book/playground.html",
        "book/api/optim.html",
        "chapters/first-order/adam-and-its-repairs.html",
        "chapters/start/asking-more.html",
    ],
)
def test_text_stands_out(page, path, mode):
    page.emulate_media(color_scheme=mode)
    page.goto(path)
    page.wait_for_timeout(500)  # colors fade in
    assert page.evaluate("document.documentElement.dataset.theme") == mode
    assert page.evaluate(FAINT) == []
