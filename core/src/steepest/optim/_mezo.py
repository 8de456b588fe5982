r"""MeZO: descent with the memory of inference."""

from __future__ import annotations

from typing import Any, final

import torch

from steepest._registry import method
from steepest.estimators import SPSA
from steepest.estimators._base import Mask, Projection
from steepest.optim._base import Group, Params
from steepest.optim._checks import check_hyperparameters
from steepest.optim._oracle import Answer, OracleDriven
from steepest.oracles import Objective


@final
@method(
    paper="malladi2023finetuning",
    title="Fine-Tuning Language Models with Just Forward Passes",
    oracle="value",
    scope="model",
    forward=2,
    backward=0,
    state_bytes=0,
    claims={"descends_quadratic", "uniform_decay"},
)
class MeZO(OracleDriven):
    r"""MeZO: SPSA whose directions are made anew from a seed each time that they are needed.

    .. math::

        w_i = \frac{f(\theta + \epsilon z_i) - f(\theta - \epsilon z_i)}{2 \epsilon n}, \qquad
        \theta \leftarrow (1 - \eta\lambda)\, \theta - \eta \sum_{i=1}^n w_i z_i.

    Neither gradients, nor activations, nor the directions :math:`z_i` are ever in memory: noise
    is a function of (seed, element), made in a processor's registers and added to the parameters
    in place. What a step learns is :math:`n` numbers, and with the seed they are the step. The
    loss need not be differentiable.

    Progress does not suffer from the dimension as one would fear: where the Hessian has a low
    effective rank :math:`r`, the rate depends on :math:`r`.

    Args:
        params: Parameters, named parameters, or groups. With names
            (``model.named_parameters()``) a parameter's noise belongs to its name, whatever the
            order; without, to its position.
        lr: Step :math:`\eta`. As the estimate is as noisy as the dimension is high, much smaller
            than for gradients; the paper takes 1e-7 to 1e-6 for language models.
        eps: Radius :math:`\epsilon` of the probes, in the parameters' units.
        samples: Directions :math:`n` a step; two forward passes each.
        weight_decay: Decoupled decay :math:`\lambda`.
        kind: ``gaussian``, ``rademacher`` or ``sphere`` directions.
        mask: Which elements to probe and train, as a function of the parameters; all by default.
            Decay, too, acts on those only.
        clip: Bound :math:`C` on each directional derivative :math:`n w_i`, which is cut to
            :math:`[-C, C]` before it is averaged; none by default. A step is then no longer than
            :math:`\eta C` times its direction, whatever an outlier in the batch does.
            :cite:t:`shang2025finetuning` take 100 for language models.
        seed: Seed of the directions.
        maximize: Ascend.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        On a linear function of one variable a sign probes the slope exactly.

        >>> p = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        >>> _ = MeZO([p], lr=0.1, kind="rademacher").step(lambda: (3 * p).sum())
        >>> p.data.round(decimals=6)
        tensor([0.7000], dtype=torch.float64)

    Reference:
        :cite:t:`malladi2023finetuning`; the estimator is :cite:t:`spall1992multivariate`'s.

    Deviations:
        The paper's code puts the model in evaluation mode; here it stays as it is, and the two
        values of a pair see the same dropout masks. Parameters return from a probe by
        subtraction, to within rounding, as in the paper's code; those of half precision return
        from a copy, since their rounding would add up.

    When not to use it:
        Where a gradient fits in memory. Or in half precision with a small ``lr``: an update far
        below a weight's last digit is lost. Keep float32 weights under autocast.
    """

    oracle = "value"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-6,
        eps: float = 1e-3,
        samples: int = 1,
        weight_decay: float = 0.0,
        kind: str = "gaussian",
        *,
        mask: Mask | None = None,
        clip: float | None = None,
        seed: int = 0,
        maximize: bool = False,
    ) -> None:
        check_hyperparameters("MeZO", {"seed": seed, "clip": clip})
        self.estimator = SPSA(eps, samples, kind, mask=mask, in_place=True)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize})
        self.seed = seed
        self.clip = clip

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim``; a bad one changes nothing."""
        check_hyperparameters("MeZO", {**self.defaults, **param_group})
        super().add_param_group(param_group)

    def query(self, objective: Objective) -> Answer:
        """Read pairs of values; remember no direction.

        Where the update follows at once, parameters stay at the last probe, and come back with it.
        """
        self.estimator.stay = self._at_once
        # $w_i = \frac{f(\theta + \epsilon z_i) - f(\theta - \epsilon z_i)}{2 \epsilon n}$
        projection = self.estimator.project(objective, self.draw())
        if self.clip is not None:
            bound = self.clip / self.estimator.samples
            for i, w in projection.weights.items():
                projection.weights[i] = max(-bound, min(bound, w))
        return Answer(objective, projection.value, None, projection)

    @torch.no_grad()
    def update(self, answer: Answer) -> None:
        """Make the directions again, and step along them."""
        projection: Projection = answer.rest
        try:
            for group in self.param_groups:
                check_hyperparameters("MeZO", group)
        except BaseException:
            for group in self.param_groups:
                self._move(group, answer, {}, 1.0)
            raise
        for group in self.param_groups:
            lr = float(group["lr"]) * (-1.0 if group["maximize"] else 1.0)
            # $\theta \leftarrow (1 - \eta\lambda)\,\theta - \eta \sum_i w_i z_i$
            step = {i: -lr * w for i, w in projection.weights.items()}
            keep = 1 - float(group["lr"]) * float(group["weight_decay"])
            self._move(group, answer, step, keep)

    def _move(self, group: Group, answer: Answer, step: dict[int, float], keep: float) -> None:
        """Shrink a group's parameters, bring them back and move them, the latter two in one."""
        places = self.estimator.places(answer.objective)
        known = dict(zip(answer.objective.params, places, strict=True))
        back = answer.rest.back
        whole = {i: step.get(i, 0.0) + keep * back.get(i, 0.0) for i in step | back}
        for weights, away in ((whole, True), (step, False)):
            params = [
                p for p in group["params"] if p in known and (self.estimator.returns(p) == away)
            ]
            if keep != 1:
                for p in params:
                    p.mul_(self.estimator.where(known[p], keep))
            at = [known[p] for p in params]
            self.estimator.accumulate_([p.detach() for p in params], self.draw(), weights, at)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "estimator": self.estimator, "clip": self.clip}
