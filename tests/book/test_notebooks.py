"""The notebook guard: a notebook is its source, run, and fit to be read, launched and merged."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import plotting
import pytest
import yaml
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from refresh import CHAPTERS, METADATA, STATUS, cells, is_stale, read, sources, update_prose

from steepest import _registry

LIMIT = 300_000
CHECKED = re.compile(r"^\s*#+\s*NBVAL_CHECK_OUTPUT\s*$", re.MULTILINE)
MACHINE = re.compile(r"(?<![\w.:/-])/(?:home|opt|root|tmp|Users|usr|work)/\S+|[A-Z]:\\Users\\\S+")
ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")


def notebooks(folder: Path = CHAPTERS) -> list[Path]:
    return sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def code_cells(path: Path) -> list[tuple[int, NotebookNode]]:
    """Position and cell, of the cells of code that are not empty."""
    numbered = enumerate(read(path).cells)
    return [(k, c) for k, c in numbered if c.cell_type == "code" and c.source.strip()]


def data(cell: NotebookNode) -> Iterator[tuple[str, str]]:
    """MIME type and content of each thing that a cell put out."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield "text/plain", output.text
        yield from output.get("data", {}).items()


# Each check yields what is wrong with a notebook, and nothing if all is well.


def unlike_source(path: Path) -> Iterator[str]:
    source = path.with_suffix(".py")
    if not source.is_file():
        yield f"has no source {source.name}"
        return
    expected, actual = cells(read(source)), cells(read(path))
    if len(expected) != len(actual):
        yield f"has {len(actual)} cells, its source {len(expected)}"
    for k, (want, have) in enumerate(zip(expected, actual, strict=False)):
        if want != have:
            yield f"cell {k} differs from its source"


def not_run(path: Path) -> Iterator[str]:
    for k, cell in code_cells(path):
        if cell.execution_count is None:
            yield f"cell {k} was not run"


def failed(path: Path) -> Iterator[str]:
    for k, cell in code_cells(path):
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"cell {k} failed"


def unchecked(path: Path) -> Iterator[str]:
    for k, cell in code_cells(path):
        if CHECKED.search(cell.source) and not any(content for _, content in data(cell)):
            yield f"cell {k} is marked NBVAL_CHECK_OUTPUT and shows nothing to check"


def too_large(path: Path) -> Iterator[str]:
    if (size := path.stat().st_size) > LIMIT:
        yield f"takes {size:,} bytes, more than {LIMIT:,}: show less, or at a lower resolution"


def figures(path: Path) -> Iterator[str]:
    kinds = [(k, kind, text) for k, cell in code_cells(path) for kind, text in data(cell)]
    for k, kind, text in kinds:
        drawn = kind.startswith("image/") or (kind == "text/html" and "<svg" in text)
        if drawn and kind != "image/png":
            yield f"cell {k} shows a figure that is not png"
    if not any(kind == "image/png" for _, kind, _ in kinds):
        yield "shows no figure"


def of_one_machine(path: Path) -> Iterator[str]:
    for k, cell in code_cells(path):
        for kind, text in data(cell):
            for pattern in (MACHINE, ADDRESS) if kind.startswith("text/") else ():
                if found := pattern.search(text):
                    yield f"cell {k} shows {found.group()!r}, which is different elsewhere"


SET_UP = """\
# Where the book's plotting module is. On Colab, first fetch the book and install its package.
import os
import sys

if "google.colab" in sys.modules:
    os.system("git clone -q --depth 1 {repository}")
    os.system("pip install -q './{name}/core[cpu]'")
    os.chdir("{name}/chapters/{part}")
sys.path.append("../../book")"""
REPOSITORY = yaml.safe_load((CHAPTERS.parent / "_config.yml").read_text("utf-8"))["repository"][
    "url"
]
PALETTE = re.compile("|".join(v for v in vars(plotting).values() if str(v).startswith("#")), re.I)


def unlike_the_others(path: Path) -> Iterator[str]:
    """Every chapter of the book starts with the same set-up, and has the book's colors."""
    if not path.is_relative_to(CHAPTERS):
        return
    name = REPOSITORY.rpartition("/")[2]
    expected = SET_UP.format(repository=REPOSITORY, name=name, part=path.parent.name)
    cell = code_cells(path)[0][1]
    if cell.source != expected or cell.metadata.get("tags") != ["remove-cell"]:
        yield "does not start with the set-up cell that other chapters have"
    for k, cell in code_cells(path):
        if PALETTE.search(cell.source) or "rcParams" in cell.source:
            yield f"cell {k} has colors or a style of its own: take them from book/plotting.py"


