"""``{playground}``: optimizers of the package race in the reader's browser.

Rules and the numbers that feed them are translated to JavaScript when the book is built, as are
the surfaces and their gradients. Where JavaScript is off, the page keeps a picture of the same
race, run by the package, and a table of where it ended.
"""

from __future__ import annotations

import inspect
import json
import math
import operator
import textwrap
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
import sympy
import torch
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from torch import Tensor

from steepest import _registry, optim
from steepest.kernels import XP, Rule, javascript
from steepest.objectives import Surface, surface
from steepest.optim import Elementwise, create
from steepest.optim._base import arguments_of, summarize

STEPS = 300
WIDTH, HEIGHT = 600, 400  # units of the picture
RATES = [float(f"{digit}e{power}") for power in range(-4, 1) for digit in (1, 2, 5)]
LEVELS = (0.01, 0.03, 0.07, 0.13, 0.21, 0.31, 0.43, 0.57, 0.72, 0.87)  # shares of the box below
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
DASHES = ("", "6 3", "2 3")

SURFACES: dict[str, tuple[Surface, float]] = {
    "ravine": (surface("ravine"), 0.0),
    "ravine, turned by 45°": (surface("ravine", angle=math.pi / 4), 0.0),
    "noisy quadratic": (surface("ravine", condition=10.0), 2.0),
    "saddle": (surface("saddle"), 0.0),
    "rosenbrock": (surface("rosenbrock"), 0.0),
    "beale": (surface("beale"), 0.0),
    "himmelblau": (surface("himmelblau"), 0.0),
    "plateau": (surface("plateau"), 0.0),
}
"""What a reader can pick: a surface, and the standard deviation of the gradient's noise there."""

SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "gradient descent": ("SGDW", {"momentum": 0.0}),
    "momentum": ("SGDW", {}),
    "Polyak's step": ("SANIA", {"preconditioner": "identity"}),
}
"""Entries that are not an optimizer with its defaults: class and hyper-parameters."""

LEFT_OUT = {"SGDW", "LDoG"}
"""Has its entries under other names; and with one tensor, it is DoG."""

X, Y = sympy.symbols("x y", real=True)


class _Point:
    """Stands in for a point of two coordinates while a surface is traced."""

    ndim, shape = 1, (2,)

    def __getitem__(self, key: Any) -> _Traced:
        return _Traced((X, Y)[key[-1]])


class _Traced:
    """A sympy expression with the methods of a tensor that surfaces use."""

    def __init__(self, expression: sympy.Expr) -> None:
        self.expression = expression

    def square(self) -> _Traced:
        return _Traced(self.expression**2)

    def exp(self) -> _Traced:
        return _Traced(sympy.exp(self.expression))


def _binary(name: str) -> None:
    function = getattr(operator, name)

    def bare(value: Any) -> Any:
        return value.expression if isinstance(value, _Traced) else value

    def forward(self: _Traced, other: Any) -> _Traced:
        return _Traced(function(self.expression, bare(other)))

    def reflected(self: _Traced, other: Any) -> _Traced:
        return _Traced(function(bare(other), self.expression))

    setattr(_Traced, f"__{name}__", forward)
    setattr(_Traced, f"__r{name}__", reflected)


for _name in ("add", "sub", "mul", "truediv", "pow"):
    _binary(_name)


def traced(shape: Surface) -> sympy.Expr:
    """A surface as an expression in x and y."""
    found: Any = shape.fn(_Point())  # type: ignore[arg-type]
    return found.expression


@cache
def names() -> tuple[str, ...]:
    """Optimizers whose step is a rule of parameter, gradient and state, and sums of these."""
    plain = [
        name
        for name, value in vars(optim).items()
        if inspect.isclass(value)
        and issubclass(value, Elementwise)
        and value is not Elementwise
        and (value.summary or value.coefficients is Elementwise.coefficients)
        and value.inputs is Elementwise.inputs
        and name not in LEFT_OUT
    ]
    return (*SPECIAL, *sorted(plain))


