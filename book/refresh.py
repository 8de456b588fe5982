"""Write the notebooks: take a chapter's cells from its Python source, run them, keep the outputs.

``make refresh`` runs the chapters whose notebook is missing or stale; ``ARGS=--all`` runs every
chapter, and ``ARGS=chapters/PART/NAME.py`` that one. Where only prose has changed nothing runs.
What a run took is kept in ``book/status.json``, for the book's status page.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from PIL import Image

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
FIGURES = Path(__file__).resolve().parent / "figures"
STATUS = Path(__file__).resolve().parent / "status.json"
USAGE = """\
import json, resource, sys
used = resource.getrusage(resource.RUSAGE_SELF)
scale = 2**20 if sys.platform == "darwin" else 2**10
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss // scale]))
"""
"""A cell that is run after the last one and not kept: seconds of CPU, and peak memory in MiB."""

# The same on every machine: no versions, no paths, no times.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "pygments_lexer": "ipython3",
    },
}


def sources(folder: Path = CHAPTERS) -> list[Path]:
    """Every chapter's source."""
    return sorted(p for p in folder.rglob("*.py") if ".ipynb_checkpoints" not in p.parts)


def read(path: Path) -> NotebookNode:
    """A chapter's source, or its notebook, as a notebook."""
    if path.suffix == ".py":
        return jupytext.read(path, fmt="py:percent")
    return nbformat.read(path, as_version=4)


def cells(notebook: NotebookNode) -> list[tuple[str, str, tuple[str, ...]]]:
    """What source and notebook have in common: each cell's type, text and tags."""
    return [
        (c.cell_type, c.source, tuple(sorted(c.metadata.get("tags", [])))) for c in notebook.cells
    ]


def is_stale(source: Path) -> bool:
    """Whether the notebook is missing, differs from its source or was not run."""
    twin = source.with_suffix(".ipynb")
    if not twin.is_file():
        return True
    notebook = read(twin)
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    return (
        cells(notebook) != cells(read(source))
        or notebook.metadata != METADATA
        or any(c.execution_count is None for c in code)
    )


def shrink(png: str) -> str:
    """A figure in 256 colors, base64: plots look the same, and take a third of the bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    small = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def fresh(source: Path) -> NotebookNode:
    """A chapter as a notebook that has not run."""
    notebook = read(source)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: dict[str, int] = {}
    for cell in notebook.cells:  # an id that follows from the text changes only with the text
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return notebook


def update_prose(source: Path) -> bool:
    """Where a notebook has run and its code is its source's, take over text and tags alone."""
    twin = source.with_suffix(".ipynb")
    if not twin.is_file():
        return False
    notebook, old = fresh(source), read(twin)
    new_code, old_code = (
        [c for c in each.cells if c.cell_type == "code"] for each in (notebook, old)
    )
    if [c.source for c in new_code] != [c.source for c in old_code]:
        return False
    if any(c.source.strip() and c.execution_count is None for c in old_code):
        return False
    for new, ran in zip(new_code, old_code, strict=True):
        new.execution_count, new.outputs = ran.execution_count, ran.outputs
    nbformat.write(notebook, twin)
    return True


def note_run(source: Path, seconds: float, peak: int) -> None:
    """Keep what a run of one of the book's chapters took, and on what."""
    if not source.is_relative_to(CHAPTERS):
        return
    status = json.loads(STATUS.read_text("utf-8")) if STATUS.is_file() else {}
    chapter = source.relative_to(CHAPTERS).with_suffix("").as_posix()
    packages = ("torch", "lightning", "numpy", "numba")
    status[chapter] = {
        "seconds": round(seconds, 1),
        "peak_mib": peak,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": f"CPU, {platform.machine()}, 1 thread of {os.cpu_count()}",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
    STATUS.write_text(json.dumps(dict(sorted(status.items())), indent=1) + "\n", "utf-8")


def refresh(source: Path) -> None:
    """Run a chapter from its source and write its notebook.

    Raises:
        CellExecutionError: If a cell fails; the notebook is left as it was.
    """
    notebook = fresh(source)
    notebook.cells.append(nbformat.v4.new_code_cell(USAGE))
    NotebookClient(
        notebook,
        extra_arguments=["--log-level=ERROR"],
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(source.parent)}},
    ).execute()
    usage = notebook.cells.pop().outputs[0].text
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                png = output.data["image/png"] = shrink(output.data["image/png"])
                for tag in cell.metadata.get("tags", []):
                    if tag.startswith("figure-"):  # also shown elsewhere, by the README say
                        (FIGURES / f"{tag[7:]}.png").write_bytes(base64.b64decode(png))
    notebook.metadata = nbformat.from_dict(METADATA)  # the kernel has added its version
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    note_run(source, *json.loads(usage))


def main() -> int:
    """Refresh the chapters that the command line names; the number of failures."""
    parser = argparse.ArgumentParser(description="Run chapters and write their notebooks.")
    parser.add_argument("chapters", nargs="*", type=Path, help="sources, NAME.py")
    parser.add_argument("--all", action="store_true", help="also those that are up to date")
    arguments = parser.parse_args()
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this Python, not of the user's
    os.environ["OMP_NUM_THREADS"] = "1"  # as in the test: the same sums, whatever the machine

    chosen = [path.resolve().with_suffix(".py") for path in arguments.chapters] or sources()
    if missing := [path for path in chosen if not path.is_file()]:
        parser.error(f"no such chapter: {missing[0]}")
    if not arguments.chapters and not arguments.all:
        chosen = [path for path in chosen if is_stale(path)]
        chosen = [path for path in chosen if not update_prose(path)]
    failures = 0
    for k, path in enumerate(chosen, 1):
        print(f"[{k}/{len(chosen)}] {os.path.relpath(path)} ... ", end="", flush=True)
        start = time.perf_counter()
        try:
            refresh(path)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failures += 1
            print(f"FAILED\n{error}")
        else:
            print(f"{time.perf_counter() - start:.1f} s", flush=True)
    print(f"{len(chosen) - failures} refreshed, {failures} failed")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
