r"""The diagonal of a Hessian from its products with random vectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steepest.kernels import add_noise_, offsets, split_seed
from steepest.oracles import Objective


class Curvature(NamedTuple):
    """Answer of :func:`hutchinson`."""

    value: Tensor
    """The loss, of shape ()."""
    gradient: list[Tensor]
    """The exact gradient, which comes with every product."""
    diagonal: list[Tensor]
    """Estimate of the Hessian's diagonal; one tensor for each parameter, of its shape."""


def hutchinson(objective: Objective, seed: int, samples: int = 1) -> Curvature:
    r"""Estimate the diagonal of the Hessian (Hutchinson's estimator, with signs).

    .. math::

        \hat D = \frac1n \sum_{i=1}^n z_i \odot (H z_i), \qquad
        \mathrm E[z_j H_{jk} z_k] = H_{jk}\, \delta_{jk}
        \;\Rightarrow\; \mathrm E[\hat D] = \operatorname{diag}(H).

    With independent signs :math:`z_j = \pm 1` the diagonal itself comes out exactly, since
    :math:`z_j^2 = 1`; all the noise is from the rest of the row:
    :math:`\mathrm{Var}\,\hat D_j = \sum_{k \ne j} H_{jk}^2 / n`. The signs must differ between
    elements: with all of them equal one gets the row sums.

    Args:
        objective: The loss; parameters do not change.
        seed: Seed of the signs; the same seed gives the same estimate. An element's sign depends
            on its parameter's name where the objective has names, on its position otherwise.
        samples: Products :math:`n` to average; one forward and two backward passes each.

    Returns:
        :class:`Curvature`: value, exact gradient, and the estimate.

    Raises:
        ValueError: If ``samples`` is not positive.
        TypeError: If a parameter is complex.

    Example:
        Without off-diagonal elements there is no noise.

        >>> p = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> f = Objective(lambda: (p**3).sum(), [p])
        >>> hutchinson(f, seed=0).diagonal
        [tensor([ 6., 12.])]

    Reference:
        Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", Applied Numerical
        Mathematics 57, 2007, after Hutchinson, 1990.

    When not to use it:
        Where rows are dominated by their off-diagonal part: one sample is then mostly noise.
    """
    if samples < 1:
        raise ValueError(f"samples={samples!r} is not valid: give a whole number >= 1")
    if any(p.is_complex() for p in objective.params):
        raise TypeError("signs are real, and a parameter is complex: train view_as_real of it")
    diagonal = [torch.zeros_like(p, requires_grad=False) for p in objective.params]
    start = offsets(diagonal, objective.names)
    for i in range(samples):
        signs = [torch.zeros_like(d) for d in diagonal]
        # $z_i = (\pm 1, \dots, \pm 1)$
        add_noise_(signs, split_seed(seed, i), 1.0, kind="rademacher", start=start)
        # $H z_i$
        answer = objective.hvp(signs)
        for d, z, hz in zip(diagonal, signs, answer.product, strict=True):
            # $\hat D = \frac1n \sum_i z_i \odot H z_i$
            d.addcmul_(z, hz, value=1 / samples)
    return Curvature(answer.value, answer.gradient, diagonal)
