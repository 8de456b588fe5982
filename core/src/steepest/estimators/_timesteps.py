r"""The noise levels at which a token matters."""

from __future__ import annotations

import torch
from torch import Tensor

from steepest._registry import method


@method(
    paper="seo2025efficient",
    title="Efficient Personalization of Quantized Diffusion Model without Backpropagation",
    oracle="none",
    forward=0,
    backward=0,
)
def partial_uniform(
    count: int,
    window: tuple[float, float] = (0.5, 0.9),
    levels: int = 1000,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Partial uniform timestep sampling: a diffusion model's noise levels, from a window.

    .. math::

        t \sim \mathcal U\{\lceil a T \rceil, \dots, \lceil b T \rceil - 1\}.

    A diffusion model is trained on all levels. What a *token* should be shows only at some: with
    little noise the image tells the model what it is, and with nothing but noise no token helps
    to tell one noise from another. An estimate from values costs the same at each level, so it is
    asked for where the loss depends on the token.

    Args:
        count: Levels to draw.
        window: Where the window begins, :math:`a`, and ends, :math:`b`, as shares of all levels;
            the paper takes 0.5 and 0.9 for Stable Diffusion.
        levels: Levels :math:`T` of the model.
        generator: Random numbers to use; torch's own by default.

    Returns:
        Levels, int64, shape (count,).

    Raises:
        ValueError: If the window has no level in it, or leaves [0, 1].

    Example:
        >>> t = partial_uniform(1000, window=(0.5, 0.504))
        >>> t.unique()
        tensor([500, 501, 502, 503])

    Reference:
        :cite:t:`seo2025efficient`.

    When not to use it:
        Unmeasured: where the window lies depends on model, data and parameterization. And not to
        train a model, which has to denoise at all levels.
    """
    low, high = (-int(-share * levels // 1) for share in window)
    if not 0 <= low < high <= levels:
        raise ValueError(
            f"window={window!r} is not valid: give a begin and an end in [0, 1] with at least one "
            f"of the {levels} levels between them"
        )
    return torch.randint(low, high, (count,), generator=generator)
