"""A gallery's pictures are those of the chapters, from the section that it names."""

import base64
import re
from pathlib import Path

import nbformat
from gallery import first_plot
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


def cell(code, *pngs):
    coded = [base64.b64encode(png).decode() for png in pngs]
    outputs = [new_output("display_data", {"image/png": text}) for text in coded]
    return new_code_cell(code, outputs=outputs)


def test_the_first_plot_of_a_section_and_of_no_other(tmp_path):
    notebook = new_notebook(
        cells=[
            cell("plt.plot(x)", b"before"),
            new_markdown_cell("(first)=\n## The first\n\nText."),
            cell("print(1)"),
            new_markdown_cell("(second)=\n## The second"),
            cell('plt.xlabel("a")\nplt.show()\nplt.xlabel("b")\nplt.show()', b"one", b"two"),
            new_markdown_cell("## The third"),
            cell("plt.plot(x)", b"after"),
        ]
    )
    folder = tmp_path / "chapters" / "part"
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / "chapter.ipynb")
    assert first_plot(tmp_path, "first") is None
    assert first_plot(tmp_path, "third") is None
    found = first_plot(tmp_path, "second")
    assert found[:3] == ("chapters/part/chapter", "second", "The second")
    assert (found.alt, found.png) == ("Figure. across: a.", b"one")


def test_the_guide_shows_most_of_what_it_names():
    text = Path(__file__).resolve().parents[2].joinpath("book", "guide.md").read_text("utf-8")
    named = set(re.findall(r"\{ref\}`(\w+)`", text))
    shown = {w for part in text.split("```{gallery}\n")[1:] for w in part.split("```")[0].split()}
    assert shown <= named
    assert len(shown) > 0.9 * len(named)
