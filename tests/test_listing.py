"""A listing shows what a function is, each equation beside its line."""

import pytest

from steepest import listing
from steepest._listing import source_lines
from steepest.optim import SAM


class Sphere:
    """Something with all kinds of functions."""

    @property
    def area(self):
        """Of the unit sphere."""
        # $A = |S|$
        return 4 * 3.14159

    @staticmethod
    def volume(radius, /, *more, scale=1.0, **options):
        r"""Several lines.

        # $\text{not an equation}$
        """
        # said in words
        # $r \leftarrow s\,r$
        radius = radius * scale  # type: float

        if radius:
            # $\|r\|^3$
            return max(
                radius**3,
                0.0,
            )
        return "`" + str(0 | 1)


def test_equations_stand_at_the_line_below_them():
    assert source_lines(Sphere.volume) == [
        ("", "# said in words"),
        (r"r \leftarrow s\,r", "radius = radius * scale"),
        ("", "if radius:"),
        (r"\Vert r\Vert ^3", "    return max("),
        ("", "        radius**3,"),
        ("", "        0.0,"),
        ("", "    )"),
        ("", 'return "`" + str(0 | 1)'),
    ]


def test_the_head_names_room_function_and_arguments():
    (head, lines), (other, _) = listing(Sphere.area, Sphere.volume).parts
    assert head == "Sphere.area(self)"
    assert lines == [(r"A = \vert S\vert", "return 4 * 3.14159")]
    assert other == "Sphere.volume(radius, *more, scale, **options)"


def test_markdown_keeps_indentation_bars_and_backticks():
    text = listing(Sphere.volume)._repr_markdown_()
    assert text.splitlines()[:2] == [
        "| equation | `Sphere.volume(radius, *more, scale, **options)` |",
        "|:--|:--|",
    ]
    assert r"| $\Vert r\Vert ^3$ | &emsp;&emsp;`return max(` |" in text
    assert r'|  | `` return "`" + str(0 \| 1) `` |' in text


def test_a_part_is_cut_by_the_text_of_its_lines():
    ((_, lines),) = listing(Sphere.volume, start="max(", stop="return").parts
    assert [line for _, line in lines] == ["return max(", "    radius**3,", "    0.0,", ")"]


@pytest.mark.parametrize(
    ("functions", "cut", "message"),
    [
        ((), {}, "needs a function"),
        ((Sphere.volume,), {"start": "nowhere"}, "no line has 'nowhere'"),
        ((Sphere.volume,), {"start": "if radius", "stop": "said"}, "no line has 'said'"),
    ],
)
def test_what_cannot_be_shown_is_said(functions, cut, message):
    with pytest.raises(ValueError, match=message):
        listing(*functions, **cut)


def test_names_find_what_is_exported_and_what_is_not():
    assert repr(listing("optim.SAM.update", "optim.gsnr")) == (
        "listing(optim.SAM.update, optim.gsnr)"
    )
    assert listing("optim.SAM.update").parts == listing(SAM.update).parts
    for name in ("optim.Unknown.step", "optim.SAM.unknown", "nowhere.f", "optim"):
        with pytest.raises(ValueError, match="there is no"):
            listing(name)


@pytest.mark.parametrize("thing", [3, max, Sphere])
def test_only_python_functions_have_lines(thing):
    with pytest.raises(TypeError, match="no Python function"):
        listing(thing)
