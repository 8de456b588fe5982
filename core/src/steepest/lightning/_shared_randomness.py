r"""Fine-tuning on several machines that send each other a byte a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, distributed

from steepest._registry import method
from steepest.estimators import SPSA
from steepest.estimators._base import NonFiniteLoss
from steepest.kernels import add_noise_, split_seed
from steepest.optim import Answer, OracleDriven
from steepest.optim._base import Params
from steepest.optim._checks import check_hyperparameters
from steepest.oracles import Objective

ABSENT = -128
"""The code of a machine that has nothing to say."""

Exchange = Callable[[Tensor], Tensor]
"""This machine's codes, shape (n,) -> all machines', shape (machines, n), in rank order."""


class Entry(NamedTuple):
    """One step in the log of a run; all machines have the same."""

    seed: int
    """The step's seed, before it is split over machines and their directions."""
    scale: float
    """What the code 127 stands for."""
    codes: Tensor
    """What was exchanged, of shape (machines, directions)."""


def encode(slopes: Sequence[float], scale: float, seed: int) -> Tensor:
    r"""Slopes as bytes, by stochastic rounding of :math:`127\, w / \Delta` to [-127, 127].

    Within the range the mean over seeds is the slope. One that is not finite becomes ``ABSENT``.

    Example:
        >>> encode([0.5, -9.0, float("nan")], scale=1.0, seed=0).tolist()[1:]
        [-127, -128]
    """
    codes = []
    for i, slope in enumerate(slopes):
        # $u_m \sim U[0, 1)$
        u = split_seed(seed, i) / 2**64
        # $127\, w_m / \Delta, \text{ in } [-127, 127]$
        unit = max(-127.0, min(127.0, 127 * slope / scale))
        # $q_m = \lfloor 127\, w_m / \Delta + u_m \rfloor$
        codes.append(math.floor(unit + u) if math.isfinite(slope) else ABSENT)
    return torch.tensor(codes, dtype=torch.int8)


def decode(codes: Tensor, scale: float) -> Tensor:
    """The slopes that codes stand for, in float64; NaN for ``ABSENT``. Floats are themselves."""
    if codes.is_floating_point():
        return codes.double()
    slopes = codes.double() * (scale / 127)
    return slopes.masked_fill(codes == ABSENT, math.nan)


