r"""A surrogate of known length: random Fourier features."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor


@final
class Features:
    r"""Random Fourier features: a model of a function whose weights can be sent, and averaged.

    .. math::

        \varphi(x) = \sqrt{\tfrac2M}\, \cos(W x + b), \qquad
        f(x) \approx \langle \varphi(x), w \rangle, \qquad
        \nabla f(x) \approx -\sqrt{\tfrac2M}\, W^\top \bigl(w \odot \sin(W x + b)\bigr).

    A Gaussian process is as large as its data. This is a linear model close to one with a
    Gaussian kernel, as :math:`\langle \varphi(x), \varphi(x') \rangle` has that kernel as its
    mean, and :math:`M` weights are all of it. With one seed all have the same features, so the
    mean of weights is the model of the mean of functions. With another they mean nothing.

    Args:
        dimension: Elements of a point.
        count: Features :math:`M`.
        length: Length scale of the kernel, in the points' units.
        seed: Seed of :math:`W` and :math:`b`, the same for all who exchange weights.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> features = Features(1, 200, length=2.0)
        >>> x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
        >>> w = features.fit(x, x[:, 0] ** 2)
        >>> features.gradient(torch.tensor([0.5], dtype=torch.float64), w).round(decimals=2)
        tensor([1.], dtype=torch.float64)

    Reference:
        Rahimi and Recht, "Random features for large-scale kernel machines", Advances in Neural
        Information Processing Systems 20, 2007.

    When not to use it:
        Far from the points that were fitted, in units of the length scale.
    """

    def __init__(
        self, dimension: int, count: int = 1000, length: float = 1.0, seed: int = 0
    ) -> None:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"count={count!r} is not valid: give a whole number >= 1")
        if not (math.isfinite(length) and length > 0):
            raise ValueError(f"length={length!r} is not valid: give a finite number > 0")
        rng = torch.Generator().manual_seed(seed % 2**63)
        self.scale = math.sqrt(2 / count)
        self.frequencies = (
            torch.randn(count, dimension, generator=rng, dtype=torch.float64) / length
        )
        self.phases = 2 * math.pi * torch.rand(count, generator=rng, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        """Features (n, M) of points (n, d)."""
        return self.scale * (x @ self.frequencies.T + self.phases).cos()

    def fit(self, x: Tensor, y: Tensor, ridge: float = 1e-6) -> Tensor:
        """Weights (M,) by ridge regression of values (n,) at points (n, d); linear in values."""
        made = self(x)
        gram = made @ made.T
        gram.diagonal().add_(ridge)
        return made.T @ torch.cholesky_solve(y[:, None], torch.linalg.cholesky(gram))[:, 0]

    def gradient(self, x: Tensor, weights: Tensor) -> Tensor:
        """Gradient (d,) of the model at a point (d,)."""
        wave = (self.frequencies @ x + self.phases).sin()
        return -self.scale * self.frequencies.T @ (weights * wave)