def make(
    name: str, params: list[torch.nn.Parameter], lowest: float = 0.0, **options: Any
) -> Elementwise:
    """An optimizer of the playground, without decay: the surfaces' minima are the goal."""
    known, own = SPECIAL.get(name, (name, {}))
    takes = inspect.signature(getattr(optim, known)).parameters
    told = {k: v for k, v in (("weight_decay", 0.0), ("f_star", lowest)) if k in takes}
    made = create(known, params, backend="torch", **{**told, **own, **options})
    assert isinstance(made, Elementwise)
    return made


def descend(
    name: str, shape: Surface, rates: list[float], steps: int = STEPS
) -> tuple[Tensor, Tensor]:
    """Points and values of descents at several rates at once, ``(steps + 1, rates, 2)``."""
    opt = make(name, [torch.nn.Parameter(torch.zeros(2))], shape.value)
    group = opt.param_groups[0]
    rule = opt.rule(group)
    start = torch.tensor(shape.start, dtype=torch.float64).expand(len(rates), 2)
    state = {"p": start.clone(), "g": start.clone()}
    state |= {key: start * (how != "zero") for key, how in starts(opt).items()}
    kept: dict[str, Any] = {}
    lr = torch.tensor(rates, dtype=torch.float64)[:, None]
    points, values = [], []
    for step in range(1, steps + 2):
        z = state["p"].detach().requires_grad_()
        value = shape.fn(z)
        (state["g"],) = torch.autograd.grad(value.sum(), z)
        points.append(z.detach())
        values.append(value.detach())
        numbers = {**opt.numbers(group, step), "lr": lr}
        if opt.summary:
            measure = torch.vmap(partial(opt.prepass, **only(opt.prepass, numbers)))
            found = measure(*(state[key] for key in opt.prepass.tensors))
            sums = dict(zip(opt.prepass.sums, found, strict=True)) | {"loss": value.detach()}
            made = summarize(opt.summary, sums, kept, group)
            numbers |= {key: number[:, None] for key, number in made.items()}
        new = rule(*(state[key] for key in rule.tensors), **only(rule, numbers))
        state.update(zip(rule.written, new, strict=True))
    return torch.stack(points), torch.stack(values)


def only(rule: Rule, numbers: dict[str, Any]) -> dict[str, Any]:
    """The numbers that a rule takes."""
    return {key: numbers[key] for key in rule.numbers}


def starts(opt: Elementwise) -> dict[str, str]:
    """How the tensors begin that an optimizer keeps beside the parameter."""
    read = (*opt.rule(opt.param_groups[0]).tensors, *(opt.prepass.tensors if opt.prepass else ()))
    return {key: opt.slots[key].start for key in read if key not in ("p", "g")}


@cache
def best_rate(name: str, kind: str) -> float:
    """The rate of :data:`RATES` with the lowest mean log height, over a descent without noise.

    For those that make a rate themselves, the factor that they have by default.
    """
    opt = make(name, [torch.nn.Parameter(torch.zeros(2))])
    if opt.summary:
        return float(opt.defaults["lr"])
    shape, _ = SURFACES[kind]
    _, values = descend(name, shape, RATES)
    heights = (values - shape.value).clamp_min(1e-6).nan_to_num(math.inf).log().mean(0)
    return RATES[int(heights.argmin())]


def pixels(shape: Surface, points: np.ndarray) -> np.ndarray:
    """Points of the box in units of the picture."""
    (left, right), (bottom, top) = shape.box
    size = np.array([WIDTH / (right - left), -HEIGHT / (top - bottom)])
    return (points - np.array([left, top])) * size


def path(line: np.ndarray) -> str:
    """A line as an SVG path, to a tenth of a unit."""
    line = np.clip(line, -WIDTH, 2 * WIDTH)
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line)


@cache
def contours(kind: str) -> str:
    """The level lines of a surface as one SVG path."""
    shape, _ = SURFACES[kind]
    x, y, z = (t.numpy() for t in shape.grid(61))
    lines = contourpy.contour_generator(x, y, z).lines
    levels = np.quantile(z, LEVELS)
    return "".join(path(pixels(shape, line)) for level in levels for line in lines(level))


