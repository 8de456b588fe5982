r"""How many coordinates each layer deserves, from values alone."""

from __future__ import annotations

import torch

from steepest._registry import method
from steepest.estimators._spsa import SPSA
from steepest.oracles import Objective


@method(
    paper="chen2024deepzero",
    title="DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training",
    oracle="value",
    forward=386,
    backward=0,
)
@torch.no_grad()
def zo_grasp(
    objective: Objective,
    keep: float,
    *,
    samples: int = 192,
    eps: float = 5e-3,
    seed: int = 0,
) -> list[float]:
    r"""Layer-wise keep ratios by ZO-GraSP: which layers carry the flow of the gradient.

    .. math::

        s = -\theta \odot \widehat{Hg}, \qquad
        \widehat{Hg} = \frac{\hat g(\theta + \epsilon \hat g) - \hat g(\theta)}{\epsilon}.

    To remove a weight changes the gradient's squared norm by :math:`-2 \theta_j (Hg)_j` to first
    order, so the weights with the largest :math:`s` can go with the least harm to training, or
    with some good. Both estimates are one-sided, along the same directions: these cancel from
    the difference but for the curvature along them. Of the ranking only the share that each tensor
    keeps is used; a fixed mask made of so noisy a score would be worse than none.

    Args:
        objective: The loss of a batch.
        keep: Share of all ranked weights to keep, in (0, 1].
        samples: Random directions of each estimate.
        eps: Radius of probes, and the step along the estimate.
        seed: Seed of the directions.

    Returns:
        A ratio for each parameter, in their order. Tensors of less than two dimensions, such as
        biases, are not ranked and kept whole.

    Raises:
        ValueError: If ``keep`` is out of range, or there is nothing to rank.
        RuntimeError: If a value is NaN or infinite; the parameters are as they were.

    Example:
        Where the loss is steep and bends, weights stay.

        >>> a, b = (torch.nn.Parameter(torch.ones(1, 2)) for _ in range(2))
        >>> f = Objective(lambda: (a**2).sum() + 9 * (b**2).sum(), [a, b])
        >>> zo_grasp(f, keep=0.5)
        [0.0, 1.0]

    Reference:
        :cite:t:`chen2024deepzero`.

    Deviations:
        The paper's code removes the scores of the smallest magnitude, and draws new directions
        for the second estimate. Here are its equations: the largest scores go, and directions are
        the same.

    When not to use it:
        Where one tensor holds nearly everything, or the ratios matter less than their average,
        which a single ``keep`` for all tensors gives for nothing.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep!r} is not valid: give a share in (0, 1]")
    params = [p.detach() for p in objective.params]
    ranked = [i for i, p in enumerate(params) if p.dim() >= 2]
    if not ranked:
        raise ValueError("no parameter has two dimensions or more: there is nothing to rank")
    estimator = SPSA(eps, samples, one_sided=True)
    # $\hat g(\theta)$
    here = estimator(objective, seed).gradient
    home = [p.clone() for p in params]
    try:
        # $\theta + \epsilon\, \hat g$
        torch._foreach_add_(params, here, alpha=eps)
        # $\hat g(\theta + \epsilon\, \hat g)$
        there = estimator(objective, seed).gradient
    finally:
        for p, start in zip(params, home, strict=True):
            p.copy_(start)
    # $\epsilon s = -\theta \odot \epsilon \widehat{Hg}$
    scores = [-(params[i] * (there[i] - here[i])).flatten() for i in ranked]
    ranking = torch.cat(scores)
    order = ranking.argsort()
    kept = torch.zeros_like(order, dtype=torch.bool)
    # $\text{the lowest keep}$
    kept[order[: round(keep * len(order))]] = True
    ratios = [1.0] * len(params)
    for i, part in zip(ranked, kept.split([len(s) for s in scores]), strict=True):
        # $\text{the share that each tensor keeps}$
        ratios[i] = part.double().mean().item()
    return ratios
