r"""Lanczos' method: the spectrum of a Hessian from its products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steepest.kernels import add_noise_, offsets
from steepest.oracles import Objective


class Spectrum(NamedTuple):
    """Answer of :func:`lanczos`: a quadrature of the spectrum."""

    values: Tensor
    """Ritz values, ascending, float64 of shape (k,), k at most ``steps``. The outermost are close
    to eigenvalues."""
    weights: Tensor
    r"""Squared overlaps of the Ritz vectors with the start, float64 of shape (k,), sum 1:
    :math:`\sum_i w_i f(\lambda_i)` estimates :math:`\operatorname{tr} f(H) / P`."""


def lanczos(
    objective: Objective,
    steps: int = 20,
    seed: int = 0,
    *,
    scale: Sequence[Tensor] | None = None,
    product: Callable[[list[Tensor]], Sequence[Tensor]] | None = None,
) -> Spectrum:
    r"""Measure the spectrum of the Hessian, its two ends first.

    From a random start :math:`q_1` the products :math:`H q_1, H q_2, \ldots` span a Krylov space
    with orthonormal basis :math:`Q_k`, in which the Hessian is the tridiagonal matrix
    :math:`T_k`:

    .. math::

        \beta_{j} q_{j+1} = H q_j - \alpha_j q_j - \beta_{j-1} q_{j-1}, \qquad
        \alpha_j = \langle q_j, H q_j \rangle, \qquad T_k = Q_k^\top H Q_k.

    Eigenvalues of :math:`T_k` approach those of :math:`H` from inside, the outermost first, and
    at both ends: a large negative eigenvalue is not mistaken for a positive one, as it would be
    by power iteration. With the squared first components of the eigenvectors as weights they
    are Gauss' quadrature of the spectral density (stochastic Lanczos quadrature): average over
    seeds. After as many steps as there are different eigenvalues the answer is exact.

    Args:
        objective: The loss; parameters do not change. Use one fixed batch, without dropout.
        steps: Products :math:`k`; one forward and two backward passes each. Memory is a copy of
            the parameters for each, since every vector is made orthogonal to all before it.
        seed: Seed of the start.
        scale: Tensors :math:`s`, one for each parameter: measure
            :math:`\operatorname{diag}(s) H \operatorname{diag}(s)`, whose eigenvalues are those
            of the Hessian preconditioned by :math:`s^2`.
        product: Another symmetric operator in place of the Hessian, a function of one tensor
            for each parameter, e.g. of a Gauss-Newton matrix.

    Returns:
        :class:`Spectrum`.

    Raises:
        ValueError: If ``steps`` is not positive, or ``scale`` does not fit the parameters.
        TypeError: If a parameter is complex.
        FloatingPointError: If a product has NaN or infinity.

    Example:
        Two different eigenvalues, so two steps.

        >>> p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        >>> f = Objective(lambda: p[0] ** 2 + p[1] ** 2 - 3 * p[2] ** 2, [p])
        >>> lanczos(f, steps=5).values.round(decimals=6)
        tensor([-6.,  2.], dtype=torch.float64)

    Reference:
        Lanczos, "An iteration method for the solution of the eigenvalue problem", Journal of
        Research of the National Bureau of Standards 45, 1950.

    When not to use it:
        For eigenvalues inside the spectrum, which take many steps.
    """
    if steps < 1:
        raise ValueError(f"steps={steps!r} is not valid: give a whole number >= 1")
    params = objective.params
    if any(p.is_complex() for p in params):
        raise TypeError("a Hessian is of real numbers, and a parameter is complex")
    scale = list(scale) if scale is not None else None
    if scale is not None and [s.shape for s in scale] != [p.shape for p in params]:
        raise ValueError("scale does not fit: give one tensor of its shape for each parameter")

    def multiply(q: list[Tensor]) -> list[Tensor]:
        given = q if scale is None else list(torch._foreach_mul(q, scale))
        out = list(objective.hvp(given).product if product is None else product(given))
        return out if scale is None else list(torch._foreach_mul(out, scale))

    start = [torch.zeros_like(p, requires_grad=False) for p in params]
    add_noise_(start, seed, 1.0, start=offsets(start, objective.names))
    basis = [_over(start, _norm(start))]
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(min(steps, sum(p.numel() for p in params))):
        w = [t.clone() for t in multiply(basis[-1])]
        size = _norm(w)
        alphas.append(_dot(basis[-1], w))
        if not torch.isfinite(torch.tensor(size)):
            raise FloatingPointError("a product has NaN or infinity: is the loss finite here?")
        for _ in range(2):  # twice: what the first pass leaves is rounding of large numbers
            for q in basis:
                torch._foreach_sub_(w, torch._foreach_mul(q, _dot(q, w)))
        beta = _norm(w)
        eps = max(torch.finfo(p.dtype).eps for p in params)
        if beta <= 100 * eps * max(size, *map(abs, alphas), *betas, 1e-300):
            break  # the Krylov space is invariant: nothing is left to find from this start
        betas.append(beta)
        basis.append(_over(w, beta))
    k = len(alphas)
    off = torch.tensor(betas[: k - 1], dtype=torch.float64)
    tridiagonal = torch.tensor(alphas, dtype=torch.float64).diag() + off.diag(1) + off.diag(-1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    return Spectrum(values, vectors[0].square())


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    pairs = zip(a, b, strict=True)
    return float(sum(torch.dot(x.flatten(), y.flatten()).double() for x, y in pairs))


def _norm(a: list[Tensor]) -> float:
    return float(torch.stack([n.double() for n in torch._foreach_norm(a)]).norm())


def _over(a: list[Tensor], size: float) -> list[Tensor]:
    return list(torch._foreach_div(a, size))
