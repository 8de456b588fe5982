r"""A penalty on gradients that vanish or explode on their way back through time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steepest._registry import method


@method(
    paper="pascanu2013difficulty",
    title="On the difficulty of training Recurrent Neural Networks",
    oracle="none",
    forward=0,
    backward=0,
)
def vanishing_penalty(
    loss: Tensor, states: Sequence[Tensor], transition: Callable[[Tensor], Tensor]
) -> Tensor:
    r"""How far each step back through time is from keeping the length of the gradient.

    .. math::

        \Omega = \operatorname*{mean}_{k} \Bigl( \frac{\|\delta_{k+1}\, J_k\|}{\|\delta_{k+1}\|}
            - 1 \Bigr)^2, \qquad
        \delta_k = \frac{\partial E}{\partial x_k}, \qquad
        J_k = \frac{\partial x_{k+1}}{\partial x_k}.

    A gradient that travels :math:`T` steps back is multiplied by :math:`T` Jacobians. For
    :math:`x_{k+1} = W \sigma(x_k) + \dots` each is :math:`J_k = W \operatorname{diag}
    \sigma'(x_k)`, and where :math:`\|W\| < 1 / \sup|\sigma'|` the product shrinks exponentially.
    The penalty asks for Jacobians that keep the length of this one vector, the error that is on
    its way; it does not ask that of every direction, which would forbid to forget.

    As in the paper, states and errors are constants in it: its gradient reaches the weights by
    :math:`J_k` alone. Add :math:`\lambda\Omega` to the loss and differentiate the sum.

    Args:
        loss: :math:`E`, shape ``()``, whose graph goes through the states; it is kept.
        states: :math:`x_0, \dots, x_T` of the run that led to the loss, each ``(..., units)``:
            the sums before the nonlinearity for the paper's gradient. A state that holds
            :math:`\sigma` already is differentiated through :math:`\sigma'` as well.
        transition: All steps at once, from :math:`x_0, \dots, x_{T-1}` stacked to a tensor
            ``(T, ..., units)``, to :math:`x_1, \dots, x_T`, of the same shape; the inputs are in
            it.

    Returns:
        :math:`\Omega \ge 0`, shape ``()``, a mean over steps and samples; samples whose error is
        exactly 0 stay out.

    Raises:
        ValueError: If there are fewer than two states, or the transition changes the shape.
        RuntimeError: If the loss does not depend on a state.

    Example:
        One unit, x' = w x: each Jacobian is 1/2, so the penalty is 1/4, with slope 2 (w - 1).

        >>> w = torch.tensor(0.5, requires_grad=True)
        >>> states = [torch.ones(1, requires_grad=True)]
        >>> for _ in range(3):
        ...     states.append(w * states[-1])
        >>> penalty = vanishing_penalty(states[-1].sum(), states, lambda x: w * x)
        >>> penalty.backward()
        >>> penalty.item(), w.grad.item()
        (0.25, -1.0)

    Reference:
        :cite:t:`pascanu2013difficulty`.

    Deviations:
        A mean over steps for the sum, as in the authors' code, so that :math:`\lambda` does not
        depend on the length. That code compares squared lengths, the paper and this one lengths.

    When not to use it:
        With gated cells, which have a path of their own for the error; where the task needs no
        long memory; or alone, without clipping: what no longer vanishes can explode.
    """
    if len(states) < 2:
        raise ValueError(f"the penalty compares successive states, and there are {len(states)}")
    # $\delta_k = \partial E / \partial x_k$
    slopes = torch.autograd.grad(loss, list(states), retain_graph=True)
    # $\delta_1, \dots, \delta_T$
    errors = torch.stack(slopes[1:])
    # A factor cancels; this one keeps squares of small numbers above 0.
    size = errors.abs().amax(-1, keepdim=True)
    alive = size.squeeze(-1) > 0
    # $\delta_k \leftarrow \delta_k / \lVert \delta_k \rVert_\infty$
    errors = errors / size.where(size > 0, 1)
    with torch.enable_grad():
        # $x_0, \dots, x_{T-1}$
        before = torch.stack(list(states[:-1])).detach().requires_grad_()
        # $x_1, \dots, x_T$
        after = transition(before)
        if after.shape != before.shape:
            raise ValueError(
                f"the transition made {tuple(after.shape)} of {tuple(before.shape)}: it takes and "
                "returns all states, stacked"
            )
        # $\delta_{k+1} J_k$
        (pulled,) = torch.autograd.grad(after, before, errors, create_graph=True)
        # $\lVert \delta_{k+1} \rVert$
        lengths = torch.linalg.vector_norm(errors, dim=-1).where(alive, 1)
        # $r_k = \lVert \delta_{k+1} J_k \rVert / \lVert \delta_{k+1} \rVert$
        ratios = torch.linalg.vector_norm(pulled, dim=-1) / lengths
        # $\Omega = \operatorname{mean}_k\, (r_k - 1)^2$
        return (ratios - 1).where(alive, 0).square().sum() / alive.sum().clamp(min=1)
