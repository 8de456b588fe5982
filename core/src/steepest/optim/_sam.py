r"""SAM: the gradient where the loss is worst nearby."""

from __future__ import annotations

from typing import Any, final

import torch

from steepest._registry import method
from steepest.optim._checks import check_hyperparameters
from steepest.optim._oracle import Answer, OracleDriven
from steepest.optim._wrapper import Wrapper
from steepest.oracles import Objective


@final
@method(
    paper="foret2021sharpness",
    title="Sharpness-Aware Minimization for Efficiently Improving Generalization",
    oracle="gradient",
    scope="model",
    forward=2,
    backward=2,
    claims={"descends_quadratic"},
)
class SAM(OracleDriven, Wrapper):
    r"""SAM: descend by the gradient at the worst point nearby.

    .. math::

        e = \rho\, \frac{\nabla f(\theta)}{\|\nabla f(\theta)\|}, \qquad
        \tilde g = \nabla f(\theta + e), \qquad
        \theta \leftarrow \text{optimizer}(\theta, \tilde g).

    The aim is :math:`\min_\theta \max_{\|e\| \le \rho} f(\theta + e)`: a point whose whole
    neighborhood is low. To first order the inner maximum is at :math:`e`, one step up the
    gradient, with one norm over all parameters. On a quadratic
    :math:`\tilde g = g + \rho H g / \|g\|`: directions of high curvature are descended harder.
    The paper's outer step takes :math:`\tilde g` as if :math:`e` did not depend on
    :math:`\theta`; so does this one.

    Both gradients are of the same batch, with the same random numbers. The optimizer's weight
    decay acts at :math:`\theta`, and not on the way up.

    Args:
        optimizer: The optimizer that makes the step, any that takes a gradient as it comes.
        rho: Radius :math:`\rho`, in the parameters' units; the paper uses 0.01 to 0.5.

    Raises:
        TypeError: If ``optimizer`` is not one, or queries the loss itself.
        ValueError: If ``rho`` is not a finite number >= 0.

    Example:
        On a parabola of curvature 2 the gradient at 1 is 2, and half a unit up it is 3.

        >>> p = torch.nn.Parameter(torch.tensor([1.0]))
        >>> SAM(torch.optim.SGD([p], lr=0.1), rho=0.5).step(lambda: (p**2).sum())
        tensor(1.)
        >>> p.data
        tensor([0.7000])

    Reference:
        :cite:t:`foret2021sharpness`.

    When not to use it:
        Where a step's cost is what matters: it takes two gradients for one. Or to settle: around
        a minimum of curvature :math:`h` gradient descent with SAM bounces at a distance of
        :math:`\eta h \rho / (2 - \eta h)`.
    """

    oracle = "gradient"

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float = 0.05) -> None:
        check_hyperparameters("SAM", {"rho": rho})
        super().__init__(optimizer)
        self.rho = rho

    def own_state(self) -> dict[str, Any]:
        """The radius."""
        return {**super().own_state(), "rho": self.rho}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take back the radius."""
        super().load_own_state(state)
        self.rho = float(state["rho"])

    @torch.no_grad()
    def query(self, objective: Objective) -> Answer:
        """The gradient here, and from it the gradient up there."""
        # $g = \nabla f(\theta)$
        value, ascent = objective.gradient()
        # $\lVert g \rVert$
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in ascent]))
        params = [p.detach() for p in objective.params]
        home = [p.clone() for p in params]
        try:
            for p, g in zip(params, ascent, strict=True):
                # $\theta + e, \quad e = \rho\, g / \lVert g \rVert$
                p.add_(g * (self.rho / (norm + 1e-12)).to(g))
            # $\tilde g = \nabla f(\theta + e)$
            gradient = objective.gradient().gradient
        finally:
            for p, start in zip(params, home, strict=True):
                # $\theta$
                p.copy_(start)
        return Answer(objective, value, gradient)

    def update(self, answer: Answer) -> None:
        """Step the optimizer, which reads the gradient in ``.grad``."""
        # $\theta \leftarrow \text{any optimizer's step along } \tilde g$
        self.step_inside(answer.value)
