r"""The norm test: how large a batch has to be for its noise to stay below its signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from steepest._registry import method


class NormTest(NamedTuple):
    """Answer of :func:`norm_test` and :func:`coordinate_norm_test`."""

    size: float
    """Smallest batch size that passes: a whole number >= 1, infinity if the mean gradient is zero
    and the noise is not, NaN if a gradient is not finite."""
    noise: float
    r"""Variance :math:`V` of one sample's gradient, summed over coordinates."""
    signal: float
    r"""Squared norm :math:`\lVert g \rVert^2` of the mean gradient."""


@final
class GradientMoments:
    r"""Mean and variance of a sample's gradient, from parts of a batch given one at a time.

    The gradient of a part of :math:`n_i` samples has the mean of a sample's gradient, and
    :math:`1/n_i` of its variance. So with :math:`g = \sum_i n_i g_i / n` and m parts

    .. math::

        V_j = \frac{1}{m - 1} \sum_{i=1}^m n_i\, (g_{ij} - g_j)^2, \qquad \mathbb{E}\, V_j =
        \operatorname{Var}[\nabla_j \ell],

    without bias, whatever the sizes. Memory is twice the parameters, not m times.

    Example:
        >>> moments = GradientMoments()
        >>> for gradient in (1.0, 3.0):
        ...     moments.add([torch.tensor([gradient])], size=4)
        >>> moments.mean, moments.variance(), moments.samples
        ([tensor([2.])], [tensor([8.])], 8)
    """

    def __init__(self) -> None:
        self.parts = 0
        self.samples = 0
        self.mean: list[Tensor] = []
        """Mean gradient, one tensor for each parameter; at least float32."""
        self.spread: list[Tensor] = []
        r"""Sums :math:`\sum_i n_i (g_i - g)^2`, like ``mean``."""

    def add(self, gradient: Sequence[Tensor], size: int = 1) -> None:
        """Take in the mean gradient of the next part.

        Args:
            gradient: One tensor for each parameter.
            size: Samples in the part.

        Raises:
            ValueError: If ``size`` is not positive.
        """
        if size < 1:
            raise ValueError(f"size={size!r} is not valid: a part has at least one sample")
        g = [t.detach().to(torch.promote_types(t.dtype, torch.float32)) for t in gradient]
        self.parts += 1
        self.samples += size
        if not self.mean:
            self.mean = [torch.zeros_like(t) for t in g]
            self.spread = [torch.zeros_like(t) for t in g]
        before = torch._foreach_sub(g, self.mean)
        # $\bar g \leftarrow \bar g + \frac{n_i}{n}\, (g_i - \bar g)$
        torch._foreach_add_(self.mean, before, alpha=size / self.samples)
        after = torch._foreach_sub(g, self.mean)
        # $S \leftarrow S + n_i\, (g_i - \bar g_{\text{before}}) (g_i - \bar g)$
        torch._foreach_addcmul_(self.spread, before, after, value=size)

    def variance(self) -> list[Tensor]:
        """Variance of one sample's gradient in each coordinate.

        Raises:
            ValueError: If there are fewer than two parts, which have no variance.
        """
        if self.parts < 2:
            raise ValueError(f"{self.parts} part has no variance: cut the batch into two or more")
        # $V = S / (k - 1)$
        return [s / (self.parts - 1) for s in self.spread]

    def pooled(self, add: Callable[[Tensor], Tensor]) -> GradientMoments:
        """The moments of all processes' parts together.

        Args:
            add: Sum of a tensor over processes; it may write to its argument.
        """
        pool = GradientMoments()
        device = self.mean[0].device if self.mean else None
        counts = add(torch.tensor([self.parts, self.samples], device=device))
        pool.parts, pool.samples = (int(n) for n in counts)
        weight = self.samples / pool.samples
        pool.mean = [add(weight * t) for t in self.mean]
        pool.spread = [
            add(s + self.samples * (own - mean).square())
            for s, own, mean in zip(self.spread, self.mean, pool.mean, strict=True)
        ]
        return pool


Gradients = Sequence[Tensor] | GradientMoments


@method(
    paper="lau2024adadagrad",
    title="AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
    oracle="per-sample",
)
def norm_test(
    gradients: Gradients, eta: float = 0.5, *, sizes: Sequence[int] | None = None
) -> NormTest:
    r"""Batch size at which the noise of the gradient is a fraction of the gradient.

    With the mean :math:`g` and the variance :math:`V = \sum_j V_j` of the samples' gradients
    (:class:`GradientMoments`), a batch of :math:`b` passes if

    .. math::

        \frac{V}{b} \le \eta^2 \lVert g \rVert^2, \qquad\text{so}\qquad
        b = \left\lceil \frac{V}{\eta^2 \lVert g \rVert^2} \right\rceil.

    The left side estimates :math:`\mathbb{E} \lVert g - \nabla f \rVert^2`: what passes points
    downhill most of the time, and its noise vanishes with the gradient, as that of an exact
    gradient would. A method that follows the test takes :math:`\max(b_k, b)` next: batches are
    small while gradients are large, and grow as they shrink.

    Args:
        gradients: For each parameter the rows :math:`g_i`, shape (m, \*parameter's shape), of m
            samples or of m parts of a batch; or their :class:`GradientMoments`.
        eta: Noise allowed, as a fraction of the gradient's norm; in (0, 1) by the theory, 0.1 to
            0.9 in use.
        sizes: Samples in each part, one each by default.

    Returns:
        :class:`NormTest`. The size says nothing of the size of the batch that was measured.

    Raises:
        ValueError: If ``eta`` is not positive, there are fewer than two rows, or ``sizes`` does
            not fit.

    Example:
        Mean 2 and variance 2: a batch of 2 has noise 1, a quarter of the mean's square.

        >>> norm_test([torch.tensor([1.0, 3.0])], eta=0.5)
        NormTest(size=2.0, noise=2.0, signal=4.0)

    Reference:
        :cite:t:`lau2024adadagrad`, who combine the test with AdaGrad and AdaGrad-Norm.

    When not to use it:
        On a batch much smaller than the answer: :math:`\lVert g \rVert^2` then contains the
        noise :math:`V/b` itself, so that the answer stays below :math:`b/\eta^2`. Ask again
        after the batch has grown.
    """
    moments = _moments(gradients, eta, sizes)
    # $V = \sum_j V_j$
    noise = _total(moments.variance())
    # $\lVert g \rVert^2$
    signal = _total([g.square() for g in moments.mean])
    # $b \leftarrow \lceil V / (\eta^2 \lVert g \rVert^2) \rceil$
    size = _whole(_ratio(noise, eta**2 * signal))
    return NormTest(size, noise, signal)


