"""The built book: nothing remote, every link leads somewhere, every method is listed."""

import posixpath
import re
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from docutils.nodes import make_id
from pybtex.database import parse_file
from sphinx.util.inventory import InventoryFile

from steepest import _registry

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "book" / "_build" / "html"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
RECORDS = _registry.records(ROOT)
SYMBOLS = sorted({symbol for record in RECORDS for symbol in record["symbols"]})
PAGES = [
    page.relative_to(HTML).as_posix()
    for page in sorted(HTML.rglob("*.html"))
    if not page.relative_to(HTML).parts[0].startswith(("_static", "_sources", "_images"))
]
NOTEBOOKS = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("chapters/*/*.ipynb"))]


@pytest.fixture(autouse=True)
def built(request):
    if request.node.get_closest_marker("site") and not (HTML / "book" / "index.html").is_file():
        pytest.skip("there is no book yet: make book")


@cache
def soup(page: str) -> BeautifulSoup:
    return BeautifulSoup((HTML / page).read_text("utf-8"), "html.parser")


@cache
def ids(page: str) -> set[str]:
    return {tag["id"] for tag in soup(page).find_all(id=True)}


def is_redirect(page: str) -> bool:
    return soup(page).find("meta", attrs={"http-equiv": "Refresh"}) is not None


# The bibliography, which needs no site


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["paper"])
def test_paper_is_in_the_bibliography_under_its_exact_title(record):
    entries = parse_file(ROOT / "book" / "references.bib").entries
    assert record["paper"] in entries
    title = re.sub(r"[{}]", "", entries[record["paper"]].fields["title"])
    assert record["title"] == title


# The site


