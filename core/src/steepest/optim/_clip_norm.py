r"""Clipping: no gradient longer than a threshold."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.optim._checks import check_hyperparameters
from steepest.optim._filter import Filter
from steepest.optim._wrapper import Memory


@final
@method(
    paper="pascanu2013difficulty",
    title="On the difficulty of training Recurrent Neural Networks",
    oracle="gradient",
    scope="model",
    claims={"descends_quadratic"},
)
class ClipNorm(Filter):
    r"""Clipping: rescale a gradient that is longer than a threshold to its length.

    .. math::

        \tilde g = \min\Bigl(1, \frac{\tau}{\|g\|}\Bigr)\, g,

    with one norm over all parameters of all groups, so that the direction stays. In a recurrent
    network the loss has cliffs: the gradient there is a product of as many Jacobians as the
    sequence is long, and one step along it, at a learning rate that is right elsewhere, throws
    the weights out of the valley. Clipped, no step of gradient descent is longer than
    :math:`\eta\tau`.

    Args:
        optimizer: The optimizer that gets the clipped gradients.
        max_norm: Threshold :math:`\tau`, in the gradient's units; infinity for none. The paper
            takes half to ten times the mean norm of an unclipped run.

    Raises:
        TypeError: If ``optimizer`` is not one, or queries the loss itself.
        ValueError: If ``max_norm`` is not above 0.

    Example:
        A gradient of length 5 over two parameters, clipped to 1.

        >>> a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        >>> opt = ClipNorm(torch.optim.SGD([a, b], lr=1.0), max_norm=1.0)
        >>> a.grad, b.grad = torch.tensor([3.0]), torch.tensor([-4.0])
        >>> opt.step()
        >>> [round(p.item(), 4) for p in (a, b)]
        [-0.6, 0.8]

    Reference:
        :cite:t:`pascanu2013difficulty`.

    Deviations:
        The factor is torch's, :math:`\tau / (\|g\| + 10^{-6})`, also where the length is within
        :math:`10^{-6}` below the threshold, so that both clip alike, bit for bit.

    When not to use it:
        Around Adam and the like as a bound on the step: they divide by the size of what they are
        given, and clipping then changes only the weights of batches in the moments. With a
        threshold below the usual norm: what remains is normalized gradient descent, and the
        learning rate is a length.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float = 1.0) -> None:
        check_hyperparameters("ClipNorm", {"max_norm": max_norm})
        super().__init__(optimizer)
        self.max_norm = max_norm

    def filter(
        self, params: list[Tensor], grads: list[Tensor], memories: list[Memory]
    ) -> tuple[list[Tensor], list[Memory]]:
        """Scale all gradients by the same factor; no wait for the device."""
        if not grads:
            return [], []
        # $\lVert g \rVert$
        total = torch.nn.utils.get_total_norm(grads)
        # $c = \min\bigl(1, \tau / (\lVert g \rVert + 10^{-6})\bigr)$
        factor = torch.clamp(self.max_norm / (total + 1e-6), max=1.0)
        if len({g.device for g in grads}) > 1:
            return [g * factor.to(g.device) for g in grads], memories
        # $\tilde g = c\, g$
        return list(torch._foreach_mul(grads, factor)), memories

    def own_state(self) -> dict[str, Any]:
        """The threshold."""
        return {**super().own_state(), "max_norm": self.max_norm}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        super().load_own_state(state)
        self.max_norm = float(state["max_norm"])
