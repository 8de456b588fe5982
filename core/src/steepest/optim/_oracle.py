"""The base of the optimizers that ask for more than a gradient in ``.grad``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steepest.kernels import split_seed
from steepest.optim._checks import check_shapes
from steepest.oracles import Objective


class Answer(NamedTuple):
    """What a query brought; :meth:`OracleDriven.update` makes a step of it."""

    objective: Objective
    """Whom it is from, and so the parameters that it is about."""
    value: Tensor
    """The loss, of shape ()."""
    gradient: list[Tensor] | None
    """The gradient, or what shall stand for it; None for a method that has none in memory."""
    rest: Any = None
    """Whatever else the method has asked for."""


Loss = Callable[[], Any] | list[Callable[[], Any]] | Objective
Deliver = Callable[["OracleDriven", Any], Answer]


class OracleDriven(torch.optim.Optimizer, ABC):
    """Abstract optimizer whose step puts questions to the loss.

    A step has two halves, and a method is the two of them. :meth:`query` asks an
    :class:`~steepest.oracles.Objective` and moves nothing; then the gradient that it found lies
    in ``.grad``, where it may be clipped or logged as any other; then :meth:`update` moves the
    parameters. The loss is the same function in all queries of a step: random numbers, such as
    dropout's, are repeated.

    The gradients that were in ``.grad`` before are there again after a step. A parameter that
    the loss does not depend on has a gradient of zeros, not none: its weights still decay. A
    checkpoint has the seed and the number of steps, so a resumed run draws the same directions.

    Attributes:
        oracle: Name of the oracle that is queried.
        seed: Seed of the random directions.
        steps: Steps made.

    Example:
        Newton's method along the gradient: one gradient, one Hessian product.

        >>> class AlongGradient(OracleDriven):
        ...     def query(self, objective):
        ...         value, (g,) = objective.gradient()
        ...         (product,) = objective.hvp([g])[-1]
        ...         return Answer(objective, value, [g], (g * g).sum() / (g * product).sum())
        ...
        ...     @torch.no_grad()
        ...     def update(self, answer):
        ...         (p,) = answer.objective.params
        ...         p.sub_(answer.rest * p.grad)
        >>> p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> opt = AlongGradient([p], {})
        >>> _ = opt.step(lambda: 5 * (p**2).sum())
        >>> p.data.abs().max() < 1e-6
        tensor(True)
    """

    oracle: str
    seed: int = 0
    steps: int = 0
    _at_once: bool = False
    """Whether :meth:`update` follows the query at once, and nobody sees parameters in between."""
    _deliver: Deliver | None = None
    """Asks in place of :meth:`step`, where a training loop has a closure of its own."""

    @abstractmethod
    def query(self, objective: Objective) -> Answer:
        """Ask; leave parameters and state as they are."""

    @abstractmethod
    def update(self, answer: Answer) -> None:
        """Make the step; the gradient is in ``.grad``. One that raises has changed nothing."""

    def step(self, closure: Loss | None = None) -> Any:
        """Make one update.

        Args:
            closure: The objective: a callable that returns the loss and nothing else (no
                ``zero_grad``, no ``backward``), a list of such for a sum that is asked term by
                term, or an :class:`~steepest.oracles.Objective`.

        Returns:
            The loss, as the method read it, of shape ().

        Raises:
            RuntimeError: If there is no objective, or it calls ``backward``.
            TypeError: If the objective does not return a tensor.
            ValueError: If it does not return one real number, or no parameter requires a
                gradient. After each of these, parameters and state are as they were; with
                :class:`MeZO`, which walks back, to rounding.
        """
        if self._deliver is not None:
            answer = self._deliver(self, closure)
            self.update(answer)
        else:
            self._at_once = True
            try:
                answer = self._ask(closure)
            finally:
                self._at_once = False
            with lent(self._everything, gradients(self._everything, answer)):
                self.update(answer)
        self.steps += 1
        return answer.value

    def objective(
        self,
        loss: Callable[[], Any] | list[Callable[[], Any]],
        *,
        replay: bool = True,
        average: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> Objective:
        """An objective over this optimizer's parameters, by name where they have names.

        Args:
            loss: Callable that returns the loss, or a list of them for their sum.
            replay: Repeat the first query's random numbers in later ones.
            average: As for :class:`~steepest.oracles.Objective`.
        """
        over: Any = self._everything
        if all("param_names" in group for group in self.param_groups):
            names = [name for group in self.param_groups for name in group["param_names"]]
            over = list(zip(names, over, strict=True))
        return Objective(loss, over, replay=replay, average=average)

    def draw(self) -> int:
        """The seed of this step's directions."""
        return split_seed(self.seed, self.steps)

    @property
    def _everything(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _ask(self, closure: Loss | None) -> Answer:
        if closure is None:
            raise RuntimeError(f"{type(self).__name__} got no loss. {self.remedy()}")
        given = closure if isinstance(closure, Objective) else self.objective(closure)
        try:
            return self.query(given)
        except RuntimeError as error:
            if "calls backward" in str(error):
                raise RuntimeError(f"{error}. {self.remedy()}") from error
            raise

    def remedy(self) -> str:
        """What to do about a missing objective."""
        return (
            f"{type(self).__name__} queries the {self.oracle} oracle: pass the loss, "
            "step(lambda: loss_fn(model(x), y)); under Lightning's Trainer, add the callback "
            "steepest.lightning.Oracles(); its Tuner.lr_find runs without callbacks: take "
            "steepest.lightning.LRRangeTest"
        )

    def state_dict(self) -> dict[str, Any]:
        """As that of ``torch.optim``, with seed and number of steps under ``oracle``."""
        own = {"name": type(self).__name__, "seed": self.seed, "steps": self.steps}
        return {**super().state_dict(), "oracle": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the same optimizer; one that does not fit changes nothing.

        Raises:
            ValueError: If it is another optimizer's.
        """
        if "oracle" not in state_dict:
            raise ValueError(
                f"the state_dict was saved without {type(self).__name__}: it has no seed and steps"
            )
        own = state_dict["oracle"]
        if own["name"] != type(self).__name__:
            raise ValueError(f"the state_dict is of {own['name']}, not of {type(self).__name__}")
        if not hasattr(self, "optimizer"):  # of a wrapper, state is the optimizer's inside
            ids = [i for group in state_dict["param_groups"] for i in group["params"]]
            saved = {n: state_dict["state"].get(i, {}) for n, i in enumerate(ids)}
            check_shapes(type(self).__name__, self._everything, saved)
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "oracle"})
        self.seed, self.steps = int(own["seed"]), int(own["steps"])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "seed": self.seed, "steps": self.steps}


def gradients(params: Sequence[Tensor], answer: Answer) -> list[Tensor | None]:
    """The answer's gradients of these parameters; None where it says nothing."""
    known = dict(zip(answer.objective.params, answer.gradient or [], strict=False))
    return [known.get(p) for p in params]


@contextmanager
def lent(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Iterator[None]:
    """Have other gradients in ``.grad`` for a while."""
    held = [p.grad for p in params]
    try:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        yield
    finally:
        for p, g in zip(params, held, strict=True):
            p.grad = g
