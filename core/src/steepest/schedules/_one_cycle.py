r"""The one-cycle policy: a learning rate that rises, falls and vanishes, momentum against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from steepest._registry import method


def cycle(step: int, total_steps: int, rise: float = 0.45) -> tuple[float, float]:
    r"""Height of the cycle at a step, and how much of the last phase is left.

    .. math::

        h_t = \max\Bigl(0,\; 1 - \Bigl|\frac{t}{aT} - 1\Bigr|\Bigr), \qquad
        r_t = \min\Bigl(1,\; \frac{T - t}{T - 2aT}\Bigr).

    Args:
        step: :math:`t`, 0 before the first step; beyond :math:`T` as at :math:`T`.
        total_steps: :math:`T`.
        rise: :math:`a`, the share of the steps in which the rate rises, and again falls.

    Returns:
        Both in [0, 1]: h is 1 at :math:`aT` and 0 from :math:`2aT` on; r is 1 until
        :math:`2aT` and 0 at :math:`T`.
    """
    up, t = rise * total_steps, min(step, total_steps)
    # $h_t = \max(0, 1 - |t / aT - 1|)$
    height = max(0.0, 1 - abs(t / up - 1))
    # $r_t = \min\bigl(1, (T - t) / (T - 2aT)\bigr)$
    left = min(1.0, (total_steps - t) / (total_steps - 2 * up))
    return height, left


@method(
    paper="smith2018disciplined",
    title="A disciplined approach to neural network hyper-parameters: Part 1 -- learning rate, "
    "batch size, momentum, and weight decay",
    oracle="none",
    forward=0,
    backward=0,
)
class OneCycle(LRScheduler):
    r"""One cycle: the learning rate up and down again, momentum against it, then an end near 0.

    .. math::

        \eta_t = \eta_{\min} \Bigl(\frac1c + \bigl(1 - \frac1c\bigr)\, r_t\Bigr)
            + (\eta_{\max} - \eta_{\min})\, h_t, \qquad
        \mu_t = \mu_{\max} - (\mu_{\max} - \mu_{\min})\, h_t,

    where :math:`h_t` climbs from 0 to 1 in the first 45 % of the steps and comes back in the
    next 45 %, and :math:`r_t` falls from 1 to 0 in the last 10 %. The beginning is a warm-up, and
    the end averages noise out. In between the rate is larger than a constant one could be: its
    noise regularizes, and momentum gives way, since both lengthen the steps.

    Step it after each batch, not after each epoch; under Lightning, return
    ``{"scheduler": OneCycle(...), "interval": "step"}``. It is a function of the step alone:
    a resumed run goes on exactly, and beyond the last step it stays where it ended.

    Args:
        optimizer: Its groups have ``momentum``, or ``betas``, whose first is cycled then.
        total_steps: Batches in the whole run, :math:`T`.
        lr_max: The peak :math:`\eta_{\max}`, one for all groups or one for each; by default each
            group's own ``lr``. :class:`~steepest.lightning.LRRangeTest` suggests it.
        ratio: :math:`\eta_{\max} / \eta_{\min}`; 10 to 20 in the paper.
        annihilation: How far below :math:`\eta_{\min}` the run ends, :math:`c`.
        momentum: :math:`(\mu_{\max}, \mu_{\min})`, or None to leave it alone.
        rise: Share of the steps in which the rate rises, and again falls, in (0, 0.5).
        last_epoch: Last step, to go on from it; -1 to begin.

    Raises:
        ValueError: If an argument is out of its range, or a group has no momentum.

    Example:
        >>> import torch
        >>> opt = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0, momentum=0.9)
        >>> schedule, rates = OneCycle(opt, total_steps=20), []
        >>> for _ in range(20):
        ...     rates.append(round(schedule.get_last_lr()[0], 4))
        ...     opt.step()
        ...     schedule.step()
        >>> rates[0], rates[9], rates[18]
        (0.1, 1.0, 0.1)

    Reference:
        :cite:t:`smith2018disciplined`.

    Deviations:
        ``torch.optim.lr_scheduler.OneCycleLR(three_phase=True, anneal_strategy="linear")`` is
        the same with the peak a step earlier and an error beyond the last step; its defaults, two
        phases of a cosine, are not the paper's policy. The paper prescribes how to choose weight
        decay and batch size too; that is a grid, not a schedule.

    When not to use it:
        When you do not know how long you will train: it can be neither stopped early nor
        prolonged.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        lr_max: float | Sequence[float] | None = None,
        *,
        ratio: float = 10.0,
        annihilation: float = 100.0,
        momentum: tuple[float, float] | None = (0.95, 0.85),
        rise: float = 0.45,
        last_epoch: int = -1,
    ) -> None:
        groups = optimizer.param_groups
        peaks = lr_max if lr_max is None or isinstance(lr_max, Sequence) else [lr_max] * len(groups)
        if total_steps < 1:
            raise ValueError(f"total_steps={total_steps!r} is not valid: give batches x epochs")
        if peaks is not None and (len(peaks) != len(groups) or not min(peaks) > 0):
            raise ValueError(f"lr_max={lr_max!r} is not valid: give a rate > 0, or one each group")
        if not ratio >= 1 or not annihilation >= 1:
            raise ValueError(f"give a ratio and an annihilation >= 1, not {ratio}, {annihilation}")
        if not 0 < rise < 0.5:
            raise ValueError(f"rise={rise!r} is not valid: give a share in (0, 0.5)")
        if momentum is not None:
            if not 0 <= momentum[1] <= momentum[0] < 1:
                raise ValueError(f"momentum={momentum!r} is not valid: give 1 > high >= low >= 0")
            if not all("momentum" in group or "betas" in group for group in groups):
                raise ValueError("a group has neither momentum nor betas: give momentum=None")
        self.total_steps = total_steps
        self.peaks = None if peaks is None else [float(peak) for peak in peaks]
        self.ratio = ratio
        self.annihilation = annihilation
        self.momentum = momentum
        self.rise = rise
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Rates of the groups at this step; sets their momenta too, as torch's schedule does."""
        # $h_t, \; r_t$
        height, left = cycle(self.last_epoch, self.total_steps, self.rise)
        # $\eta_{\min} / \eta_{\max}, \; 1/c$
        low, end = 1 / self.ratio, 1 / self.annihilation
        # $\eta_t / \eta_{\max}$
        share = low * (end + (1 - end) * left) + (1 - low) * height
        if self.momentum is not None:
            high, least = self.momentum
            for group in self.optimizer.param_groups:
                # $\mu_t = \mu_{\max} - (\mu_{\max} - \mu_{\min})\, h_t$
                value = high - (high - least) * height
                if "betas" in group:
                    group["betas"] = (value, *group["betas"][1:])
                else:
                    group["momentum"] = value
        return [peak * share for peak in self.peaks or self.base_lrs]
