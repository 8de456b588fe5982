"""Downloads: a chapter as a program, the whole site as one file, the book as PDF."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ARCHIVE = "steepest-book.zip"
PDF = "steepest.pdf"


def made_pdf(app: Sphinx) -> Path | None:
    """The book as ``make pdf`` has left it beside the site; None if it was not run."""
    made = Path(app.outdir).parent / "latex" / PDF
    return made if made.is_file() else None


def source_of(app: Sphinx, page: str) -> Path | None:
    """The Python source of a chapter; None for other pages."""
    source = Path(app.srcdir, f"{page}.py")
    return source if page.startswith("chapters/") and source.is_file() else None


def add_buttons(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Offer the source, and the book, in the theme's list of downloads."""
    offered = []
    if source_of(app, page):
        url = f"{context['pathto']('_sources', 1)}/{page}.py"
        offered.append((".py", url, "Download as a Python program", "fas fa-code"))
    if made_pdf(app):
        url = context["pathto"](PDF, 1)
        offered.append(("book.pdf", url, "Download the whole book as PDF", "fas fa-book"))
    for group in context["header_buttons"]:
        if group["label"] == "download-buttons":
            group["buttons"][1:1] = [
                {"type": "link", "text": text, "url": url, "tooltip": tip, "icon": icon}
                for text, url, tip, icon in offered
            ]


def copy_and_pack(app: Sphinx, error: Exception | None) -> None:
    """Copy sources and PDF into the site, then pack the site."""
    if error is not None or app.builder.name != "html":
        return
    site = Path(app.outdir)
    for page in sorted(app.env.found_docs):
        if source := source_of(app, page):
            shutil.copy2(source, site / "_sources" / f"{page}.py")
    if made := made_pdf(app):
        shutil.copy2(made, site / PDF)
    files = sorted(p for p in site.rglob("*") if p.is_file() and p.name != ARCHIVE)
    with zipfile.ZipFile(site / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, Path("steepest-book", path.relative_to(site)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("html-page-context", add_buttons, priority=600)
    app.connect("build-finished", copy_and_pack, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