def styles(listed: list[str]) -> dict[str, tuple[str, str]]:
    """Color and dashes of each optimizer's path; the first have colors of their own."""
    n = len(COLORS)
    return {name: (COLORS[i % n], DASHES[i // n % len(DASHES)]) for i, name in enumerate(listed)}


def memory(group: dict[str, Any], rule: Rule) -> dict[str, Any] | None:
    """The hyper-parameter that says how long an optimizer remembers gradients."""
    if "beta1" in rule.numbers:
        return {"label": "β₁", "key": "betas", "index": 0}
    if group.get("momentum"):
        return {"label": "μ", "key": "momentum", "index": None}
    return None


def optimizer_data(name: str, links: dict[str, str]) -> str:
    """JavaScript object of one optimizer."""
    opt = make(name, [torch.nn.Parameter(torch.zeros(2))])
    group = opt.param_groups[0]
    rule = opt.rule(group)
    facts = {
        "link": links.get(SPECIAL.get(name, (name, {}))[0]),
        "group": {k: v for k, v in group.items() if k != "params"},
        "memory": memory(group, rule),
        "rates": {kind: best_rate(name, kind) for kind in SURFACES},
        "tensors": rule.tensors,
        "written": rule.written,
        "starts": starts(opt),
    }
    shown = [rule.function]
    code = f"numbers: {javascript(type(opt).numbers)}, rule: {javascript(rule)}"
    if opt.summary:
        facts["reads"], _ = arguments_of(opt.summary)
        facts |= {"measured": opt.prepass.tensors, "sums": opt.prepass.sums}
        code += f", prepass: {javascript(opt.prepass)}, summary: {javascript(opt.summary)}"
        shown = [opt.prepass.function, opt.summary, rule.function]
    facts["source"] = "\n".join(textwrap.dedent(inspect.getsource(f)) for f in shown)
    return f"{{...{json.dumps(facts)}, {code}}}"


def surface_data(kind: str) -> str:
    """JavaScript object of one surface."""
    shape, noise = SURFACES[kind]
    value = traced(shape)
    bends = sympy.hessian(value, (X, Y))
    smooth = None
    if not bends.free_symbols:  # quadratic
        smooth = float(max(np.linalg.eigvalsh(np.array(bends, dtype=float))))
    facts = {
        "box": shape.box,
        "start": shape.start,
        "minima": shape.minima,
        "lowest": shape.value,
        "smoothness": smooth,
        "noise": noise,
        "contours": contours(kind),
    }
    slopes = ", ".join(sympy.jscode(sympy.diff(value, v)) for v in (X, Y))
    code = f"value: ([x, y]) => {sympy.jscode(value)}, gradient: ([x, y]) => [{slopes}]"
    return f"{{...{json.dumps(facts)}, {code}}}"


def script(root: Path) -> str:
    """All that the playground's script needs, as a program that sets ``steepest``."""
    links = {}
    for record in _registry.records(root):
        if record["chapter"]:
            page, _, target = record["chapter"].partition("#")
            url = f"{page.removesuffix('.ipynb')}.html#{nodes.make_id(target)}"
            links |= {symbol.rpartition(".")[2]: url for symbol in record["symbols"]}
    optimizers = ",\n".join(f"{json.dumps(n)}: {optimizer_data(n, links)}" for n in names())
    surfaces = ",\n".join(f"{json.dumps(kind)}: {surface_data(kind)}" for kind in SURFACES)
    return (
        '"use strict";\n// Made from the package when the book was built.\n'
        f"globalThis.steepest = (() => {{\nconst xp = {XP};\nreturn {{\n"
        f"steps: {STEPS}, width: {WIDTH}, height: {HEIGHT},\n"
        f"surfaces: {{{surfaces}}},\noptimizers: {{{optimizers}}}\n}};\n}})();\n"
    )


def picture(kind: str, shown: list[str]) -> str:
    """The race as SVG, as it stands at the end."""
    shape, _ = SURFACES[kind]
    parts = [f'<path class="contours" d="{contours(kind)}"/>']
    for name, (color, dash) in styles(shown).items():
        points, _ = descend(name, shape, [best_rate(name, kind)])
        line = path(pixels(shape, points[:, 0].numpy()))
        parts.append(
            f'<path class="race" d="{line}" stroke="{color}" stroke-dasharray="{dash}">'
            f"<title>{escape(name)}</title></path>"
        )
    x, y = pixels(shape, np.array(shape.start))
    parts.append(f'<circle class="start" cx="{x:.1f}" cy="{y:.1f}" r="9"/>')
    for x, y in pixels(shape, np.array(shape.minima)):
        parts.append(f'<path class="minimum" d="M{x - 5:.1f} {y:.1f}h10m-5 -5v10"/>')
    label = f"Paths of {', '.join(shown)} on the surface {kind}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}"'
        f' xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def ends(kind: str, shown: list[str]) -> list[tuple[str, str, str]]:
    """Where the race ended: name, rate, and height above the minimum."""
    shape, _ = SURFACES[kind]
    rows = []
    for name in shown:
        rate = best_rate(name, kind)
        _, values = descend(name, shape, [rate])
        rows.append((name, f"{rate:g}", f"{values[-1, 0].item() - shape.value:.2g}"))
    return rows


def table(kind: str, shown: list[str]) -> str:
    """The end of the race, for who reads without JavaScript."""
    rows = []
    for name, rate, height in ends(kind, shown):
        swatch = f'<span style="color:{styles(shown)[name][0]}">━</span>'
        rows.append(f"<tr><td>{swatch} {escape(name)}</td><td>{rate}</td><td>{height}</td></tr>")
    head = "<th>Optimizer</th><th>Learning rate</th><th>Above the minimum</th>"
    return (
        f'<div class="playground-static"><table class="table"><caption>{escape(kind)}, after'
        f" {STEPS} steps without noise. Where JavaScript runs, the start, the rates and the"
        f" surface can be moved.</caption><tr>{head}</tr>{''.join(rows)}</table></div>"
    )


def printed(kind: str, shown: list[str]) -> str:
    """The end of the race, in Markdown, for who reads on paper."""
    rows = "\n".join(f"| {' | '.join(row)} |" for row in ends(kind, shown))
    return (
        f"In the online book this race runs, on a surface and from a start of your choice. On the "
        f"surface *{kind}*, after {STEPS} steps without noise, it stands so:\n\n"
        f"| optimizer | learning rate | above the minimum |\n|:--|--:|--:|\n{rows}\n"
    )


class Playground(SphinxDirective):
    """A race: a picture and a table, which the page's script takes over."""

    option_spec = {  # noqa: RUF012  (docutils has it so)
        "surface": directives.unchanged,
        "optimizers": directives.unchanged,
        "all": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        """Write the picture and what the script is to start from."""
        self.env.note_reread()  # rules may have changed when this page has not
        kind = self.options.get("surface", "ravine")
        listed = self.options.get("optimizers", "gradient descent, momentum, Adam")
        shown = [name.strip() for name in listed.split(",")]
        for name, known in ((kind, SURFACES), *((name, names()) for name in shown)):
            if name not in known:
                raise self.error(f"{name!r} is not one of {', '.join(known)}")
        root = "../" * self.env.docname.count("/")
        offered = list(names()) if "all" in self.options else shown
        settings = {
            "surface": kind,
            "shown": shown,
            "offered": offered,
            "styles": styles([*shown, *(name for name in offered if name not in shown)]),
            "root": root,
        }
        scripts = "".join(
            f'<script defer src="{root}_static/{name}.js"></script>'
            for name in ("playground-rules", "playground")
        )
        on_paper = addnodes.only(expr="latex")
        self.state.nested_parse(StringList(printed(kind, shown).splitlines()), 0, on_paper)
        return [
            on_paper,
            nodes.raw(
                "",
                f'<div class="playground" data-settings="{escape(json.dumps(settings))}">'
                f"{picture(kind, shown)}{table(kind, shown)}</div>{scripts}",
                format="html",
            ),
        ]


def write_script(app: Sphinx, error: Exception | None) -> None:
    """Put the rules where the pages expect them."""
    if error is None and app.builder.format == "html":
        target = Path(app.outdir, "_static", "playground-rules.js")
        target.write_text(script(Path(app.srcdir)), "utf-8")


def forget(app: Sphinx) -> None:
    """Run the races afresh in every build."""
    for function in (best_rate, contours, names):
        function.cache_clear()


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("playground", Playground)
    app.connect("builder-inited", forget)
    app.connect("build-finished", write_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
