"""The book as a PDF: what the LaTeX builder needs beside Jupyter Book's own settings."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

# Jupyter Book's class loads packages for macros that this book does not use; Sphinx's own class
# lacks two environments, of the cells of notebooks.
PREAMBLE = r"""
\setmonofont{DejaVu Sans Mono}[Scale=0.75]
\usepackage{changepage}
\newenvironment{sphinxVerbatimInput}{}{}
\newenvironment{sphinxVerbatimOutput}{%
  \sphinxsetup{VerbatimColor={named}{white}}\begin{adjustwidth}{10pt}{}}{\end{adjustwidth}}
"""


def set_latex(app: Sphinx, config: Config) -> None:
    """One document, in Sphinx's own class; deep lists, as docstrings have them."""
    config.latex_theme = "manual"
    config.latex_use_xindy = False
    config.latex_table_style = ["booktabs"]
    config.latex_documents = [
        (config.root_doc, "steepest.tex", "steepest", config.author, "manual")
    ]
    config.latex_elements = {
        **config.latex_elements,
        "papersize": "a4paper",
        "maxlistdepth": "12",
        "preamble": config.latex_elements["preamble"] + PREAMBLE,
        "sphinxsetup": "hmargin=22mm, vmargin=25mm",
    }


def join_references(app: Sphinx, document: nodes.document, page: str) -> None:
    """Drop the headings of the chapters' references: LaTeX has one list, at the end."""
    if app.builder.name == "latex":
        for section in [*document.findall(nodes.section)]:
            if section[0].astext() == "References":
                section.replace_self(section[1:])


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx, after the extension that Jupyter Book loads for LaTeX."""
    app.connect("config-inited", set_latex, priority=900)
    app.connect("doctree-resolved", join_references)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
