r"""U-DoG: an accelerated method that needs no rate, no smoothness and no distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels._apply import compute_dtype
from steepest.optim._base import Params
from steepest.optim._checks import check_hyperparameters
from steepest.optim._oracle import Answer, OracleDriven
from steepest.oracles import Objective


@final
@method(
    paper="kreisler2024accelerated",
    title="Accelerated Parameter-Free Stochastic Optimization",
    oracle="gradient",
    scope="model",
    forward=2,
    backward=2,
    state_bytes=8,
)
class UDoG(OracleDriven):
    r"""U-DoG: UniXGrad's two gradients a step, with steps as DoG makes them.

    With :math:`\bar r_t` the largest distance from the start so far, weights
    :math:`w_t = \sum_{k \le t} \bar r_k` that grow as the run goes on,
    :math:`\alpha_t = w_t / \bar r_t`, and :math:`W_t = \sum_{k \le t} w_k`:

    .. math::

        m_t &= \nabla f\Bigl(\frac{W_{t-1} \bar x_{t-1} + w_t y_t}{W_t}\Bigr), \qquad
        x_{t+1} = y_t - \frac{w_t}{\sqrt{G^x_t}}\, m_t, \\
        \bar x_t &= \frac{W_{t-1} \bar x_{t-1} + w_t x_{t+1}}{W_t}, \qquad
        y_{t+1} = y_t - \frac{w_t}{\sqrt{G^y_t}}\, \nabla f(\bar x_t).

    Gradients are taken at averages of the whole past, with weights that grow linearly: that is
    Nesterov's acceleration, written as an average. The steps have in their roots
    :math:`Q_t = \sum_k \alpha_k^2 \lVert g_k - m_k \rVert^2`, how much the gradient changed
    between the two points, not how large it was. On a smooth loss without noise they hardly
    change, the roots stay small and the rate is :math:`O(1/T^2)`; noise makes them differ, and
    the roots grow as it requires.

    The parameters are the average :math:`\bar x_t` itself, which is the method's answer: nothing
    has to be swapped for evaluation.

    Args:
        params: Parameters, named parameters, or groups, of any shape. Distances are over all
            groups together.
        lr: A factor on both steps, without a unit, for schedules to move; leave it at 1.
        reps_rel: First distance, relative to one plus the start's norm; 1e-6 to 1e-4.
        split: Take the first gradient of one half of a list of losses and the second of the
            other, so that their noise is independent, as the theory has it. Without it, both are
            of the whole batch.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: In a step with ``split``, if there is one loss only.

    Example:
        A straight slope never changes: only the first gradient's length is in the roots.

        >>> p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        >>> opt = UDoG([p], reps_rel=0.1)
        >>> for _ in range(3):
        ...     _ = opt.step(lambda: -7 * p.sum())
        ...     p.data.round(decimals=4)
        tensor([0.1000], dtype=torch.float64)
        tensor([0.1667], dtype=torch.float64)
        tensor([0.3000], dtype=torch.float64)

    Reference:
        :cite:t:`kreisler2024accelerated`.

    Deviations:
        A reading of the method in its practical form, without the theory's logarithms and bounds
        on the noise: :math:`G^x_t = Q_{t-1} + M_t` and :math:`G^y_t = \max(G^x_t, Q_t + M_t)`,
        with :math:`M_t` the largest :math:`\alpha_k^2 \lVert \cdot \rVert^2` of any gradient so
        far. There is no projection.

    When not to use it:
        With noise, where it may fall behind plain :class:`DoG`, which is also half the price.
    """

    oracle = "gradient"

    def __init__(
        self, params: Params, lr: float = 1.0, reps_rel: float = 1e-4, *, split: bool = False
    ) -> None:
        check_hyperparameters("UDoG", {"reps_rel": reps_rel})
        super().__init__(params, {"lr": lr})
        self.reps_rel = reps_rel
        self.split = split
        self.totals: dict[str, Tensor] = {}
        """Numbers of the whole model: ``reach``, ``weight``, ``weights``, ``change``, ``most``."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim``; a bad one changes nothing."""
        check_hyperparameters("UDoG", {**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def query(self, objective: Objective) -> Answer:
        """Both gradients, at the two averages; parameters end bit for bit as they were."""
        for group in self.param_groups:
            check_hyperparameters("UDoG", group)
        first, second = self._halves(objective)
        lr = {p: float(group["lr"]) for group in self.param_groups for p in group["params"]}
        params = objective.params
        home = [p.detach().clone() for p in params]
        wide = [p.to(_wide(p)) for p in home]
        states = [
            self.state.get(p, {"y": w, "start": w}) for p, w in zip(params, wide, strict=True)
        ]
        y, start = [s["y"] for s in states], [s["start"] for s in states]
        zero = _norm(wide) * 0
        if self.totals:
            old = self.totals
        else:
            keys = ("weight", "weights", "change", "most")
            old = {key: zero for key in keys} | {"reach": self.reps_rel * (1 + _norm(wide))}
        # $\bar r_t = \max(\bar r_{t-1}, \lVert y_t - x_0 \rVert)$
        reach = torch.maximum(old["reach"], _norm(torch._foreach_sub(y, start)))
        # $w_t = \sum_{k \le t} \bar r_k$
        weight = old["weight"] + reach
        # $W_t = \sum_{k \le t} w_k, \quad \alpha_t = w_t / \bar r_t$
        weights, alpha = old["weights"] + weight, weight / reach
        # $\tau_t = w_t / W_t$
        part = weight / weights
        try:
            # $(1 - \tau_t)\, \bar x_{t-1} + \tau_t\, y_t$
            _put(params, _mix(wide, y, part))
            # $m_t = \nabla f(\dots)$
            m = self._gradient(first, objective)[1]
            # $M_t = \max_{k \le t} \alpha_k^2 \lVert \cdot \rVert^2$
            most = torch.maximum(old["most"], (alpha * _norm(m)).square())
            # $\sqrt{G^x_t} = \sqrt{Q_{t-1} + M_t}$
            x_root = _safe((old["change"] + most).sqrt())
            # $x_{t+1} = y_t - \frac{w_t}{\sqrt{G^x_t}}\, m_t$
            x = [
                a - b.to(a) * (lr[p] * weight / x_root).to(a)
                for p, a, b in zip(params, y, m, strict=True)
            ]
            # $\bar x_t = (1 - \tau_t)\, \bar x_{t-1} + \tau_t\, x_{t+1}$
            average = _mix(wide, x, part)
            _put(params, average)
            # $g_t = \nabla f(\bar x_t)$
            value, g = self._gradient(second, objective)
        finally:
            _put(params, home)
        # $Q_t = Q_{t-1} + \alpha_t^2 \lVert g_t - m_t \rVert^2$
        change = old["change"] + (alpha * _norm(torch._foreach_sub(g, m))).square()
        most_now = torch.maximum(most, (alpha * _norm(g)).square())
        totals = {
            "reach": torch.maximum(reach, _norm(torch._foreach_sub(x, start))),
            "weight": weight,
            "weights": weights,
            "change": change,
            "most": most_now,
        }
        # $\sqrt{G^y_t} = \sqrt{\max(G^x_t,\; Q_t + M_t)}$
        y_root = _safe(torch.maximum(x_root.square(), change + most_now).sqrt())
        return Answer(objective, value, g, (average, y, start, weight / y_root, totals))

    def _halves(self, objective: Objective) -> tuple[list[Objective], list[Objective]]:
        """The losses of the first and of the second gradient."""
        terms = objective.terms
        if not self.split:
            return terms, terms
        if len(terms) < 2:
            raise RuntimeError(
                "UDoG(split=True) takes its gradients of different losses and got one: pass a list "
                "of two, or with Lightning accumulate_grad_batches=2"
            )
        return terms[::2], terms[1::2]

    @staticmethod
    def _gradient(terms: list[Objective], objective: Objective) -> tuple[Tensor, list[Tensor]]:
        """Value and gradient of some terms of a sum, scaled up to all of them."""
        share = len(objective.terms) / len(terms)
        values, total = [], None
        for term in terms:
            value, gradient = term.gradient()
            values.append(value * share)
            total = gradient if total is None else list(torch._foreach_add(total, gradient))
        assert total is not None
        return torch.stack(values).sum(), list(torch._foreach_mul(total, share))

    @torch.no_grad()
    def update(self, answer: Answer) -> None:
        """Move the average and the point that leads it."""
        average, y, start, step, totals = answer.rest
        lr = {p: float(group["lr"]) for group in self.param_groups for p in group["params"]}
        params = answer.objective.params
        for p, mean, ahead, home in zip(params, average, y, start, strict=True):
            assert p.grad is not None
            # $\frac{w_t}{\sqrt{G^y_t}}\, g_t$
            move = p.grad.to(ahead) * (lr[p] * step).to(ahead)
            # $y_{t+1} = y_t - \dots$
            self.state[p] = {"y": ahead - move, "start": home}
            p.copy_(mean)
        self.totals = totals

    def state_dict(self) -> dict[str, Any]:
        """As that of ``torch.optim``, with the numbers of the whole model under ``totals``."""
        return {**super().state_dict(), "totals": dict(self.totals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the same optimizer; one that does not fit changes nothing."""
        super().load_state_dict(state_dict)
        self.totals = {key: t.clone() for key, t in state_dict["totals"].items()}
        # torch has cast the state to the parameters' dtype, which may be low.
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(ids, params, strict=True):
            for key, t in state_dict["state"].get(i, {}).items():
                self.state[p][key] = t.detach().to(p.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        own = {"reps_rel": self.reps_rel, "split": self.split, "totals": self.totals}
        return {**super().__getstate__(), **own}


def _wide(p: Tensor) -> torch.dtype:
    return p.dtype if p.is_complex() else compute_dtype(p.dtype)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(t).double() for t in tensors]).norm()


def _mix(past: list[Tensor], new: list[Tensor], part: Tensor) -> list[Tensor]:
    return [a + (b - a) * part.to(a) for a, b in zip(past, new, strict=True)]


def _safe(root: Tensor) -> Tensor:
    """Where all gradients were zero a step is zero too, over anything."""
    return torch.where(root > 0, root, 1.0)


def _put(params: list[Tensor], values: list[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