@method(
    paper="lau2024adadagrad",
    title="AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
    oracle="per-sample",
)
def coordinate_norm_test(
    gradients: Gradients,
    eta: float = 0.5,
    *,
    sizes: Sequence[int] | None = None,
    floor: float = 1.0,
) -> NormTest:
    r"""Batch size at which every coordinate passes a norm test of its own.

    .. math::

        b = \left\lceil \max_j \frac{V_j}{\eta^2 \max(g_j^2,\; \phi\, \overline{g^2})}
        \right\rceil, \qquad \overline{g^2} = \lVert g \rVert^2 / P.

    A method that scales each coordinate by itself, as AdaGrad does, sees noise coordinate by
    coordinate: a loud one cannot pay for a quiet one.

    Args:
        gradients: As in :func:`norm_test`.
        eta: Noise allowed, as a fraction of a coordinate's gradient.
        sizes: Samples in each part, one each by default.
        floor: The guard :math:`\phi`: no coordinate is held to a signal below this share of the
            mean square. At 0 the test is the paper's, and one coordinate near its minimum, where
            :math:`g_j \approx 0`, asks for any batch there is.

    Returns:
        :class:`NormTest`; its noise and signal are sums over coordinates.

    Raises:
        ValueError: If ``eta`` is not positive, ``floor`` is negative, there are fewer than two
            rows, or ``sizes`` does not fit.

    Example:
        The first coordinate alone would ask for 2, the second for 4.

        >>> rows = torch.tensor([[1.0, 1.0], [3.0, 5.0]])
        >>> coordinate_norm_test([rows], eta=0.5, floor=0.0).size
        4.0

    Reference:
        :cite:t:`lau2024adadagrad`.

    Deviations:
        The paper has no guard: ``floor=0``.

    When not to use it:
        With an optimizer that moves along the gradient itself; :func:`norm_test` asks for less.
    """
    if not floor >= 0:
        raise ValueError(f"floor={floor!r} is not valid: give a number >= 0")
    moments = _moments(gradients, eta, sizes)
    variance = moments.variance()
    noise, signal = _total(variance), _total([g.square() for g in moments.mean])
    least = floor * signal / sum(g.numel() for g in moments.mean)
    worst = 0.0
    for v, g in zip(variance, moments.mean, strict=True):
        wanted = v.double() / (eta**2 * g.double().square().clamp(min=least))
        # A coordinate without noise passes, also where its gradient is zero.
        wanted = torch.where(v == 0, 0.0, wanted)
        worst = max(worst, float(wanted.max())) if wanted.numel() else worst
    finite = math.isfinite(noise) and math.isfinite(signal)
    return NormTest(_whole(worst if finite else math.nan), noise, signal)


def _moments(gradients: Gradients, eta: float, sizes: Sequence[int] | None) -> GradientMoments:
    if not eta > 0:
        raise ValueError(f"eta={eta!r} is not valid: give a number > 0")
    if isinstance(gradients, GradientMoments):
        if sizes is not None:
            raise ValueError("the moments know their sizes: leave sizes out")
        return gradients
    counts = {len(rows) for rows in gradients}
    if len(counts) != 1 or (sizes is not None and {len(sizes)} != counts):
        raise ValueError(
            "rows do not fit: give each parameter as many rows as there are parts, and one size "
            "for each"
        )
    chosen = [1] * counts.pop() if sizes is None else list(sizes)
    if min(chosen, default=1) < 1:
        raise ValueError(f"{sizes=} is not valid: a part has at least one sample")
    moments = GradientMoments()
    moments.parts, moments.samples = len(chosen), sum(chosen)
    for rows in gradients:
        g = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
        n = torch.tensor(chosen, dtype=g.dtype, device=g.device).reshape(-1, *[1] * (g.ndim - 1))
        mean = (n * g).sum(0) / max(moments.samples, 1)
        moments.mean.append(mean)
        moments.spread.append((n * (g - mean).square()).sum(0))
    return moments


def _total(tensors: Sequence[Tensor]) -> float:
    return float(sum((t.double().sum() for t in tensors), torch.zeros((), dtype=torch.float64)))


def _ratio(noise: float, signal: float) -> float:
    if signal:
        return noise / signal
    return math.inf if noise else 0.0


def _whole(size: float) -> float:
    return float(max(1, math.ceil(size))) if math.isfinite(size) else size
