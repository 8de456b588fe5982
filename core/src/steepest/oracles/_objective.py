r"""A loss that answers queries: values, gradients, slopes, Hessian products, rankings."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.autograd import forward_ad

from steepest.oracles._passes import (
    Over,
    Replay,
    check_directions,
    fresh,
    named,
    recording,
    tangents,
)


class Gradient(NamedTuple):
    """Answer of :meth:`Objective.gradient`."""

    value: Tensor
    """The loss, of shape ()."""
    gradient: list[Tensor]
    """One tensor for each parameter, of its shape."""


class Derivative(NamedTuple):
    """Answer of :meth:`Objective.derivative`."""

    value: Tensor
    """The loss, of shape ()."""
    slope: Tensor
    """The directional derivative, of shape ()."""


class HessianProduct(NamedTuple):
    """Answer of :meth:`Objective.hvp`."""

    value: Tensor
    """The loss, of shape ()."""
    gradient: list[Tensor]
    """One tensor for each parameter, of its shape."""
    product: list[Tensor]
    """The Hessian times the direction; one tensor for each parameter, of its shape."""


_Term = tuple[Callable[[], Tensor], AbstractContextManager[None]]
"""One loss of a sum, and the context that it is evaluated in."""


@final
class Objective:
    r"""A loss :math:`f(\theta)` as an oracle: ask it for what a method needs, and count.

    ======================= ================================================ ======= ========
    query                   answer                                           forward backward
    ======================= ================================================ ======= ========
    ``value()``             :math:`f(\theta)`                                1       0
    ``gradient()``          :math:`\nabla f(\theta)`                         1       1
    ``derivative(v)``       :math:`\langle \nabla f(\theta), v \rangle`      1       0
    ``hvp(v)``              :math:`\nabla^2 f(\theta)\, v`                   1       2
    ``rank([d1, ..., dk])`` order of :math:`f(\theta + d_i)`                 k       0
    ======================= ================================================ ======= ========

    Every answer is exact, belongs to the parameters as they are at the time of the query, and
    comes as tensors of the caller's own. A query leaves parameters, ``.grad``, ``requires_grad``
    and the modes of torch as it found them, also when it raises, and works under
    ``torch.no_grad()`` and ``torch.inference_mode()``.

    What the loss does, it does in each query: dropout draws from torch's generators, batch
    normalization in training mode updates its statistics. Two queries of a noisy loss are two
    draws, unless ``replay=True``: then every query repeats the random numbers of the first, and
    the loss is one function of the parameters. Differences of values mean nothing without it.

    Args:
        loss: Callable without arguments that computes the loss from the parameters and returns
            it, a tensor with one element. It calls neither ``zero_grad`` nor ``backward``. A loss
            that contains derivatives (the residual of a differential equation) computes these
            under ``torch.enable_grad()``. A list of callables stands for their sum; they are
            asked one after the other, so memory is that of one, and passes count for each.
        over: What to differentiate in: a module, tensors that the loss reads, or pairs of a name
            and a tensor. Those that require no gradient are left out, tied ones count once.
        replay: Repeat the first query's random numbers, of torch's generators for the CPU and
            for the parameters' devices, in all later ones.
        average: Callable that puts in place of tensors their mean over processes, each with its
            own batch; answers are then those about the mean of the processes' losses.

    Raises:
        TypeError: If the loss cannot be called, or something in ``over`` is not a tensor.
        ValueError: If no parameter requires a gradient.

    Example:
        A quadratic: its Hessian is diag(1, 10).

        >>> import torch
        >>> p = torch.tensor([1.0, 1.0], requires_grad=True)
        >>> scale = torch.tensor([1.0, 10.0])
        >>> f = Objective(lambda: 0.5 * (scale * p**2).sum(), [p])
        >>> f.value()
        tensor(5.5000)
        >>> f.gradient().gradient
        [tensor([ 1., 10.])]
        >>> f.derivative([torch.tensor([0.0, 2.0])]).slope
        tensor(20.)
        >>> f.hvp([torch.tensor([1.0, 2.0])]).product
        [tensor([ 1., 20.])]
        >>> f.rank([[-p.detach()], [torch.zeros(2)], [p.detach()]])
        [0, 1, 2]
        >>> f.counts["forward"], f.counts["backward"]
        (7, 3)
    """

    def __init__(
        self,
        loss: Callable[[], Tensor] | list[Callable[[], Tensor]],
        over: Over,
        *,
        replay: bool = False,
        average: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> None:
        losses: list[Callable[[], Tensor]] = loss if isinstance(loss, list) else [loss]
        for each in losses:
            if not callable(each):
                raise TypeError(
                    f"the loss is of type {type(each).__name__}: pass a callable that returns it, "
                    "lambda: loss_fn(model(x), y)"
                )
        self.names, self.params = named(over)
        """Names of the parameters, or None; and the parameters, in the order of directions and
        answers."""
        self.loss = loss
        self._terms: list[_Term] = [
            (each, Replay(self.params) if replay else nullcontext()) for each in losses
        ]
        self._average = average
        self.counts: Counter[str] = Counter()
        """Answered queries by name, and the passes (``forward``, ``backward``) that they took;
        ``counts.clear()`` starts anew."""

    @property
    def terms(self) -> list[Objective]:
        """The losses of a sum, each as an objective of its own; what it counts is counted here.

        Example:
            >>> p = torch.tensor(3.0, requires_grad=True)
            >>> f = Objective([lambda: p**2, lambda: 4 * p], [p])
            >>> [term.gradient().gradient[0] for term in f.terms], f.counts["backward"]
            ([tensor(6.), tensor(4.)], 2)
        """
        parts = []
        for term in self._terms:
            part = copy.copy(self)
            part.loss, part._terms = term[0], [term]
            parts.append(part)
        return parts

    def value(self) -> Tensor:
        r"""The loss :math:`f(\theta)`, without a graph. Cost: one forward pass.

        Returns:
            A tensor of shape ().

        Raises:
            TypeError: If the loss does not return a tensor.
            ValueError: If it does not return a single real number.
            RuntimeError: If it calls ``backward``.

        Example:
            >>> p = torch.tensor(3.0, requires_grad=True)
            >>> Objective(lambda: p**2, [p]).value()
            tensor(9.)
        """
        with recording(False):
            value = self._value()
            self._mean([value])
        self._count("value", forward=1)
        return value

    def gradient(self, create_graph: bool = False) -> Gradient:
        r"""The gradient :math:`\nabla f(\theta)`. Cost: one forward and one backward pass.

        It is returned, not written to ``.grad``; zeros stand for a parameter that the loss does
        not depend on.

        Args:
            create_graph: Keep the graph of value and gradient, to differentiate further.

        Returns:
            :class:`Gradient`: the value and a list of tensors shaped as the parameters.

        Raises:
            TypeError: If the loss does not return a tensor.
            ValueError: If it does not return a single real number.
            RuntimeError: If it calls ``backward``, or depends on none of the parameters; or if a
                graph is asked for that would have to reach into other processes.

        Example:
            The gradient of the squared norm of a gradient.

            >>> p = torch.tensor([1.0, 2.0], requires_grad=True)
            >>> g = Objective(lambda: (p**3).sum(), [p]).gradient(create_graph=True).gradient[0]
            >>> torch.autograd.grad(g.square().sum(), p)[0]
            tensor([ 36., 288.])
        """
        if create_graph and self._average is not None:
            raise RuntimeError("a mean over processes keeps no graph: use create_graph=False")
        with recording(True, dear=create_graph):
            values, gradients = [], []
            for term in self._terms:
                loss = self._evaluate_graph(term)
                grads = self._differentiate(loss, create_graph)
                values.append(loss if create_graph else loss.detach().clone())
                gradients.append(fresh(grads, self.params))
                del loss, grads  # and their graph, before the next one
                _add(gradients, in_place=not create_graph)
            answer = Gradient(_total(values), gradients[0])
            self._mean([answer.value, *answer.gradient])
        self._count("gradient", forward=1, backward=1)
        return answer

    def derivative(self, directions: Iterable[Tensor]) -> Derivative:
        r"""The slope along a direction, in forward mode. Cost: one forward pass, no graph.

        .. math::

            \langle \nabla f(\theta), v \rangle
            = \lim_{h \to 0} \frac{f(\theta + h v) - f(\theta)}{h}.

        Each operation of the pass carries its derivative along: about two to four times the time
        of :meth:`value`, and memory for the direction but for no graph, however deep the model.

        Args:
            directions: :math:`v`, one tensor for each parameter, like it in shape and dtype.

        Returns:
            :class:`Derivative`: the value and the slope, both of shape ().

        Raises:
            TypeError: If the loss does not return a tensor.
            ValueError: If it does not return a single real number, or a direction does not fit.
            RuntimeError: If it calls ``backward``, depends on none of the parameters, or uses
                forward mode itself.
            NotImplementedError: If torch has no forward derivative of an operation.

        Example:
            >>> p = torch.tensor([1.0, 2.0], requires_grad=True)
            >>> Objective(lambda: (p**2).sum(), [p]).derivative([torch.ones(2)]).slope
            tensor(6.)
        """
        vectors = check_directions(self.params, directions)
        with recording(False, dear=True), tangents(self.params, vectors):
            values, slopes = [], []
            for term in self._terms:
                value, slope = forward_ad.unpack_dual(self._evaluate(term))
                if slope is None:
                    raise RuntimeError(_INDEPENDENT)
                values.append(value.detach().clone())
                slopes.append(slope.detach().clone())
            answer = Derivative(_total(values), _total(slopes))
            self._mean(answer)
        self._count("derivative", forward=1)
        return answer

    def hvp(self, directions: Iterable[Tensor]) -> HessianProduct:
        r"""The Hessian times a vector. Cost: one forward and two backward passes.

        .. math::

            \nabla^2 f(\theta)\, v = \nabla_\theta \langle \nabla f(\theta), v \rangle
            \quad \text{for a constant } v,

        so the second pass goes back through the first. The Hessian itself is never formed, and
        no graph outlives the query.

        Args:
            directions: :math:`v`, one tensor for each parameter, like it in shape and dtype.

        Returns:
            :class:`HessianProduct`: value, gradient and product.

        Raises:
            TypeError: If the loss does not return a tensor.
            ValueError: If it does not return a single real number, or a direction does not fit.
            RuntimeError: If it calls ``backward``, depends on none of the parameters, or torch
                has no second derivative of an operation.

        Example:
            >>> p = torch.tensor([1.0, 2.0], requires_grad=True)
            >>> Objective(lambda: p[0] * p[1], [p]).hvp([torch.tensor([3.0, 0.0])]).product
            [tensor([0., 3.])]
        """
        vectors = check_directions(self.params, directions)
        with recording(True, dear=True):
            values, gradients, products = [], [], []
            for term in self._terms:
                value, gradient, product = self._hvp(term, vectors)
                values.append(value)
                gradients.append(gradient)
                products.append(product)
                _add(gradients)
                _add(products)
            answer = HessianProduct(_total(values), gradients[0], products[0])
            self._mean([answer.value, *answer.gradient, *answer.product])
        self._count("hvp", forward=1, backward=2)
        return answer

    def rank(self, points: Iterable[Iterable[Tensor]], top: int | None = None) -> list[int]:
        r"""Order of points by loss, best first; not how good they are. Cost: a forward each.

        The parameters are moved in place to :math:`\theta + d_i`, rounded to their precision, and
        put back from a copy, so they end bit for bit as they were, in the same memory; the copy
        is the query's only extra memory. Equal losses keep the points' order, NaN comes last.

        Args:
            points: Displacements :math:`d_i`, each a list of one tensor for each parameter, like
                it in shape and dtype. For the current point pass zeros.
            top: Return the best so many only.

        Returns:
            Indices into ``points``.

        Raises:
            TypeError: If the loss does not return a tensor.
            ValueError: If it does not return a single real number, a displacement does not fit,
                or ``top`` is out of range.
            RuntimeError: If it calls ``backward``.

        Example:
            >>> p = torch.tensor(1.0, requires_grad=True)
            >>> steps = [[torch.tensor(d)] for d in (0.5, -2.5, -1.0)]
            >>> Objective(lambda: p**2, [p]).rank(steps, top=2)
            [2, 0]
        """
        moves = [check_directions(self.params, point) for point in points]
        if top is not None and not 1 <= top <= len(moves):
            raise ValueError(f"top={top}: choose 1 to {len(moves)}, the number of points")
        if not moves:
            return []
        losses = []
        with recording(False):
            home = [p.detach().clone() for p in self.params]
            try:
                for move in moves:
                    for p, start, d in zip(self.params, home, move, strict=True):
                        torch.add(start, d, out=p.data)
                    torch.clear_autocast_cache()
                    losses.append(self._value())
            finally:
                for p, start in zip(self.params, home, strict=True):
                    p.data.copy_(start)
            heights = torch.stack(losses)
            self._mean([heights])
            order: list[int] = heights.argsort(stable=True).tolist()
        self._count("rank", forward=len(moves))
        return order[:top]

    def _count(self, query: str, forward: int = 0, backward: int = 0) -> None:
        terms = len(self._terms)
        self.counts.update({query: 1, "forward": terms * forward, "backward": terms * backward})

    def _value(self) -> Tensor:
        return _total([self._evaluate(term).detach().clone() for term in self._terms])

    def _hvp(self, term: _Term, vectors: Sequence[Tensor]) -> HessianProduct:
        loss = self._evaluate_graph(term)
        grads = self._differentiate(loss, create_graph=True)
        curved = [
            (g, v) for g, v in zip(grads, vectors, strict=True) if g is not None and g.requires_grad
        ]
        product: Sequence[Tensor | None] = [None] * len(grads)
        if curved:
            outputs, weights = zip(*curved, strict=True)
            product = torch.autograd.grad(outputs, self.params, weights, allow_unused=True)
        flat = [g if g is None else g.detach() for g in grads]
        gradient = fresh(flat, self.params)
        return HessianProduct(
            loss.detach().clone(), gradient, fresh(product, self.params, [*vectors, *gradient])
        )

    def _mean(self, tensors: Sequence[Tensor]) -> None:
        if self._average is not None:
            self._average(tensors)

    def _evaluate(self, term: _Term) -> Tensor:
        """Run a loss in the modes that are set, check what it returns, keep ``.grad`` safe."""
        function, noise = term
        leaves = [p for p in self.params if p.is_leaf]
        held = [p.grad for p in leaves]
        try:
            for p in leaves:
                p.grad = None
            with noise:
                loss = function()
            went_back = any(p.grad is not None for p in leaves)
        except RuntimeError as error:
            if "does not require grad" in str(error) and not torch.is_grad_enabled():
                raise RuntimeError(
                    f"{_BACKWARD}; one that contains derivatives computes them under "
                    "torch.enable_grad()"
                ) from error
            if "Nested forward mode" in str(error):
                raise RuntimeError(
                    "the loss uses forward mode itself, and torch cannot nest it: take the inner "
                    "product with gradient(), or write the loss with torch.func.grad or vjp"
                ) from error
            raise
        finally:
            for p, grad in zip(leaves, held, strict=True):
                p.grad = grad
        if went_back:
            raise RuntimeError(_BACKWARD)
        if not isinstance(loss, Tensor):
            what = "None" if loss is None else f"a {type(loss).__name__}"
            raise TypeError(f"the loss returned {what}: return a tensor with one element")
        if loss.numel() != 1 or not loss.is_floating_point():
            raise ValueError(
                f"the loss returned a tensor of shape {tuple(loss.shape)} and {loss.dtype}: return "
                "one real number, such as the mean over the batch"
            )
        return loss.reshape(())

    def _evaluate_graph(self, term: _Term) -> Tensor:
        loss = self._evaluate(term)
        if not loss.requires_grad:
            raise RuntimeError(_INDEPENDENT)
        return loss

    def _differentiate(self, loss: Tensor, create_graph: bool) -> Sequence[Tensor | None]:
        try:
            grads: Sequence[Tensor | None] = torch.autograd.grad(
                loss, self.params, create_graph=create_graph, allow_unused=True
            )
        except RuntimeError as error:
            if "second time" in str(error):
                raise RuntimeError(
                    f"{_BACKWARD}, and computes it anew in each call; this graph is already freed"
                ) from error
            raise
        if all(g is None for g in grads):
            raise RuntimeError(_INDEPENDENT)
        return grads


def _total(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).sum(0)


def _add(answers: list[list[Tensor]], *, in_place: bool = True) -> None:
    """Put the sum in place of two answers."""
    if len(answers) == 2:
        pairs = zip(*answers, strict=True)
        answers[:] = [[a.add_(b) if in_place else a + b for a, b in pairs]]


_BACKWARD = (
    "the loss calls backward: an objective returns the loss and nothing else, without zero_grad "
    "and backward"
)
_INDEPENDENT = (
    "the loss depends on none of the parameters: it reads other ones (of a copied model?), or "
    "detaches itself from them (.item(), .detach(), torch.no_grad())"
)
