r"""A gradient for what comes before a function that can only be queried."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from steepest._registry import method
from steepest.kernels import add_noise_, check_kind, split_seed


class _Ask(torch.autograd.Function):
    """Forward: one query a sample. Backward: the others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, box: BlackBox) -> Tensor:
        y = box.ask(x)
        ctx.save_for_backward(x, y)
        ctx.box = box
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        return ctx.box.pull_back(x, y, slope), None


@final
@method(
    paper="zhang2022robustify",
    title="How to Robustify Black-Box ML Models? A Zeroth-Order Optimization Perspective",
    oracle="value",
    forward=1,  # and one for each coordinate, or direction
    backward=0,
)
class BlackBox(torch.nn.Module):
    r"""A function that can only be queried, as a module that hands a gradient to its input.

    A network ends in, or leads through, a program without gradients: someone else's classifier
    behind an interface, a simulator, a numpy function. Backpropagation brings the slope
    :math:`v = \partial \ell / \partial y` of the loss to the output :math:`y = f(x)`, and stops.
    Here it goes on, sample by sample, with finite differences along the input's coordinates,

    .. math::

        \frac{\partial \ell}{\partial x_j} \approx
            \Big\langle v, \frac{f(x + \epsilon e_j) - f(x)}{\epsilon} \Big\rangle,

    or, with ``directions=q``, along :math:`q` random ones,
    :math:`\frac1q \sum_j \langle v, (f(x + \epsilon z_j) - f(x)) / \epsilon \rangle\, z_j`, drawn
    for each sample. What stands before the box then learns by backpropagation as ever.

    Coordinates are exact to order :math:`\epsilon` and cost :math:`d` queries a sample for an
    input of :math:`d` elements. That is dear for pixels, and cheap for a code: let the box be a
    decoder and then the program, and what trains the encoder before it. With :math:`q < d`
    directions in pixels, the same queries leave a variance of about :math:`(d + 1) / q` times
    the squared slope.

    Args:
        query: Function of a batch of inputs (n, ...), a tensor without a gradient, to outputs
            (n, ...), a tensor. Samples do not see each other.
        eps: Distance :math:`\epsilon`, in the input's units; the paper takes 5e-3. Large against
            the rounding of the answers.
        directions: Random directions a sample; None for all coordinates.
        kind: ``gaussian`` or ``rademacher`` directions.
        seed: Seed of the directions.
        chunk: Largest number of samples in one call of ``query``.

    Attributes:
        queries: Samples asked so far.

    Raises:
        ValueError: If an argument is out of its range; at a call, if the answer has not one row
            for each sample.
        TypeError: At a call, if the answer is not a tensor of real numbers.
        RuntimeError: At a call, if an answer is NaN or infinite.

    Example:
        >>> import torch
        >>> box = BlackBox(lambda x: x.square().sum(1, keepdim=True), eps=1e-6)
        >>> x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64, requires_grad=True)
        >>> box(x).sum().backward()
        >>> x.grad.round(decimals=4)
        tensor([[2., 4., 6.]], dtype=torch.float64)
        >>> box.queries
        4

    Reference:
        :cite:t:`zhang2022robustify`.

    Deviations:
        The paper takes differences of the loss; here they are of the answers, times the loss's
        exact slope, which is the same to order :math:`\epsilon` and asks nothing twice.

    When not to use it:
        Where the function is differentiable and at hand. Or for decisions alone, such as a class
        without a score: a small step changes nothing.
    """

    query: Callable[[Tensor], Tensor]

    def __init__(
        self,
        query: Callable[[Tensor], Tensor],
        eps: float = 5e-3,
        directions: int | None = None,
        kind: str = "gaussian",
        *,
        seed: int = 0,
        chunk: int = 65536,
    ) -> None:
        super().__init__()
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps={eps!r} is not valid: give a finite number > 0")
        for name, count in (("directions", directions), ("chunk", chunk)):
            none = name == "directions" and count is None
            if not none and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{name}={count!r} is not valid: give a whole number >= 1")
        check_kind(kind)
        # Not a submodule, even if it is a module: its parameters are not ours to train.
        object.__setattr__(self, "query", query)
        self.eps = eps
        self.directions = directions
        self.kind = kind
        self.seed = seed
        self.chunk = chunk
        self.queries = 0
        self._estimates = 0

    def forward(self, x: Tensor) -> Tensor:
        """Answers (n, ...) to inputs (n, ...); a backward pass asks again."""
        answer: Tensor = _Ask.apply(x, self)
        return answer

    @torch.no_grad()
    def ask(self, x: Tensor) -> Tensor:
        """Answers without a gradient; counts, and checks them."""
        parts = []
        for part in x.detach().split(self.chunk):
            answer = self.query(part)
            if not isinstance(answer, Tensor) or not answer.is_floating_point():
                raise TypeError(
                    f"BlackBox: the query returned {getattr(answer, 'dtype', type(answer))}: "
                    "return a tensor of real numbers, such as torch.as_tensor(probabilities)"
                )
            if answer.ndim == 0 or len(answer) != len(part):
                raise ValueError(
                    f"BlackBox: the query returned shape {tuple(answer.shape)} for {len(part)} "
                    "samples: return one row for each"
                )
            if not torch.isfinite(answer).all():
                raise RuntimeError("BlackBox: an answer is NaN or infinite near these inputs")
            self.queries += len(part)
            parts.append(answer.detach())
        return torch.cat(parts)

    def pull_back(self, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """Slope of the loss in the input, from the slope (n, ...) in the answers ``y``."""
        flat = x.detach().reshape(len(x), -1)
        d = flat.shape[1]
        total = torch.zeros_like(flat)
        count = d if self.directions is None else self.directions
        self._estimates += 1
        together = max(1, self.chunk // max(1, len(x)))
        for first in range(0, count, together):
            indices = range(first, min(first + together, count))
            # $e_j$
            along = self._along(flat, indices)
            # $x + \epsilon e_j$
            probes = (flat + self.eps * along).reshape(-1, *x.shape[1:])
            # $f(x + \epsilon e_j) - f(x)$
            rise = self.ask(probes).reshape(len(along), *y.shape) - y
            # $w_j = \langle v, f(x + \epsilon e_j) - f(x) \rangle / \epsilon$
            weights = (rise * slope).flatten(2).sum(2) / self.eps
            # $\sum_j w_j e_j$
            total += (weights[..., None] * along).sum(0)
        if self.directions is not None:
            total /= self.directions
        return total.reshape(x.shape).to(x.dtype)

    def _along(self, flat: Tensor, indices: range) -> Tensor:
        """Directions (k, n, d): coordinates, or random ones of each sample."""
        made = torch.zeros(len(indices), *flat.shape, dtype=flat.dtype, device=flat.device)
        for row, i in zip(made, indices, strict=True):
            if self.directions is None:
                row[:, i] = 1.0
            else:
                seed = split_seed(split_seed(self.seed, self._estimates), i)
                add_noise_([row], seed, 1.0, kind=self.kind)
        return made

    def extra_repr(self) -> str:
        """What ``repr`` shows."""
        how = "coordinates" if self.directions is None else f"{self.directions} directions"
        return f"{how}, eps={self.eps}"
