r"""Grokfast: amplify what is slow in the gradients."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels import Rule, rule
from steepest.kernels._apply import compute_dtype
from steepest.optim._checks import check_hyperparameters
from steepest.optim._filter import Filter
from steepest.optim._wrapper import Memory


@rule
def grokfast(p, g, mean, *, lamb, beta):
    # $h \leftarrow \beta h + (1 - \beta)\, g$
    mean = mean + (g - mean) * (1 - beta)
    # $\tilde g = g + \lambda h$
    g = g + lamb * mean
    return g, mean


@final
@method(
    paper="lee2024grokfast",
    title="Grokfast: Accelerated Grokking by Amplifying Slow Gradients",
    oracle="gradient",
    state_bytes=4,
    claims={"descends_quadratic"},
)
class Grokfast(Filter):
    r"""Grokfast: add to each gradient a multiple of the running mean of the past ones.

    .. math::

        h_t = \beta h_{t-1} + (1 - \beta)\, g_t, \quad h_0 = g_1, \qquad
        \tilde g_t = g_t + \lambda h_t.

    Read the gradients of a weight as a signal in time. The mean is a low-pass filter, so the sum
    passes fast changes as they are and amplifies slow ones. At an angular frequency
    :math:`\omega`, in radians a step, the gain is :math:`|G(\omega)|`,

    .. math::

        G(\omega) = 1 + \lambda\, \frac{1 - \beta}{1 - \beta e^{-i\omega}}, \qquad
        G(0) = 1 + \lambda, \qquad G(\pi) = 1 + \lambda\, \frac{1 - \beta}{1 + \beta}.

    The paper's hypothesis is that slow components generalize and fast ones memorize. With
    ``kind="ma"`` the mean is that of the last ``window`` gradients, and until there are as many,
    gradients pass as they are.

    Args:
        optimizer: The optimizer that gets the amplified gradients. Its step at frequency 0 is
            :math:`1 + \lambda` times as long unless it normalizes, as Adam does.
        kind: ``ema``, an exponential mean, or ``ma``, the mean of a window.
        lamb: Factor :math:`\lambda` on the mean; the paper takes 2 with ``ema`` and 5 with
            ``ma``, and from 0.1 to 5 by task.
        beta: Memory :math:`\beta` of the exponential mean; the paper takes 0.8 to 0.99.
        window: Gradients in the mean of ``ma``, each of which is kept: 400 bytes a parameter, and
            8 for their sum, by the paper's 100.

    Raises:
        TypeError: If ``optimizer`` is not one, or queries the loss itself.
        ValueError: If a hyper-parameter is out of its range.

    Example:
        Mean 4, then 0.5 * 4 + 0.5 * 2 = 3: gradients of 4 + 2 * 4 and 2 + 2 * 3.

        >>> p = torch.nn.Parameter(torch.zeros(1))
        >>> opt = Grokfast(torch.optim.SGD([p], lr=1.0), lamb=2.0, beta=0.5)
        >>> for g in (4.0, 2.0):
        ...     p.grad = torch.tensor([g])
        ...     opt.step()
        ...     print(p.item())
        -12.0
        -20.0

    Reference:
        :cite:t:`lee2024grokfast`.

    When not to use it:
        Without comparing it with the same optimizer at :math:`1 + \lambda` times the learning
        rate, which has the same gain at frequency 0. Around Adam, which divides by the size of
        what it is given, most of the gain is divided out again.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        kind: str = "ema",
        lamb: float = 2.0,
        beta: float = 0.98,
        window: int = 100,
    ) -> None:
        if kind not in ("ema", "ma"):
            raise ValueError(f"Grokfast: kind={kind!r} is not valid: give 'ema' or 'ma'")
        check_hyperparameters("Grokfast", {"lamb": lamb, "beta": beta, "window": window})
        super().__init__(optimizer)
        self.kind = kind
        self.lamb = lamb
        self.beta = beta
        self.window = window

    def rule(self) -> Rule | None:
        """Rule of the exponential mean; a window is not elementwise."""
        return grokfast if self.kind == "ema" else None

    def numbers(self, params: list[Tensor], grads: list[Tensor]) -> dict[str, float | Tensor]:
        """Amplification and decay rate."""
        return {"lamb": self.lamb, "beta": self.beta}

    def fresh(self, g: Tensor) -> Memory:
        """A mean that starts at the first gradient."""
        return {"mean": g.to(_dtype(g), copy=True)}

    def filter(
        self, params: list[Tensor], grads: list[Tensor], memories: list[Memory]
    ) -> tuple[list[Tensor], list[Memory]]:
        """Add the mean."""
        if self.kind == "ema":
            return super().filter(params, grads, memories)
        wide = [g.to(_dtype(g)) for g in grads]
        means, memories = self._windowed(wide, memories)
        sums = [g.add(mean, alpha=self.lamb) for g, mean in zip(wide, means, strict=True)]
        return [s.to(g.dtype) for s, g in zip(sums, grads, strict=True)], memories

    def _windowed(
        self, grads: list[Tensor], memories: list[Memory]
    ) -> tuple[list[Tensor], list[Memory]]:
        """A memory has the sum, and the gradients by number, oldest first."""
        means, after = [], []
        for g, memory in zip(grads, memories, strict=True):
            kept = {key: past for key, past in memory.items() if key != "sum"}
            # In float64: the sum forgets what leaves it, also after an outlier of 1e10.
            total = memory.get("sum", 0) + g.to(torch.promote_types(g.dtype, torch.float64))
            if len(kept) == self.window:
                oldest = next(iter(kept))
                total = total - kept.pop(oldest)
            kept[str(int([*kept][-1]) + 1 if kept else 0)] = g.clone()
            full = len(kept) == self.window
            means.append((total / self.window).to(g.dtype) if full else torch.zeros_like(g))
            after.append({"sum": total, **kept})
        return means, after

    def own_state(self) -> dict[str, Any]:
        """Memory and hyper-parameters."""
        own = {"kind": self.kind, "lamb": self.lamb, "beta": self.beta, "window": self.window}
        return {**super().own_state(), **own}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take them back."""
        super().load_own_state(state)
        self.kind, self.window = str(state["kind"]), int(state["window"])
        self.lamb, self.beta = float(state["lamb"]), float(state["beta"])


def _dtype(g: Tensor) -> torch.dtype:
    return g.dtype if g.is_complex() else compute_dtype(g.dtype)
