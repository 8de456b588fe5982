"""``{api-room} optim``: the reference of every public name of a room of the package.

Names are documented under the path that users import, ``steepest.<room>.<Name>``, with what the
registry knows about them and links to the chapters whose code uses them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import steepest
from steepest import _registry


def rooms() -> list[str]:
    """Names of the rooms that export something, in the alphabet's order."""
    found = (module.name for module in pkgutil.iter_modules(steepest.__path__) if module.ispkg)
    return sorted(room for room in found if public_names(room))


@cache
def public_names(room: str) -> tuple[str, ...]:
    """What ``from ._file import Name as Name`` exports: no modules, nothing from elsewhere."""
    module = importlib.import_module(f"steepest.{room}")
    return tuple(sorted((n for n in origins(module) if _is_public(module, n)), key=str.lower))


def _is_public(module: ModuleType, name: str) -> bool:
    return not name.startswith("_") and not inspect.ismodule(getattr(module, name, module))


@cache
def origins(module: ModuleType) -> dict[str, str]:
    """Exported name -> module of the package that defines it, read from the room's imports."""
    tree = ast.parse(inspect.getsource(module))
    return {
        alias.asname: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("steepest")
        for alias in node.names
        if alias.asname
    }


@cache
def chapters_using(root: Path) -> dict[str, list[str]]:
    """Public path -> chapters (document names) whose code imports or names it."""
    users: dict[str, list[str]] = defaultdict(list)
    for source in sorted((root / "chapters").rglob("*.py")):
        if ".ipynb_checkpoints" in source.parts:
            continue
        chapter = source.relative_to(root).with_suffix("").as_posix()
        for path in sorted(paths_in(ast.parse(source.read_text("utf-8")))):
            users[path].append(chapter)
    return users


def paths_in(tree: ast.Module) -> set[str]:
    """Full paths, such as ``steepest.optim.AdamW``, of all that a program takes from us."""
    local: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            local |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            for a in node.names:
                name = a.asname or a.name.partition(".")[0]
                local[name] = a.name if a.asname else name
    used = set(local.values())
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in local:
            used.add(".".join([local[node.id], *reversed(parts)]))
    return {path for path in used if path.startswith("steepest.")}


@cache
def facts(root: Path) -> dict[str, list[str]]:
    """Public path -> field list on its paper, its costs and the chapters that use it."""
    fields: dict[str, list[str]] = defaultdict(list)
    for m in _registry.methods():
        passes = f"{m.forward} forward + {m.backward} backward"
        fields[m.path] += [f":Paper: :cite:t:`{m.paper}`"]
        fields[m.path] += [f":Oracle: {m.oracle}; passes per step: {passes}"]
        fields[m.path] += [f":State: {m.state_bytes} bytes per float32 parameter"]
    for record in _registry.records(root):
        for path in record["symbols"] if record["chapter"] else ():
            fields[path] += [f":Explained in: :ref:`{record['chapter'].partition('#')[2]}`"]
    for path, chapters in chapters_using(root).items():
        fields[path] += [f":Used in: {', '.join(f':doc:`/{c}`' for c in chapters)}"]
    return dict(fields)


def facts_block(path: str, root: Path) -> list[str]:
    """:func:`facts` on one public name, as ReStructuredText to put below its docstring."""
    fields = facts(root).get(path, [])
    return ["", ".. container:: api-facts", "", *(f"   {field}" for field in fields), ""]