@pytest.mark.site
@pytest.mark.parametrize("page", PAGES)
def test_page_loads_nothing_remote(page):
    remote = []
    for tag in soup(page).find_all(["script", "img", "source", "iframe", "video", "audio", "use"]):
        remote += [tag[name] for name in ("src", "srcset", "href") if tag.has_attr(name)]
    for tag in soup(page).find_all("link"):
        if not {"canonical", "edit"} & set(tag.get("rel", [])):
            remote.append(tag.get("href", ""))
    styles = [tag.get_text() for tag in soup(page).find_all("style")]
    assert not [url for url in remote if re.match(r"(https?:)?//", url)]
    assert not [text for text in styles if re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", text)]


@pytest.mark.site
def test_style_sheets_load_nothing_remote():
    for sheet in HTML.joinpath("_static").rglob("*.css"):
        text = sheet.read_text("utf-8", errors="replace")
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", text), sheet


@pytest.mark.site
@pytest.mark.parametrize("page", PAGES)
def test_page_has_a_title(page):
    if not is_redirect(page):
        assert soup(page).title.get_text(strip=True)
        assert [heading for heading in soup(page).find_all("h1") if heading.get_text(strip=True)]


@pytest.mark.site
@pytest.mark.parametrize("page", PAGES)
def test_pictures_have_a_text(page):
    pictures = soup(page).select("main img")
    missing = [str(tag) for tag in pictures if not tag.has_attr("alt")]
    missing += [str(tag) for tag in pictures if tag.find_parent(class_="cell") and not tag["alt"]]
    missing += [str(tag)[:80] for tag in soup(page).select("main svg[role=img]") if not tag.title]
    assert not missing


@pytest.mark.site
@pytest.mark.parametrize("page", PAGES)
def test_internal_links_lead_somewhere(page):
    broken = []
    for tag in soup(page).find_all(["a", "link", "script", "img"]):
        url = tag.get("href") or tag.get("src") or ""
        parts = urlsplit(url)
        if parts.scheme or parts.netloc or not url:
            continue
        target = (HTML / page).parent / unquote(parts.path) if parts.path else HTML / page
        if not target.is_file():
            broken.append(url)
        elif parts.fragment and target.suffix == ".html":
            there = target.resolve().relative_to(HTML).as_posix()
            if unquote(parts.fragment) not in ids(there):
                broken.append(url)
    assert not broken


def typed(text: str) -> str:
    """Text as one types it: pages have typographic quotes and dashes."""
    for printed, keys in {"\u2019": "'", "\u2018": "'", "\u2013": "--", "\u2014": "---"}.items():
        text = text.replace(printed, keys)
    return " ".join(text.split())


@pytest.mark.site
def test_every_page_of_the_toc_is_built():
    def files(node):
        if isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
        for child in node.values() if isinstance(node, dict) else node:
            if isinstance(child, dict | list):
                yield from files(child)

    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    assert {f"{file}.html" for file in files(toc)} <= set(PAGES)
    chapters = {notebook.removesuffix(".ipynb") for notebook in NOTEBOOKS}
    assert chapters <= set(files(toc)), "a chapter is missing in _toc.yml"


@pytest.mark.site
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["paper"])
def test_index_lists_the_method(record):
    rows = soup("book/methods.html").select("table.methods-index tbody tr")
    assert len(rows) == len(RECORDS)
    (row,) = [row for row in rows if record["title"] in typed(row.get_text())]
    links = [link["href"] for link in row.find_all("a")]
    for symbol in record["symbols"]:
        assert f"api/{symbol.split('.')[1]}.html#{symbol}" in links
    if record["chapter"]:
        notebook, _, label = record["chapter"].partition("#")
        assert f"../{notebook.removesuffix('.ipynb')}.html#{make_id(label)}" in links
    head = soup("book/methods.html").select("table.methods-index thead th")
    titles = [cell.get_text(strip=True) for cell in head]
    texts = [cell.get_text(" ", strip=True) for cell in row.find_all("td")]
    cells = dict(zip(titles, texts, strict=True))
    passes = record["passes"]
    assert cells["Oracle"] == record["oracle"]
    assert cells["Passes (F + B)"] == f"{passes['forward']} + {passes['backward']}"
    assert cells["State (bytes)"] == str(record["state_bytes"])
    fields = parse_file(ROOT / "book" / "references.bib").entries[record["paper"]].fields
    assert cells["Year"] == fields.get("year", "–")
    if "eprint" in fields:
        assert f"https://arxiv.org/abs/{fields['eprint']}" in links


@pytest.mark.site
@pytest.mark.parametrize("symbol", SYMBOLS)
def test_method_has_an_api_entry(symbol):
    entry = soup(f"book/api/{symbol.split('.')[1]}.html").find(id=symbol)
    assert entry is not None and entry.name == "dt"
    assert "Paper" in entry.find_next_sibling("dd").find(class_="api-facts").get_text()


@pytest.mark.site
def test_inventory_has_every_method_for_other_projects():
    with (HTML / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", posixpath.join)
    known = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    assert set(SYMBOLS) <= known


@pytest.mark.site
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_code_links_to_the_reference(notebook):
    page = soup(notebook.replace(".ipynb", ".html"))
    links = {link["href"] for link in page.select("div.highlight a.sphinx-codeautolink-a")}
    assert any("book/api/" in link and "#steepest." in link for link in links)


@pytest.mark.site
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_launch_buttons_lead_to_a_tracked_notebook(notebook):
    page = soup(notebook.replace(".ipynb", ".html"))
    links = {link.get("href", "") for link in page.select(".dropdown-launch-buttons a")}
    owner = urlsplit(CONFIG["repository"]["url"]).path.strip("/")
    branch = CONFIG["repository"]["branch"]
    assert links == {
        f"https://mybinder.org/v2/gh/{owner}/{branch}?urlpath=lab/tree/{notebook}",
        f"https://colab.research.google.com/github/{owner}/blob/{branch}/{notebook}",
    }
    git = subprocess.run(["git", "ls-files", notebook], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip("not a git checkout")
    assert git.stdout.split() == [notebook]
