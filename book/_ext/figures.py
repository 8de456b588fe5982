"""Figures of chapters: a text for who cannot see them, and a mark on those that dark mode inverts.

The text is what the code writes on the figure. Plots are inverted; an image that a figure shows is
not, since its black is black.
"""

from __future__ import annotations

import ast

from docutils import nodes
from sphinx.application import Sphinx

AXES = {"xlabel": "across", "ylabel": "up", "title": "title"}
SETTERS = {f"set_{name}": name for name in AXES} | {name: name for name in AXES}
SETTERS |= {"suptitle": "title", "set_label": "ylabel"}


def _texts(node: ast.expr) -> list[str]:
    """Constant strings of an expression; of an f-string what is constant in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        parts = [str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values]
        return ["".join(parts)]
    return []


def describe(code: str) -> str:
    """What a figure shows, from the titles, labels and legends that its code sets."""
    found: dict[str, list[str]] = {"title": [], "across": [], "up": [], "curves": []}
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a magic command
        tree = ast.parse("")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        for keyword in call.keywords:
            if keyword.arg in AXES:
                found[AXES[keyword.arg]] += _texts(keyword.value)
            elif keyword.arg == "label":
                found["curves"] += _texts(keyword.value)
        if name in SETTERS and call.args:
            found[AXES[SETTERS[name]]] += _texts(call.args[0])
    parts = [f"{kind}: {', '.join(dict.fromkeys(texts))}" for kind, texts in found.items() if texts]
    return "Figure. " + ("; ".join(parts) if parts else "Drawn by the code above") + "."


def drawings(code: str, count: int) -> list[str]:
    """The code of each of a cell's figures: up to its ``plt.show()``, or all of the cell."""
    parts = code.split("plt.show()")[:-1]
    return parts if len(parts) == count else [code] * count


def mark(app: Sphinx, document: nodes.document) -> None:
    """Give the figures of each cell their descriptions, and say which are plots."""
    for cell in document.findall(nodes.container):
        if cell.get("nb_element") != "cell_code":
            continue
        images = [image for image in cell.findall(nodes.image) if not image.get("alt")]
        source = next(iter(cell.findall(nodes.literal_block)), None)
        codes = drawings(source.astext() if source else "", len(images))
        for image, code in zip(images, codes, strict=True):
            image["alt"] = describe(code)
            image["classes"] += ["picture" if "imshow(" in code else "plot"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("doctree-read", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