def exercises(path: Path) -> Iterator[str]:
    """Every chapter of the book ends in exercises, whose solutions are hidden, and run."""
    if not path.is_relative_to(CHAPTERS):
        return
    cells = read(path).cells
    at = [k for k, cell in enumerate(cells) if "## Exercises" in cell.source]
    solved = [c for c in cells[at[0] :] if "hide-cell" in c.metadata.get("tags", [])] if at else []
    if not solved:
        yield "has no exercises with hidden solutions"


def metadata(path: Path) -> Iterator[str]:
    if read(path).metadata != METADATA:
        yield "has metadata that make refresh does not write"


CHECKS = [
    unlike_source,
    not_run,
    failed,
    unchecked,
    too_large,
    figures,
    of_one_machine,
    unlike_the_others,
    exercises,
    metadata,
]


def without_notebook(folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in sources(folder) if not twin(p).is_file()]


def twin(source: Path) -> Path:
    return source.with_suffix(".ipynb")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", notebooks(), ids=lambda p: p.relative_to(CHAPTERS).as_posix())
def test_notebook(path, check):
    problems = list(check(path))
    assert not problems, f"{path.name} {'; '.join(problems)}. Try make refresh."


def test_every_source_has_a_notebook():
    assert without_notebook(CHAPTERS) == [], "run make refresh"


SHOWN = re.compile(r"\b(listing\(|RULES\[|REDUCTIONS\[)")


def test_every_method_shows_its_source():
    """Equations beside lines, in the section that the registry knows as the method's."""
    silent = []
    for record in _registry.records(CHAPTERS.parent):
        file, _, target = record["chapter"].partition("#")
        heading, inside, seen = rf"^\({re.escape(target)}\)=$", False, False
        for cell in read(CHAPTERS.parent / file).cells:
            if cell.cell_type == "markdown":
                starts = re.search(heading, cell.source, re.MULTILINE)
                ends = re.search(r"^## ", cell.source, re.MULTILINE)
                inside = bool(starts) or (inside and not ends)
            elif inside and SHOWN.search(cell.source):
                seen = True
        if not seen:
            silent.append(record["chapter"])
    assert not silent, f"no cell shows RULES[...] or listing(...) in {silent}"


def test_status_knows_every_chapter():
    chapters = {p.relative_to(CHAPTERS).with_suffix("").as_posix() for p in sources()}
    status = json.loads(STATUS.read_text("utf-8"))
    assert set(status) == chapters, "run make refresh; take out what is gone"
    assert all(run["seconds"] > 0 and run["peak_mib"] > 100 for run in status.values())


# The guard itself, on a chapter that is well and on what can go wrong with it.

SOURCE = """\
# %% [markdown]
# # A chapter

# %% tags=["hide-input"]
# NBVAL_CHECK_OUTPUT
print("it holds:", 1 < 2)

# %%
from IPython.display import Image

Image(PNG)
"""
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def write(folder: Path, notebook: NotebookNode) -> Path:
    path = folder / "chapter.ipynb"
    nbformat.write(notebook, path)
    path.with_suffix(".py").write_text(SOURCE)
    return path


@pytest.fixture
def sound() -> NotebookNode:
    """The notebook of SOURCE as a run leaves it."""
    shown = new_output("display_data", data={"image/png": PNG})
    said = new_output("stream", name="stdout", text="it holds: True\n")
    text = SOURCE.split("\n\n# %%")
    return new_notebook(
        metadata=METADATA,
        cells=[
            new_markdown_cell("# A chapter"),
            new_code_cell(
                text[1].partition("\n")[2],
                execution_count=1,
                outputs=[said],
                metadata={"tags": ["hide-input"]},
            ),
            new_code_cell(text[2].strip(), execution_count=2, outputs=[shown]),
        ],
    )


def put(cell: NotebookNode, **content: str) -> None:
    cell.outputs.append(new_output("display_data", data=content))


