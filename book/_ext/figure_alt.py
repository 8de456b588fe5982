"""A text for every figure of a chapter, for who cannot see it: what its code writes on it."""

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


def set_alt(app: Sphinx, document: nodes.document) -> None:
    """Give the figures of each cell its description."""
    for cell in document.findall(nodes.container):
        if cell.get("nb_element") != "cell_code":
            continue
        images = [image for image in cell.findall(nodes.image) if not image.get("alt")]
        source = next(iter(cell.findall(nodes.literal_block)), None)
        for image in images:
            image["alt"] = describe(source.astext() if source else "")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("doctree-read", set_alt)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