@final
@method(
    paper="zelikman2023just",
    title=(
        "Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model "
        "Finetuning Using Shared Randomness"
    ),
    oracle="value",
    scope="model",
    forward=2,
    backward=0,
)
class SharedRandomness(OracleDriven):
    r"""MeZO on several machines: each probes a direction of its own, and sends one byte.

    .. math::

        w_m = \frac{f_m(\theta + \epsilon z_m) - f_m(\theta - \epsilon z_m)}{2\epsilon}, \qquad
        q_m = \mathrm{round}\Bigl(\frac{127\, w_m}{\Delta}\Bigr), \qquad
        \theta \leftarrow (1 - \eta\lambda)\,\theta
            - \frac{\eta}{M} \sum_{m=1}^M \frac{\Delta\, q_m}{127}\, z_m.

    Machine :math:`m` draws :math:`z_m` from a seed that is a function of (seed, step, rank), so
    every machine can make every direction, and a direction need never be sent. Rounding is up or
    down at random, so that it adds noise and no bias. :math:`\Delta` is a running maximum of past
    exchanged values, with room to spare: all know it, and none has to send it. All add up the
    same terms in the same order, so weights stay equal bit for bit, on machines of one kind.

    The codes of all steps are the run: :meth:`replay` brings a machine that joins late from the
    start to the present. One that is absent, or whose loss is not finite, is absent from the sum.

    Args:
        params: Parameters, named parameters, or groups; equal on all machines at the start.
        lr: Step :math:`\eta`, as of :class:`~steepest.optim.MeZO`. More machines bear a longer one.
        eps: Radius :math:`\epsilon` of a probe.
        samples: Directions a machine, a byte and two values each.
        weight_decay: Decay :math:`\lambda`, decoupled.
        scale: First guess of :math:`\Delta`, in loss by length. One that is too small doubles at
            each step, one that is too large fades by a twentieth.
        exact: Send the slope in four bytes, and do not round.
        exchange: Sends this machine's codes and returns all machines', in rank order; rows of
            ``ABSENT`` for absent ones. By default ``torch.distributed.all_gather``, and in a
            single process nothing.
        rank: This machine's number; by default ``torch.distributed``'s.
        seed: Seed of the directions, the same on all machines.

    Attributes:
        scale: :math:`\Delta`.
        log: An :class:`Entry` for each step made.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        Two machines in one process: ask both, then hand each the codes of both.

        >>> params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
        >>> codes = [None, None]
        >>> both = lambda _: torch.stack(codes)
        >>> opts = [
        ...     SharedRandomness([p], lr=0.1, exchange=both, rank=m) for m, p in enumerate(params)
        ... ]
        >>> answers = [o.query(o.objective(lambda p=p: (p**2).sum())) for o, p in zip(opts, params)]
        >>> codes = [answer.rest for answer in answers]
        >>> for o, answer in zip(opts, answers):
        ...     o.update(answer)
        >>> torch.equal(*params), codes[0].nbytes
        (True, 1)

    Reference:
        :cite:t:`zelikman2023just`.

    Deviations:
        Parameters return from a probe from a copy, not by subtraction: what rounding leaves
        behind would differ from machine to machine, as their directions do. That takes the
        memory of the weights once more.

    When not to use it:
        Where machines are joined by a fast network: a gradient says more than a slope. Where
        machines differ in kind, weights drift by rounding, and want to be sent now and then.
    """

    oracle = "value"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-6,
        eps: float = 1e-3,
        samples: int = 1,
        weight_decay: float = 0.0,
        *,
        scale: float = 1.0,
        exact: bool = False,
        exchange: Exchange | None = None,
        rank: int | None = None,
        seed: int = 0,
    ) -> None:
        check_hyperparameters("SharedRandomness", {"seed": seed})
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"SharedRandomness: scale={scale!r} is not valid: give a number > 0")
        self.estimator = SPSA(eps, samples)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.scale = scale
        self.exact = exact
        self.exchange = exchange or all_gather
        self.rank = rank
        self.seed = seed
        self.log: list[Entry] = []

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim``; a bad one changes nothing."""
        check_hyperparameters("SharedRandomness", {**self.defaults, **param_group})
        super().add_param_group(param_group)

    def objective(self, loss: Any, *, replay: bool = True, average: Any = None) -> Objective:
        """The objective of this machine alone: its answers are not averaged over processes."""
        return super().objective(loss, replay=replay)

    def query(self, objective: Objective) -> Answer:
        """Read this machine's slopes; nothing is sent yet."""
        # $\text{seed of } z_m$
        own = split_seed(self.draw(), self._rank())
        n = self.estimator.samples
        try:
            # $w_m = \frac{f(\theta + \epsilon z_m) - f(\theta - \epsilon z_m)}{2 \epsilon}$
            projection = self.estimator.project(objective, own)
            value, slopes = projection.value, [n * projection.weights[i] for i in range(n)]
        except NonFiniteLoss:  # the others wait for what this machine sends
            value = torch.full((), math.nan, device=objective.params[0].device)
            slopes = [math.nan] * n
        if self.exact:
            codes = torch.tensor(slopes)
        else:  # directions have the seeds 0 to n - 1 of this machine's, rounding the next one
            codes = encode(slopes, self.scale, split_seed(own, n))
        return Answer(objective, value, None, codes.to(objective.params[0].device))

    def update(self, answer: Answer) -> None:
        """Exchange codes, and step along the directions of all machines."""
        for group in self.param_groups:
            check_hyperparameters("SharedRandomness", group)
        codes = self.exchange(answer.rest).cpu()
        self._apply(Entry(self.draw(), self.scale, codes), answer.objective)

    def replay(self, entry: Entry) -> None:
        """Make a step of the log: no pass, nothing sent."""
        self._apply(entry, self.objective(lambda: None))
        self.steps += 1

    @torch.no_grad()
    def _apply(self, entry: Entry, objective: Objective) -> None:
        slopes = decode(entry.codes, entry.scale)
        present = slopes.isfinite()
        if not present.any():
            raise RuntimeError(
                "SharedRandomness: no machine has a finite loss near the parameters; nothing has "
                "moved. Lower lr if it grew, eps if it is fine at the parameters themselves"
            )
        pairs = [(m, i) for m, i in present.nonzero().tolist()]
        seeds = [split_seed(split_seed(entry.seed, m), i) for m, i in pairs]
        known = dict(zip(objective.params, self.estimator.places(objective), strict=True))
        for group in self.param_groups:
            lr = float(group["lr"])
            params = [p for p in group["params"] if p in known]
            keep = 1 - lr * float(group["weight_decay"])
            if keep != 1:
                torch._foreach_mul_(params, keep)
            # $-\frac{\eta}{M} \frac{\Delta\, q_m}{127}$
            scales = [-lr / len(pairs) * slopes[m, i].item() for m, i in pairs]
            # $\theta \leftarrow \theta - \frac{\eta}{M} \sum_m \frac{\Delta\, q_m}{127} z_m$
            add_noise_(params, seeds, scales, start=[known[p] for p in params])
        # $\Delta \leftarrow \max(0.95\, \Delta,\; 2 \max_m |w_m|)$
        self.scale = max(0.95 * entry.scale, 2 * slopes[present].abs().max().item())
        self.log.append(entry)

    def _rank(self) -> int:
        if self.rank is not None:
            return self.rank
        return distributed.get_rank() if together() else 0

    def state_dict(self) -> dict[str, Any]:
        """As that of the other methods, with the scale; the log is not part of it."""
        state = super().state_dict()
        return {**state, "oracle": {**state["oracle"], "scale": self.scale}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint; one that does not fit changes nothing."""
        super().load_state_dict(state_dict)
        self.scale = float(state_dict["oracle"]["scale"])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{k: getattr(self, k) for k in _OWN}}


_OWN = ("estimator", "scale", "exact", "exchange", "rank", "log")


def all_gather(codes: Tensor) -> Tensor:
    """Codes of all processes, in rank order; alone, one's own."""
    if not together():
        return codes[None]
    rows = [torch.empty_like(codes) for _ in range(distributed.get_world_size())]
    distributed.all_gather(rows, codes)
    return torch.stack(rows)


def together() -> bool:
    """Whether there are other processes to talk to."""
    return distributed.is_available() and distributed.is_initialized()
