r"""AdaHessian: Adam whose second moment is of curvature."""

from __future__ import annotations

from typing import Any, ClassVar, final

from torch import Tensor

from steepest._registry import method
from steepest.estimators import hutchinson
from steepest.kernels import Rule, rule, xp
from steepest.optim._adam import moment_numbers
from steepest.optim._base import Elementwise, Group, Params, Slot
from steepest.optim._checks import check_hyperparameters
from steepest.optim._oracle import Answer, OracleDriven
from steepest.oracles import Objective


@rule
def adahessian(p, g, d, m, v, *, lr, beta1, beta2, eps, wd, c1, c2):
    # $\theta \leftarrow (1 - \eta\lambda)\,\theta$
    p = p * (1 - lr * wd)
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $v \leftarrow \beta_2 v + (1 - \beta_2)\, D^2$
    v = v + (d * d - v) * (1 - beta2)
    # $\theta \leftarrow \theta - \eta\, \hat m / (\sqrt{\hat v} + \epsilon)$
    p = p - lr / c1 * m / (xp.sqrt(v) / c2 + eps)
    return p, m, v


@rule
def adahessian_power(p, g, d, m, v, *, lr, beta1, beta2, eps, wd, power, c1, c2):
    # $\theta \leftarrow (1 - \eta\lambda)\,\theta$
    p = p * (1 - lr * wd)
    # $m \leftarrow \beta_1 m + (1 - \beta_1)\, g$
    m = m + (g - m) * (1 - beta1)
    # $v \leftarrow \beta_2 v + (1 - \beta_2)\, D^2$
    v = v + (d * d - v) * (1 - beta2)
    # $s \leftarrow \max(\sqrt{\hat v}, 10^{-30})^{k}$
    s = xp.exp(power * xp.log(xp.maximum(xp.sqrt(v) / c2, 1e-30)))
    # $\theta \leftarrow \theta - \eta\, \hat m / (s + \epsilon)$
    p = p - lr / c1 * m / (s + eps)
    return p, m, v


@final
@method(
    paper="yao2021adahessian",
    title="ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning",
    oracle="hvp",
    scope="model",
    forward=1,
    backward=2,
    state_bytes=8,
    claims={"uniform_decay"},
)
class AdaHessian(OracleDriven, Elementwise):
    r"""AdaHessian: steps in units of curvature, from one Hessian product a step.

    .. math::

        D_t &= \operatorname{average}\,|z \odot H z|, \quad z_j = \pm 1, \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, D_t^2, \\
        \theta_t &= (1 - \eta\lambda)\, \theta_{t-1}
            - \eta\, \frac{\hat m_t}{\sqrt{\hat v_t}^{\,k} + \epsilon}.

    :math:`z \odot Hz` is Hutchinson's estimate of the Hessian's diagonal: exact where the Hessian
    is diagonal, noisy by the size of the rest of its row elsewhere. The root of a mean of squares
    smooths it over steps. Divided by curvature, a gradient is a distance to the minimum along
    its axis: on a separable quadratic the ill-conditioning is gone.

    Args:
        params: Parameters, named parameters, or groups, of any shape.
        lr: Step :math:`\eta`, a fraction of that distance.
        betas: Decay rates of the two moments.
        eps: Added to the scale, in the unit of curvature (of its power).
        weight_decay: Decoupled decay :math:`\lambda`, times the learning rate.
        power: Exponent :math:`k` in (0, 1] on the scale: below 1, between this and momentum SGD.
        samples: Hessian products to average in a step.
        average: Average :math:`|D|` over the window of convolution kernels, of four or five
            dimensions, as in the paper.
        seed: Seed of the signs.
        maximize: Ascend.
        backend: ``auto``, ``torch``, ``cpu`` or ``triton``.
        nonfinite: What to do about NaN in a gradient or curvature: ``propagate``, ``raise`` or
            ``skip``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        RuntimeError: If the forced backend is missing.

    Example:
        Curvatures 1 and 100; the first step is the same fraction of the distance in both.

        >>> import torch
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> h = torch.tensor([1.0, 100.0])
        >>> opt = AdaHessian([p], lr=0.5, eps=0.0)
        >>> _ = opt.step(lambda: 0.5 * (h * p**2).sum())
        >>> p.data
        tensor([0.5000, 0.5000])

    Reference:
        :cite:t:`yao2021adahessian`.

    Deviations:
        The paper's code draws signs from torch's generator; here they are a function of seed,
        step and place, so that processes and resumed runs agree.

    When not to use it:
        Where the loss has no second derivative worth the name (a network of ReLUs and a hinge),
        or where two more passes a step cost more than the better direction is worth.
    """

    oracle = "hvp"
    slots: ClassVar = {"m": Slot("exp_avg"), "v": Slot("exp_hessian_diag_sq")}

    def __init__(
        self,
        params: Params,
        lr: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        *,
        power: float = 1.0,
        samples: int = 1,
        average: bool = True,
        seed: int = 0,
        maximize: bool = False,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "power": power,
            "average": average,
            "maximize": maximize,
        }
        check_hyperparameters("AdaHessian", {"samples": samples, "seed": seed})
        super().__init__(params, defaults, backend=backend, nonfinite=nonfinite)
        self.seed = seed
        self.samples = samples
        self._diagonal: dict[Tensor, Tensor] = {}

    def query(self, objective: Objective) -> Answer:
        """Gradient, and estimate of the Hessian's diagonal."""
        # $g, \quad h = z \odot \nabla^2 f(\theta)\, z, \quad z_j = \pm 1$
        return Answer(objective, *hutchinson(objective, self.draw(), self.samples))

    def update(self, answer: Answer) -> None:
        """Make the elementwise step."""
        finite = self.nonfinite == "propagate" or all(d.isfinite().all() for d in answer.rest)
        if not finite and self.nonfinite == "raise":
            raise RuntimeError("AdaHessian: the curvature has NaN or infinity; nothing has moved")
        if not finite:
            return
        self._diagonal = dict(zip(answer.objective.params, answer.rest, strict=True))
        try:
            Elementwise.step(self)
        finally:
            self._diagonal = {}

    def rule(self, group: Group) -> Rule:
        """AdaHessian's rule, with a power where one is asked for."""
        return adahessian if float(group["power"]) == 1 else adahessian_power

    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Adam's numbers with the power."""
        return {
            **moment_numbers(group, step),
            "eps": float(group["eps"]),
            "power": float(group["power"]),
        }

    def inputs(
        self,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
    ) -> dict[str, list[Tensor]]:
        """The curvature's size, averaged over a convolution's window."""
        sizes = [self._diagonal[p].abs() for p in params]
        if group["average"]:
            sizes = [_over_window(d) if d.ndim in (4, 5) else d for d in sizes]
        return {"d": sizes}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "samples": self.samples}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._diagonal = {}


def _over_window(d: Tensor) -> Tensor:
    """Mean over the dimensions after the first two, in their places."""
    return d.mean(dim=tuple(range(2, d.ndim)), keepdim=True).expand_as(d).contiguous()
