"""Downloads: a chapter's Python source beside its notebook, and the whole site as one file."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ARCHIVE = "steepest-book.zip"


def source_of(app: Sphinx, page: str) -> Path | None:
    """The Python source of a chapter; None for other pages."""
    source = Path(app.srcdir, f"{page}.py")
    return source if page.startswith("chapters/") and source.is_file() else None


def add_button(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Offer the source in the theme's list of downloads."""
    if source_of(app, page) is None:
        return
    for group in context["header_buttons"]:
        if group["label"] == "download-buttons":
            button = {
                "type": "link",
                "url": f"{context['pathto']('_sources', 1)}/{page}.py",
                "text": ".py",
                "tooltip": "Download as a Python program",
                "icon": "fas fa-code",
                "label": "download-program-button",
            }
            group["buttons"].insert(1, button)


def copy_and_pack(app: Sphinx, error: Exception | None) -> None:
    """Copy the sources into the site, then pack the site."""
    if error is not None or app.builder.name != "html":
        return
    site = Path(app.outdir)
    for page in sorted(app.env.found_docs):
        if source := source_of(app, page):
            shutil.copy2(source, site / "_sources" / f"{page}.py")
    files = sorted(p for p in site.rglob("*") if p.is_file() and p.name != ARCHIVE)
    with zipfile.ZipFile(site / ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, Path("steepest-book", path.relative_to(site)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("html-page-context", add_button, priority=600)
    app.connect("build-finished", copy_and_pack, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