def add_facts(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Append :func:`facts_block` to a docstring (after napoleon, which runs first)."""
    if name in facts(Path(app.srcdir)):
        lines += facts_block(name, Path(app.srcdir))


def keep_first_line(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Stop napoleon from taking what stands before a colon for an attribute's type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def entry(room: str, name: str, root: Path) -> list[str]:
    """ReStructuredText that documents one public name."""
    module = importlib.import_module(f"steepest.{room}")
    obj, path = getattr(module, name), f"steepest.{room}.{name}"
    if inspect.isclass(obj):
        bases = [base for base in obj.__mro__[1:] if base.__module__.startswith("steepest.")]
        hooks = {member for member in vars(obj) if any(member in vars(base) for base in bases)}
        hidden = f"   :exclude-members: {', '.join(sorted(hooks))}"  # documented with the base
        return [f".. autoclass:: {path}", "   :members:", hidden, ""]
    if inspect.isroutine(obj):
        return [f".. autofunction:: {path}", ""]
    # An object: its documentation is the string below its assignment, where it is defined.
    comments = ModuleAnalyzer.for_module(origins(module)[name]).find_attr_docs()
    text = comments.get(("", name)) or (inspect.getdoc(obj) or "").splitlines()
    if path in facts(root):
        text = [*text, *facts_block(path, root)]
    return [f".. py:data:: {path}", "", *(f"   {line}" for line in text), ""]


class ApiRoom(SphinxDirective):
    """Reference of one room."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Hand autodoc one entry a name, through MyST's ``{eval-rst}``."""
        self.env.note_reread()  # docstrings and chapters may have changed when this page has not
        room, root = self.arguments[0], Path(self.env.app.srcdir)
        lines = [line for name in public_names(room) for line in entry(room, name, root)]
        return self.parse_text_to_nodes("\n".join(["```{eval-rst}", *lines, "```"]))


class ApiRooms(SphinxDirective):
    """Table of the rooms, with the first line of each one's docstring."""

    def run(self) -> list[nodes.Node]:
        """Write the table as Markdown; a room without a page fails the build."""
        self.env.note_reread()
        here = Path(self.env.doc2path(self.env.docname)).parent
        lines = ["| Room | What lives there | Names |", "|---|---|---|"]
        for room in rooms():
            if not (here / f"{room}.md").is_file():
                raise self.error(f"room {room!r} exports names but has no page {room}.md")
            first = (inspect.getdoc(importlib.import_module(f"steepest.{room}")) or "").split("\n")
            names = ", ".join(f"{{py:obj}}`~steepest.{room}.{n}`" for n in public_names(room))
            lines.append(f"| [`steepest.{room}`]({room}.md) | {first[0]} | {names} |")
        return self.parse_text_to_nodes("\n".join(lines))


def resolve_missing(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Link ``steepest.optim._adam.Adam`` to its public entry; leave other types as text.

    Types of other projects stay text, because their inventories would come from the network.
    """
    target: str = node.get("reftarget", "")
    first, _, rest = target.partition(".")
    if node.get("refdomain") != "py":
        return None
    if not rest:  # a name in an annotation, from the module that defines the entry
        return content if target in known_types() else None
    if first != "steepest":
        known = first == "nn" or importlib.util.find_spec(first) is not None
        return content if known else None
    if "._" not in target:
        return None
    room, name = target.split(".")[1], target.rpartition(".")[2]
    if name not in public_names(room):
        return content
    domain: Any = env.get_domain("py")
    public = f"steepest.{room}.{name}"
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, content)


@cache
def known_types() -> frozenset[str]:
    """Names that annotations may use without a module: what the package's files hold."""
    found = set()
    for path in Path(steepest.__file__).parent.rglob("_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Assign):
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                found |= {alias.asname or alias.name for alias in node.names}
    return frozenset(found)


def forget(app: Sphinx) -> None:
    """Read chapters, exports and registry afresh in every build."""
    for function in (chapters_using, facts, origins, known_types, public_names):
        function.cache_clear()


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("api-room", ApiRoom)
    app.add_directive("api-rooms", ApiRooms)
    app.connect("builder-inited", forget)
    app.connect("autodoc-process-docstring", keep_first_line, priority=100)
    app.connect("autodoc-process-docstring", add_facts, priority=900)
    app.connect("missing-reference", resolve_missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
