"""``{gallery}``: sections of chapters as pictures, each the first plot that the section draws."""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from docutils import nodes
from figures import describe, drawings
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FOLDER = Path("_images", "gallery")


class Shown(NamedTuple):
    """What a gallery shows of a section."""

    page: str
    target: str
    title: str
    alt: str
    png: bytes


def first_plot(root: Path, target: str) -> Shown | None:
    """The first plot below ``(target)=``, up to the next section; None where there is none."""
    for path in sorted((root / "chapters").glob("*/*.ipynb")):
        title = ""
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                starts = re.search(rf"^\({re.escape(target)}\)=\n+#+ (.+)$", cell.source, re.M)
                if starts:
                    title = starts[1]
                elif title and re.search("^## ", cell.source, re.M):
                    break
            elif title:
                pictures = [
                    out["data"] for out in cell.outputs if "image/png" in out.get("data", ())
                ]
                for code, data in zip(drawings(cell.source, len(pictures)), pictures, strict=True):
                    page = path.relative_to(root).with_suffix("").as_posix()
                    png = base64.b64decode(data["image/png"])
                    return Shown(page, target, title, describe(code), png)
    return None


class Gallery(SphinxDirective):
    """Pictures with their sections' titles, linked."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Write figures; their files are written when the site is."""
        self.env.note_reread()  # chapters may have been run again when this page has not changed
        root = "../" * self.env.docname.count("/")
        shown: dict[str, Any] = self.env.__dict__.setdefault("gallery", {})
        cards = []
        for target in " ".join(self.content).split():
            found = first_plot(Path(self.env.app.srcdir), target)
            if found is None:
                raise self.error(f"no chapter has a section ({target})= with a plot")
            shown[target] = found
            url = f"{root}{found.page}.html#{nodes.make_id(target)}"
            image = f"{root}{FOLDER.as_posix()}/{target}.png"
            cards.append(
                f'<a href="{url}"><img class="plot" loading="lazy" src="{image}"'
                f' alt="{escape(found.alt)}"><span>{escape(found.title)}</span></a>'
            )
        return [nodes.raw("", f'<div class="gallery">{"".join(cards)}</div>', format="html")]


def write_pictures(app: Sphinx, error: Exception | None) -> None:
    """Put the pictures where the pages expect them."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for found in getattr(app.env, "gallery", {}).values():
            (folder / f"{found.target}.png").write_bytes(found.png)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("gallery", Gallery)
    app.connect("build-finished", write_pictures)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
