r"""A gradient through a renderer that has none: credit each pixel to what it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.estimators._base import GradientEstimator, Projection
from steepest.kernels import add_noise_, split_seed
from steepest.oracles import Objective


class Pixels(NamedTuple):
    """What a loss over an image knows of its parts; for :class:`PerPixel`."""

    losses: Tensor
    """The loss of each pixel, of shape ``(pixels,)``; their sum is the loss."""
    contributors: Sequence[Tensor | None]
    """For each parameter, which of its rows a pixel shows: int64 of shape ``(pixels, k)``, with
    -1 for none. None instead of a tensor stands for all rows at every pixel, such as a camera."""


def credit(difference: Tensor, first: Tensor | None, second: Tensor | None, rows: int) -> Tensor:
    r"""For each row of a parameter, the sum of the pixels that show it in either render.

    .. math::

        \Delta_j = \sum_{p \,:\, j \in C_p^+ \cup\, C_p^-} \Delta_p.

    Args:
        difference: :math:`\Delta`, of shape ``(pixels,)``.
        first: Rows that each pixel shows in the first render, of shape ``(pixels, k)``, -1 for
            none; None for all.
        second: As ``first``, in the second.
        rows: Their number.

    Returns:
        Of shape ``(rows,)``. A row that a pixel shows several times counts once.

    Example:
        >>> shown = torch.tensor([[0, 1], [1, 1]]), torch.tensor([[0, 0], [2, -1]])
        >>> credit(torch.tensor([1.0, 10.0]), *shown, rows=4)
        tensor([ 1., 11., 10.,  0.])
    """
    if first is None or second is None:
        return difference.sum().expand(rows)
    # $C_p^+ \cup C_p^-$
    shown = torch.cat([first, second], 1).sort(1).values
    once = torch.ones_like(shown, dtype=torch.bool)
    once[:, 1:] = shown[:, 1:] != shown[:, :-1]
    once &= shown >= 0
    # $\Delta_p$
    amounts = difference[:, None].expand(shown.shape)[once]
    sums = torch.zeros(rows, dtype=difference.dtype)
    # $\sum_{p \,:\, j \in C_p^+ \cup\, C_p^-} \Delta_p$
    return sums.index_add_(0, shown[once], amounts)


@final
@method(
    paper="deliot2024transforming",
    title="Transforming a Non-Differentiable Rasterizer into a Differentiable One with Stochastic "
    "Gradient Estimation",
    oracle="value",
    forward=2,
    backward=0,
)
class PerPixel(GradientEstimator):
    r"""Per-pixel SPSA: two renders with everything perturbed, each pixel credited to what it shows.

    .. math::

        \hat g_j = \sum_{p \,:\, j \in C_p^+ \cup\, C_p^-}
            \frac{\ell_p(\theta + e) - \ell_p(\theta - e)}{2 e_j}, \qquad e_j = \pm s_j,

    where :math:`\ell_p` is the loss of pixel :math:`p` and :math:`C_p^\pm` are the parameters of
    what it shows in the two renders. SPSA sums over all pixels, so each parameter gets the noise
    of every other: its relative variance grows with their number :math:`d`. Here a parameter gets
    the noise of its neighbors in the picture, and their number is bounded however large the scene
    is.

    What is left out has expectation zero where :math:`j` lies on top: the sign of :math:`e_j` says
    nothing about a pixel that shows :math:`j` in neither render. It is not zero where one thing
    hides another, and the outlines of both pass within :math:`s` of a pixel. There is a bias at
    such crossings, which lose weight as :math:`s` becomes small.

    As a smoothed loss, over random perturbations, has a slope where the image itself jumps,
    silhouettes get gradients. Both renders are needed to see what moves: with the contributors of
    one alone, a pixel that an object leaves would not count for it.

    The renderer stays a black box. The loss runs as ever, and keeps what it knows of its pixels::

        def loss():
            image, ids = rasterize(vertices, faces, colors, size)
            square = (image - target).square().sum(2).flatten()
            seen[:] = [Pixels(square, [corners_of(ids), ids.view(-1, 1)])]
            return square.sum()


        estimator = PerPixel(lambda: seen[0], scale=[1.0, 0.05])

    Args:
        pixels: Returns the :class:`Pixels` of the loss's last evaluation.
        scale: Length :math:`s` of the perturbation, in each parameter's units: a number for all,
            or one for each, in the order of the parameters. About a pixel for positions, some
            hundredths for colors in [0, 1].
        samples: Pairs of renders that an estimate averages.

    Raises:
        ValueError: If an argument is out of its range; at an estimate, if scales or contributors
            do not fit the parameters, a scale is lost in rounding, or the losses of the pixels
            are not the loss's parts.
        RuntimeError: At an estimate, if a pixel's loss is NaN or infinite. As after all errors,
            the parameters are as they were.

    Example:
        Two lamps and two pixels: each lights its own, so nothing of the other is in its estimate.

        >>> p = torch.tensor([[1.0], [3.0]], dtype=torch.float64, requires_grad=True)
        >>> own = [torch.tensor([[0], [1]])]
        >>> f = Objective(lambda: (p**2).sum(), [p])
        >>> estimator = PerPixel(lambda: Pixels((p.detach() ** 2).flatten(), own), scale=0.5)
        >>> estimator(f, seed=0).gradient[0].flatten()
        tensor([2., 6.], dtype=torch.float64)

    Reference:
        :cite:t:`deliot2024transforming`.

    Deviations:
        Random signs for the perturbation, and the union of the contributors of both renders, are
        our reading of the abstract; the paper's shaders have not been compared.

    When not to use it:
        Where each pixel depends on most parameters (shadows, reflections, a volume): the bound is
        gone, and this is SPSA. Where a differentiable renderer is to be had. On several processes
        that share one image.
    """

    oracle: ClassVar = "value"

    def __init__(
        self,
        pixels: Callable[[], Pixels],
        scale: float | Sequence[float] = 1.0,
        samples: int = 1,
    ) -> None:
        scales = [scale] if isinstance(scale, float | int) else [*scale]
        if not scales or not all(math.isfinite(s) and s > 0 for s in scales):
            raise ValueError(f"scale={scale!r} is not valid: give finite numbers > 0")
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples={samples!r} is not valid: give a whole number >= 1")
        self.pixels = pixels
        self.scale = scale
        self.samples = samples

    @property
    def forward(self) -> int:
        """Two renders a sample."""
        return 2 * self.samples

    @torch.no_grad()
    def project(self, objective: Objective, seed: int) -> Projection:
        """The estimate's elements, by their global index."""
        params, places = [p.detach() for p in objective.params], self.places(objective)
        scales = self._scales(len(params))
        home = [p.clone() for p in params]
        total = [torch.zeros_like(p, dtype=torch.float64) for p in home]
        values = []
        for i in range(self.samples):
            signs = [torch.zeros_like(p) for p in home]
            add_noise_(signs, split_seed(seed, i), 1.0, kind="rademacher", start=places)
            renders, ends = [], []
            try:
                for side in (1.0, -1.0):
                    for p, start, sign, s in zip(params, home, signs, scales, strict=True):
                        torch.add(start, sign, alpha=side * s, out=p)
                    value = objective.value()
                    renders.append(self._read(value, params))
                    values.append(value)
                    ends.append([p.clone() for p in params])
            finally:
                for p, start in zip(params, home, strict=True):
                    p.copy_(start)
            first, second = renders
            # $\Delta_p = \ell_p(\theta + e) - \ell_p(\theta - e)$
            difference = first.losses.double() - second.losses.double()
            if not difference.isfinite().all():
                raise RuntimeError("the loss of a pixel is NaN or infinite: lower lr or scale")
            shown = zip(first.contributors, second.contributors, strict=True)
            for g, (one, two), ahead, behind in zip(total, shown, *ends, strict=True):
                # $2 e_j$
                width = (ahead - behind).double()
                if not width.all():
                    raise ValueError(
                        f"scale={self.scale} is lost beside an element of {ahead.dtype}: raise "
                        "scale, or keep the parameters in float32"
                    )
                # $\sum_{p \,:\, j \in C_p^+ \cup\, C_p^-} \Delta_p$
                sums = credit(difference, one, two, len(g))
                # $\hat g_j = \frac{1}{2 e_j} \sum_p \Delta_p$
                g += sums.view(-1, *[1] * (g.dim() - 1)) / (self.samples * width)
        weights: dict[int, float] = {}
        for g, place in zip(total, places, strict=True):
            weights |= enumerate(g.flatten().tolist(), start=place)
        return Projection(torch.stack(values).mean(), weights)

    def accumulate_(
        self,
        tensors: Sequence[Tensor],
        seed: int,
        weights: Mapping[int, float],
        places: Sequence[int],
    ) -> None:
        """Put each weight on its element; the seed is not used."""
        for t, place in zip(tensors, places, strict=True):
            flat = [weights.get(place + i, 0.0) for i in range(t.numel())]
            t += torch.tensor(flat, dtype=torch.float64).view(t.shape).to(t)

    def _scales(self, count: int) -> list[float]:
        scales = [self.scale] * count if isinstance(self.scale, float | int) else [*self.scale]
        if len(scales) != count:
            raise ValueError(f"{len(scales)} scales and {count} parameters: give one for each")
        return scales

    def _read(self, value: Tensor, params: Sequence[Tensor]) -> Pixels:
        """What the loss kept, checked."""
        read = self.pixels()
        if read.losses.dim() != 1 or len(read.contributors) != len(params):
            raise ValueError(
                f"losses of shape {tuple(read.losses.shape)} and {len(read.contributors)} "
                f"contributors: give (pixels,), and one for each of {len(params)} parameters"
            )
        for p, rows in zip(params, read.contributors, strict=True):
            if p.dim() == 0:
                raise ValueError("a parameter has no rows: give it the shape (1,)")
            if rows is None:
                continue
            if rows.dim() != 2 or len(rows) != len(read.losses) or rows.is_floating_point():
                raise ValueError(
                    f"contributors of shape {tuple(rows.shape)}, {rows.dtype}: give whole numbers "
                    f"of shape ({len(read.losses)}, k)"
                )
            if rows.numel() and int(rows.max()) >= len(p):
                raise ValueError(
                    f"a contributor is row {int(rows.max())} of a parameter of {len(p)} rows"
                )
        total = read.losses.double().sum()
        if total.isfinite() and not torch.isclose(total, value.double(), rtol=1e-3, atol=1e-6):
            raise ValueError(
                f"the losses of the pixels add up to {float(total):.6g}, and the loss is "
                f"{float(value):.6g}: return their sum, and keep those of this very evaluation"
            )
        return read
