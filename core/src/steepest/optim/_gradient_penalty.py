r"""Full batches with the regularization that small ones have by themselves."""

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
    paper="geiping2022stochastic",
    title="Stochastic Training is Not Necessary for Generalization",
    oracle="gradient",
    scope="model",
    forward=2,
    backward=2,
    claims={"descends_quadratic"},
)
class GradientPenalty(OracleDriven, Wrapper):
    r"""Full-batch training with an explicit penalty on the gradients of its blocks.

    .. math::

        \min_\theta \; f(\theta) + \frac{\alpha\eta}{4} \cdot \frac1k \sum_{b=1}^k
            \|\nabla f_b(\theta)\|^2,
        \qquad f = \frac1k \sum_{b=1}^k f_b.

    To second order in the step, an epoch of stochastic gradient descent over blocks descends
    this sum, with :math:`\alpha = 1`, and not :math:`f` itself: small batches are implicitly
    drawn to where their gradients are small and agree. Here the same term stands explicitly, for
    a method that never steps on a block. Its gradient is a Hessian product for each block, by a
    difference of gradients along the block's own:

    .. math::

        \nabla^2 f_b\, g_b \approx \frac{\|g_b\|}{\epsilon} \Bigl(\nabla f_b\bigl(\theta +
            \epsilon\, g_b / \|g_b\|\bigr) - g_b\Bigr).

    A step needs the blocks: ``step`` takes a list of losses that sum to the whole, one a block,
    and under Lightning ``accumulate_grad_batches`` batches are the blocks of one step. Where the
    last step of an epoch has fewer, Lightning divides its losses by the full number, and both
    terms are smaller: the gradient by the share of blocks that are there, the penalty by its
    square.

    Args:
        optimizer: The optimizer that makes the step; its learning rate :math:`\eta`, as the
            schedule has it, scales the penalty.
        alpha: Strength :math:`\alpha`; 1 is what stochastic gradient descent would have.
        radius: Length :math:`\epsilon` of the difference, in the parameters' units.

    Raises:
        TypeError: If ``optimizer`` is not one, or queries the loss itself.
        ValueError: If a hyper-parameter is out of its range.

    Example:
        On one block with f = x^2: gradient 2, Hessian product 4, so 2 + 0.1 / 2 * 4.

        >>> p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        >>> opt = GradientPenalty(torch.optim.SGD([p], lr=0.1), alpha=1.0)
        >>> _ = opt.step(lambda: (p**2).sum())
        >>> p.data
        tensor([0.7800], dtype=torch.float64)

    Reference:
        :cite:t:`geiping2022stochastic`.

    Deviations:
        The factor is that of the penalty above, :math:`\alpha\eta/2` on the Hessian product; the
        paper's code has half of it with the difference. Clipping and the schedule are the
        trainer's.

    When not to use it:
        Where small batches fit the budget: they have this term at half the passes.
    """

    oracle = "gradient"

    def __init__(
        self, optimizer: torch.optim.Optimizer, alpha: float = 1.0, radius: float = 1e-2
    ) -> None:
        check_hyperparameters("GradientPenalty", {"alpha": alpha, "radius": radius})
        super().__init__(optimizer)
        self.alpha = alpha
        self.radius = radius

    @torch.no_grad()
    def query(self, objective: Objective) -> Answer:
        """The gradient of each block, here and a little up along itself."""
        params = [p.detach() for p in objective.params]
        home = [p.clone() for p in params]
        blocks = objective.terms
        total = [torch.zeros_like(p) for p in params]
        penalty = [torch.zeros_like(p) for p in params]
        loss = torch.zeros((), device=params[0].device)
        for block in blocks:
            # $g_b / k$
            value, gradient = block.gradient()
            loss = loss + value
            norms = torch.stack([torch.linalg.vector_norm(g) for g in gradient])
            # $\lVert g_b \rVert / k$
            norm = torch.linalg.vector_norm(norms).item()
            # $g \leftarrow g + g_b / k$
            torch._foreach_add_(total, gradient)
            if self.alpha == 0 or norm == 0:
                continue
            try:
                for p, g in zip(params, gradient, strict=True):
                    # $\hat\theta = \theta + \epsilon\, g_b / \lVert g_b \rVert$
                    p.add_(g, alpha=self.radius / norm)
                # $\nabla f_b(\hat\theta) / k$
                moved = block.gradient().gradient
            finally:
                for p, start in zip(params, home, strict=True):
                    p.copy_(start)
            # k times, as a block's loss is a k-th of f_b.
            # $a = \lVert g_b \rVert / \epsilon$
            scale = len(blocks) * norm / self.radius
            for h, new, old in zip(penalty, moved, gradient, strict=True):
                # $h \leftarrow h + a\, \bigl(\nabla f_b(\hat\theta) - g_b\bigr) / k$
                h.add_(new - old, alpha=scale)
        lr = {p: float(g["lr"]) for g in self.param_groups for p in g["params"]}
        for g, h, p in zip(total, penalty, objective.params, strict=True):
            # $g \leftarrow g + \tfrac{\alpha\eta}{2}\, h$
            g.add_(h, alpha=0.5 * self.alpha * lr.get(p, 0.0))
        return Answer(objective, loss, total)

    def update(self, answer: Answer) -> None:
        """Step the optimizer, which reads the gradient in ``.grad``."""
        self.step_inside(answer.value)

    def own_state(self) -> dict[str, Any]:
        """Strength and length of the difference."""
        return {**super().own_state(), "alpha": self.alpha, "radius": self.radius}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        super().load_own_state(state)
        self.alpha, self.radius = float(state["alpha"]), float(state["radius"])
