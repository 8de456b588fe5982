"""Lists of references: one in each chapter that wants it, and the Bibliography.

A citation leads to the list on its own page if that has one, otherwise to the Bibliography.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

PAGE = "book/bibliography"


class KeyLabels(BaseLabelStyle):
    """Label an entry by its key: the same in every list, and never that of another entry."""

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        """Labels in the order of the entries."""
        return (entry.key for entry in sorted_entries)


class ByAuthor(Style):
    """Sorted by author and year. The labels are hidden by the style sheet."""

    default_sorting_style = "author_year_title"
    default_label_style = "key"


def put_last(app: Sphinx, env: BuildEnvironment) -> None:
    """Let the Bibliography win over chapters (sphinxcontrib-bibtex takes the last list)."""
    domain: Any = env.get_domain("cite")
    domain.citations.sort(key=lambda citation: citation.bibliography_key.docname == PAGE)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    register_plugin("pybtex.style.labels", "key", KeyLabels)
    register_plugin("pybtex.style.formatting", "by_author", ByAuthor)
    app.connect("env-updated", put_last, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
