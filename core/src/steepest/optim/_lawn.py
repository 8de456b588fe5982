r"""LAWN: fix the layers' norms, so that a fitted network can still move."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels._apply import compute_dtype
from steepest.optim._checks import check_hyperparameters
from steepest.optim._oracle import lent
from steepest.optim._wrapper import Wrapper


def tangent(v: Tensor, w: Tensor) -> Tensor:
    """The part of ``v`` that is orthogonal to ``w``.

    Example:
        >>> tangent(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0]))
        tensor([0., 4.])
    """
    # $\lVert w \rVert^2$
    size = w.square().sum()
    # $P_w v = v - w\, (v^\top w) / \lVert w \rVert^2$
    return v - w * ((v * w).sum() / size) if size > 0 else v


@final
@method(
    paper="gupta2021logit",
    title="Logit Attenuating Weight Normalization",
    oracle="gradient",
    scope="tensor",
)
class LAWN(Wrapper):
    r"""LAWN: after some free steps, the norm of each layer's weights stays what it is.

    For each constrained weight tensor :math:`w`, with :math:`c = \|w\|` at the switch and
    :math:`P_w = I - ww^\top/\|w\|^2`:

    .. math::

        d = \text{optimizer's step on } P_w \nabla f, \qquad
        w \leftarrow c\, \frac{w + P_w d}{\|w + P_w d\|}.

    A network whose layers are homogeneous lowers cross-entropy without end by growing its
    weights: logits grow, the loss and its gradients vanish, and training freezes where it
    happens to be. With the norms fixed the logits stay bounded, the loss stays away from zero,
    and gradients go on carrying the network to better places.

    At the switch the optimizer's state is cleared, as its moments belong to free weights, and
    the learning rate warms up anew.

    Args:
        optimizer: The optimizer that makes the steps, without weight decay (on constrained
            layers decay has no effect, as it points along the weights).
        layers: The weight tensors to constrain: those after the last normalization layer, where
            scale reaches the logits. By default every parameter of two or more dimensions.
        free_steps: Steps before the switch; the paper tunes it, to a few epochs.
        warmup: Steps over which the learning rate rises linearly after the switch.

    Raises:
        TypeError: If ``optimizer`` is not one, or queries the loss itself.
        ValueError: If a hyper-parameter is out of its range, or a layer is not among the
            optimizer's parameters.

    Example:
        A gradient along the weights has no effect, one across them turns them.

        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 0.0]]))
        >>> opt = LAWN(torch.optim.SGD([w], lr=1.0))
        >>> w.grad = torch.tensor([[5.0, -3.0]])
        >>> opt.step()
        >>> w.data
        tensor([[2.1213, 2.1213]])

    Reference:
        :cite:t:`gupta2021logit`.

    Deviations:
        No code of the authors is public; that both the gradient and the step are projected, and
        that the state is cleared at the switch, is this implementation's reading.

    When not to use it:
        On layers that a normalization layer follows: their norm does not reach the logits. Or
        where the loss has its minimum at finite weights, as squared error has.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        layers: Iterable[Tensor] | None = None,
        free_steps: int = 0,
        warmup: int = 0,
    ) -> None:
        check_hyperparameters("LAWN", {"free_steps": free_steps, "warmup": warmup})
        super().__init__(optimizer)
        everything = [p for _, p in self._numbered()]
        wanted = [p for p in everything if p.ndim >= 2] if layers is None else list(layers)
        known = set(everything)
        if not all(p in known for p in wanted):
            raise ValueError("LAWN: a layer is not among the optimizer's parameters")
        self.layers = wanted
        self.free_steps = free_steps
        self.warmup = warmup
        self.steps = 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update.

        Args:
            closure: Optional; clears gradients, computes the loss, calls ``backward`` and
                returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: If a gradient cannot be used. Nothing has changed then.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            if self.steps < self.free_steps:
                self.step_inside(loss)
            else:
                self._constrained_step(loss)
        self.steps += 1
        return loss

    def _constrained_step(self, loss: Any) -> None:
        pairs = [(p, p.grad) for p in self.layers if p.grad is not None]
        layers, grads = [p for p, _ in pairs], [g for _, g in pairs]
        for g in grads:
            if g.layout != torch.strided:
                raise RuntimeError("LAWN got a sparse gradient: use sparse=False")
        home = [p.detach().to(compute_dtype(p.dtype), copy=True) for p in layers]
        rates, state = [group["lr"] for group in self.param_groups], dict(self.state)
        since = self.steps - self.free_steps + 1
        try:
            if since == 1:
                self.state.clear()
            for group, lr in zip(self.param_groups, rates, strict=True):
                group["lr"] = lr if since >= self.warmup else lr * (since / self.warmup)
            # $P_w \nabla f(w)$
            turned = [tangent(g.to(w), w).to(g) for g, w in zip(grads, home, strict=True)]
            with lent(layers, turned):
                # $w + d$
                self.step_inside(loss)
        except BaseException:
            self.state.update(state)
            raise
        finally:
            for group, lr in zip(self.param_groups, rates, strict=True):
                group["lr"] = lr
        for p, w in zip(layers, home, strict=True):
            now = {"norm": torch.linalg.vector_norm(w)}
            # $c = \lVert w \rVert \text{ at the switch}$
            norm = self.memory.setdefault(p, now)["norm"]
            # $u = w + P_w d$
            moved = w + tangent(p.to(w) - w, w)
            if norm > 0:
                # $c\, u / \lVert u \rVert$
                moved = moved * (norm / torch.linalg.vector_norm(moved))
            p.copy_(moved)

    def own_state(self) -> dict[str, Any]:
        """The norms, and the number of steps."""
        return {**super().own_state(), "steps": self.steps}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        super().load_own_state(state)
        self.steps = int(state["steps"])