BREAKS = {
    "source changed": (unlike_source, lambda nb: nb.cells[2].update(source="1 + 1")),
    "prose changed": (unlike_source, lambda nb: nb.cells[0].update(source="# Another chapter")),
    "tag lost": (unlike_source, lambda nb: nb.cells[1].metadata.clear()),
    "kind changed": (
        unlike_source,
        lambda nb: nb.cells.__setitem__(0, nbformat.v4.new_raw_cell("# A chapter")),
    ),
    "cell lost": (unlike_source, lambda nb: nb.cells.pop(0)),
    "cell added": (unlike_source, lambda nb: nb.cells.append(new_markdown_cell("More."))),
    "not run": (not_run, lambda nb: nb.cells[2].update(execution_count=None)),
    "error": (
        failed,
        lambda nb: nb.cells[2].outputs.append(
            new_output("error", ename="ValueError", evalue="no", traceback=[])
        ),
    ),
    "nothing to check": (unchecked, lambda nb: nb.cells[1].update(outputs=[])),
    "large": (too_large, lambda nb: put(nb.cells[2], **{"image/png": "A" * LIMIT})),
    "svg": (figures, lambda nb: put(nb.cells[2], **{"image/svg+xml": "<svg/>"})),
    "svg in html": (figures, lambda nb: put(nb.cells[2], **{"text/html": "<p><svg></svg>"})),
    "no figure": (figures, lambda nb: nb.cells[2].update(outputs=[])),
    "path": (
        of_one_machine,
        lambda nb: put(nb.cells[2], **{"text/plain": "saved in '/home/ada/runs'"}),
    ),
    "path on stderr": (
        of_one_machine,
        lambda nb: nb.cells[2].outputs.append(
            new_output("stream", name="stderr", text="/opt/lib/x.py:3: UserWarning")
        ),
    ),
    "address": (
        of_one_machine,
        lambda nb: put(nb.cells[2], **{"text/plain": "<Axes at 0x7f12ab34cd56>"}),
    ),
    "version": (metadata, lambda nb: nb.metadata.language_info.update(version="3.11.7")),
}


def test_guard_passes_a_sound_notebook(tmp_path, sound):
    path = write(tmp_path, sound)
    assert [problem for check in CHECKS for problem in check(path)] == []
    assert without_notebook(tmp_path) == []
    assert not is_stale(path.with_suffix(".py"))


@pytest.mark.parametrize("name", BREAKS)
def test_guard_names_what_is_broken(tmp_path, sound, name):
    expected, break_it = BREAKS[name]
    break_it(sound)
    path = write(tmp_path, sound)
    assert [check for check in CHECKS if list(check(path))] == [expected]


def test_guard_misses_the_other_twin(tmp_path, sound):
    path = write(tmp_path, sound)
    moved = path.rename(path.with_name("other.ipynb"))
    assert list(unlike_source(moved)) == ["has no source other.py"]
    assert without_notebook(tmp_path) == ["chapter.py"]


@pytest.mark.parametrize("text", ["and/or/opt/x", "https://a.org/home/x", "lr/tmp/x", "./usr/x"])
def test_guard_knows_a_path_from_a_slash(tmp_path, sound, text):
    put(sound.cells[2], **{"text/plain": text})
    assert list(of_one_machine(write(tmp_path, sound))) == []


def test_prose_is_taken_over_without_a_run(tmp_path, sound):
    path = write(tmp_path, sound)
    source = path.with_suffix(".py")
    source.write_text(SOURCE.replace("# # A chapter", "# # Another title\n#\n# And more."))
    assert is_stale(source)
    assert update_prose(source)
    assert not is_stale(source)
    assert [problem for check in CHECKS for problem in check(path)] == []
    assert read(path).cells[1].outputs == sound.cells[1].outputs
    source.write_text(source.read_text().replace("1 < 2", "1 < 3"))
    assert not update_prose(source), "code has to run"


def test_refresh_makes_what_the_guard_passes(tmp_path):
    source = tmp_path / "chapter.py"
    source.write_text(f'# %%\nimport base64\n\nPNG = base64.b64decode("{PNG}")\n\n{SOURCE}')
    command = [sys.executable, CHAPTERS.parent / "book" / "refresh.py", source]

    assert is_stale(source)
    subprocess.run(command, check=True, capture_output=True)
    path = source.with_suffix(".ipynb")
    assert [problem for check in CHECKS for problem in check(path)] == []
    assert not is_stale(source)

    first = shutil.copy(path, tmp_path / "first")
    subprocess.run(command, check=True, capture_output=True)
    assert path.read_bytes() == Path(first).read_bytes(), "a second run changes nothing"

    source.write_text(source.read_text() + "\n# %%\n1 / 0\n")
    assert is_stale(source)
    failure = subprocess.run(command, capture_output=True, text=True)
    assert failure.returncode == 1
    assert "ZeroDivisionError" in failure.stdout
    assert path.read_bytes() == Path(first).read_bytes(), "a failed run writes nothing"
