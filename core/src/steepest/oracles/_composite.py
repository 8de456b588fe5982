r"""A loss of a model's outputs: what is known because it is one function after another."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from steepest.oracles._objective import Objective
from steepest.oracles._passes import check_directions, fresh, recording, tangents, trainable

Criterion = Callable[[Tensor, Tensor], Tensor]
Curvature = Callable[[Tensor, Tensor], Tensor]
"""Map (outputs, tangent) to a symmetric matrix in output space times the tangent."""


@final
class Composite:
    r"""The loss :math:`L(f_\theta(x), y)` of a model on a batch, with the queries this allows.

    Write :math:`z = f_\theta(x)` for the outputs, :math:`J = \partial z / \partial\theta` for
    their Jacobian and :math:`\ell_n` for the loss of the n-th of N samples.

    ========================== ========================================= ======= ========
    query                      answer                                    forward backward
    ========================== ========================================= ======= ========
    ``outputs()``              :math:`z`                                 1       0
    ``jacobian()``             :math:`J`                                 1       dim z
    ``ggn(v)``                 :math:`J^\top \nabla_z^2 L\, J v`         1       1
    ``fisher(v)``              :math:`J^\top F_z J v`                    1       1
    ``empirical_fisher(v)``    :math:`\frac1N \sum_n g_n g_n^\top v`     1       1
    ``per_sample_gradients()`` :math:`g_n = \nabla_\theta \ell_n`        1       1
    ========================== ========================================= ======= ========

    The matrix products run forward mode and record a graph in one and the same forward pass, so
    dropout draws once a query. The criterion's own derivatives are not counted.

    With ``reduction="mean"`` the loss is :math:`\frac1N \sum_n \ell_n`, with ``"sum"`` it is
    :math:`\sum_n \ell_n`, and the matrices above are means or sums accordingly. Queries leave
    everything as they found it, as those of :class:`Objective` do.

    Args:
        model: Module; it returns one tensor whose first dimension is the batch.
        criterion: Callable ``(outputs, targets) -> loss``.
        inputs: Batch (N, ...) for the model, or a tuple of such tensors, its arguments.
        targets: Batch (N, ...) for the criterion.
        reduction: ``mean`` or ``sum``: what the criterion does over samples. By default what
            the criterion says, ``mean`` if it says nothing.

    Raises:
        TypeError: If ``model`` is not a module.
        ValueError: If no parameter of the model requires a gradient, or the reduction is
            neither.

    Example:
        A linear model with squared error, whose Hessian is 2 x x^T.

        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1)
        >>> loss = Composite(model, torch.nn.MSELoss(), x, y)
        >>> v = [torch.tensor([[1.0, 0.0]])]
        >>> loss.ggn(v), loss.objective().hvp(v).product
        ([tensor([[2., 6.]])], [tensor([[2., 6.]])])
        >>> loss.jacobian()
        [tensor([[[[1., 3.]]]])]
    """

    def __init__(
        self,
        model: torch.nn.Module,
        criterion: Criterion,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Tensor,
        *,
        reduction: str | None = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"the model is of type {type(model).__name__}, not a torch.nn.Module")
        chosen = reduction or _options(criterion).get("reduction", "mean")
        if chosen not in ("mean", "sum"):
            raise ValueError(f"reduction={chosen!r}: the loss must be a mean or a sum over samples")
        self.model = model
        self.criterion = criterion
        self.inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        self.targets = targets
        self.reduction: str = chosen
        self.params = trainable(model)
        """The parameters, in the order of directions and answers."""
        self.counts: Counter[str] = Counter()
        """Answered queries by name, and the passes (``forward``, ``backward``) through the model
        that they took; shared with :meth:`objective`."""

    def objective(self) -> Objective:
        """The loss as an :class:`Objective` over the model; its queries are counted here too."""
        objective = Objective(lambda: self.criterion(self._forward(), self.targets), self.model)
        objective.counts = self.counts
        return objective

    def outputs(self) -> Tensor:
        """The model's outputs (N, ...), without a graph. Cost: one forward pass.

        Raises:
            TypeError: If the model does not return a tensor.

        Example:
            >>> model = torch.nn.Linear(2, 2, bias=False)
            >>> x = torch.ones(3, 2)
            >>> Composite(model, torch.nn.MSELoss(), x, x).outputs().shape
            torch.Size([3, 2])
        """
        with recording(False):
            outputs = self._forward().detach()
        self._count("outputs", forward=1)
        return outputs

    def jacobian(self) -> list[Tensor]:
        r"""The Jacobian of the outputs in the parameters.

        Cost: one forward pass and, for each number in the outputs, one backward pass; these are
        vectorized. Memory: that of the answer, the outputs' size times the parameters'.

        Returns:
            A list of tensors (N, ..., \*parameter's shape).

        Raises:
            TypeError: If the model does not return a tensor.
            RuntimeError: If the outputs depend on none of the parameters.

        Example:
            >>> model = torch.nn.Linear(2, 5)
            >>> x = torch.ones(3, 2)
            >>> [j.shape for j in Composite(model, torch.nn.MSELoss(), x, x).jacobian()]
            [torch.Size([3, 5, 5, 2]), torch.Size([3, 5, 5])]
        """
        with recording(True, dear=True):
            outputs = self._dependent(self._forward())
            size = outputs.numel()
            rows = torch.eye(size, dtype=outputs.dtype, device=outputs.device)
            blocks = torch.autograd.grad(
                outputs,
                self.params,
                rows.reshape(size, *outputs.shape),
                is_grads_batched=True,
                allow_unused=True,
                materialize_grads=True,
            )
            answer = [
                block.reshape(*outputs.shape, *p.shape)
                for block, p in zip(blocks, self.params, strict=True)
            ]
        self._count("jacobian", forward=1, backward=size)
        return answer

    def ggn(self, directions: Iterable[Tensor]) -> list[Tensor]:
        r"""The generalized Gauss-Newton matrix times a vector.

        .. math::

            G v = J^\top\, \nabla_z^2 L\, J v.

        It is the Hessian without the model's own second derivatives, positive semidefinite for
        a convex criterion; Hessian and GGN agree where the model is linear or fits the data.
        Cost: one forward pass with tangents and a graph, one backward pass.

        Args:
            directions: :math:`v`, one tensor for each parameter, like it in shape and dtype.

        Returns:
            A list of tensors shaped as the parameters.

        Raises:
            TypeError: If the model does not return a tensor.
            ValueError: If a direction does not fit.
            RuntimeError: If the outputs depend on none of the parameters.
            NotImplementedError: If torch has no forward derivative of an operation.

        Example:
            >>> model = torch.nn.Linear(1, 1, bias=False)
            >>> x = torch.tensor([[1.0], [3.0]])
            >>> Composite(model, torch.nn.MSELoss(), x, x).ggn([torch.ones(1, 1)])
            [tensor([[10.]])]
        """

        def hessian(z: Tensor, u: Tensor) -> Tensor:
            z = z.requires_grad_()
            (slope,) = torch.autograd.grad(self.criterion(z, self.targets), z, create_graph=True)
            if not slope.requires_grad:
                return torch.zeros_like(z)
            return torch.autograd.grad(slope, z, u, materialize_grads=True)[0]

        return self._product("ggn", directions, hessian)

    def fisher(self, directions: Iterable[Tensor]) -> list[Tensor]:
        r"""The Fisher information of the model's predictive distribution, times a vector.

        .. math::

            F v = J^\top F_z J v, \qquad
            F_z = \mathbb{E}_{y \sim p(\cdot \mid z)}
                \bigl[\nabla_z \log p(y \mid z)\, \nabla_z \log p(y \mid z)^\top\bigr],

        with the labels' expectation in closed form; the targets' values play no part. Known are

        - cross-entropy, the categorical distribution with :math:`\pi = \mathrm{softmax}(z)`:
          :math:`F_z = \mathrm{diag}(\pi) - \pi\pi^\top` for each label, a mean over all labels
          (but for ``ignore_index``) or their sum, as the loss is. It equals the GGN.
        - squared error, the Gaussian with mean z and unit variance: :math:`F_z = I` for each
          sample, a mean over the N samples or their sum. ``MSELoss`` is not this Gaussian's
          negative log-likelihood: with D outputs a sample, its GGN is :math:`\frac{2}{D} F` with
          ``mean`` and :math:`2F` with ``sum``.

        Cost: one forward pass with tangents and a graph, one backward pass.

        Args:
            directions: :math:`v`, one tensor for each parameter, like it in shape and dtype.

        Returns:
            A list of tensors shaped as the parameters.

        Raises:
            TypeError: If the model does not return a tensor.
            ValueError: If a direction does not fit.
            NotImplementedError: If the criterion is another one, or torch has no forward
                derivative of an operation.
            RuntimeError: If the outputs depend on none of the parameters.

        Example:
            At equal odds of two classes the matrix is (1, -1; -1, 1) / 4.

            >>> model = torch.nn.Linear(1, 2, bias=False)
            >>> _ = torch.nn.init.zeros_(model.weight)
            >>> x, y = torch.ones(1, 1), torch.tensor([0])
            >>> loss = Composite(model, torch.nn.CrossEntropyLoss(), x, y)
            >>> loss.fisher([torch.tensor([[1.0], [0.0]])])
            [tensor([[ 0.2500],
                    [-0.2500]])]
        """
        kind, options = _kind(self.criterion), _options(self.criterion)
        if kind is functional.cross_entropy and options.get("weight") is None:
            return self._product("fisher", directions, self._categorical)
        if kind is functional.mse_loss and options.get("weight") is None:
            return self._product("fisher", directions, lambda z, u: self._scale(len(z)) * u)
        raise NotImplementedError(
            "the Fisher information is known in closed form for cross-entropy and mean squared "
            "error without weights (torch.nn.CrossEntropyLoss, MSELoss, or the functions), not for "
            f"{self.criterion!r}: use ggn or empirical_fisher"
        )

    def empirical_fisher(self, directions: Iterable[Tensor]) -> list[Tensor]:
        r"""The second moment of the samples' gradients, times a vector.

        .. math::

            E v = \frac1N \sum_{n=1}^N g_n\, \langle g_n, v \rangle
            \qquad (\textstyle\sum_n \text{ for reduction="sum"}).

        The labels are the data's, not the model's, so it is no approximation of the Fisher
        information away from a good fit. Sample gradients are not formed. Cost: one forward pass
        with tangents and a graph, one backward pass.

        Args:
            directions: :math:`v`, one tensor for each parameter, like it in shape and dtype.

        Returns:
            A list of tensors shaped as the parameters.

        Raises:
            TypeError: If the model does not return a tensor.
            ValueError: If a direction does not fit.
            RuntimeError: If the model's outputs depend on none of the parameters, or those of
                one sample on others (batch normalization in training).
            NotImplementedError: If torch has no forward derivative of an operation.

        Example:
            >>> model = torch.nn.Linear(1, 1, bias=False)
            >>> _ = torch.nn.init.ones_(model.weight)
            >>> x, y = torch.ones(2, 1), torch.tensor([[0.0], [1.0]])
            >>> Composite(model, torch.nn.MSELoss(), x, y).empirical_fisher([torch.ones(1, 1)])
            [tensor([[2.]])]
        """
        self._check_independent()

        def moment(z: Tensor, u: Tensor) -> Tensor:
            slopes = vmap(grad(self._one_loss))(z, self.targets)
            inner = (slopes * u).flatten(1).sum(1)
            return self._scale(len(z)) * inner.reshape(-1, *[1] * (z.ndim - 1)) * slopes

        return self._product("empirical_fisher", directions, moment)

    def per_sample_gradients(self, chunk_size: int | None = None) -> list[Tensor]:
        r"""The gradients :math:`g_n` of the samples' losses, as if each were a batch of one.

        Their mean (``reduction="mean"``) or sum (``"sum"``) is the gradient of the batch's loss.
        Cost: one forward and one backward pass, vectorized. Memory: that of the answer, N times
        the parameters', and the passes'.

        Args:
            chunk_size: Samples to treat at once, all by default; fewer need less memory for the
                passes.

        Returns:
            A list of tensors (N, \*parameter's shape).

        Raises:
            RuntimeError: If a sample's output depends on other samples (batch normalization in
                training).

        Example:
            >>> model = torch.nn.Linear(1, 1, bias=False)
            >>> _ = torch.nn.init.ones_(model.weight)
            >>> x, y = torch.ones(2, 1), torch.tensor([[0.0], [1.0]])
            >>> Composite(model, torch.nn.MSELoss(), x, y).per_sample_gradients()[0].flatten()
            tensor([2., 0.])
        """
        self._check_independent()
        named = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}

        def loss(params: dict[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
            batch = tuple(x[None] for x in inputs)
            outputs: Tensor = functional_call(self.model, params, batch)
            return self.criterion(outputs, target[None])

        rows = vmap(grad(loss), (None, 0, 0), randomness="different", chunk_size=chunk_size)
        with recording(True, dear=True):
            answer = list(rows(named, self.inputs, self.targets).values())
        self._count("per_sample_gradients", forward=1, backward=1)
        return answer

    def _product(
        self, query: str, directions: Iterable[Tensor], curvature: Curvature
    ) -> list[Tensor]:
        """Multiply by J^T C J: forward mode through the model, C in output space, and back."""
        vectors = check_directions(self.params, directions)
        with recording(True, dear=True):
            with tangents(self.params, vectors):
                z, u = forward_ad.unpack_dual(self._dependent(self._forward()))
            assert u is not None
            weights = curvature(z.detach(), u.detach())
            blocks = torch.autograd.grad(z, self.params, weights.detach(), allow_unused=True)
            answer = fresh(blocks, self.params)
        self._count(query, forward=1, backward=1)
        return answer

    def _categorical(self, z: Tensor, u: Tensor) -> Tensor:
        """Multiply by the Fisher information of softmax(z), with the loss's scale."""
        classes = 1 if z.ndim > 1 else 0
        p = z.softmax(classes)
        product = p * (u - (p * u).sum(classes, keepdim=True))
        labels = z.numel() // z.shape[classes]
        if not self.targets.is_floating_point():
            known = self.targets != _options(self.criterion).get("ignore_index", -100)
            product = product * known.unsqueeze(classes)
            labels = int(known.sum())
        return self._scale(labels) * product

    def _scale(self, n: int) -> float:
        return 1 / max(n, 1) if self.reduction == "mean" else 1.0

    def _one_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.criterion(output[None], target[None])

    def _forward(self) -> Tensor:
        outputs = self.model(*self.inputs)
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"the model returned a {type(outputs).__name__}: wrap it so that it returns the "
                "tensor of its outputs"
            )
        return outputs

    def _dependent(self, outputs: Tensor) -> Tensor:
        if not outputs.requires_grad:
            raise RuntimeError(
                "the outputs depend on none of the parameters: the model detaches them"
            )
        return outputs

    def _check_independent(self) -> None:
        for name, module in self.model.named_modules():
            if not isinstance(module, _NormBase):
                continue
            mixes = isinstance(module, _BatchNorm) and (
                module.training or module.running_mean is None
            )
            if mixes or (module.training and module.track_running_stats):
                raise RuntimeError(
                    f"{name or 'the model'} ({type(module).__name__}) uses or updates statistics "
                    "of the batch, so no sample has a gradient of its own: call model.eval(), or "
                    "replace it by torch.nn.GroupNorm"
                )

    def _count(self, query: str, forward: int = 0, backward: int = 0) -> None:
        self.counts.update({query: 1, "forward": forward, "backward": backward})


def _kind(criterion: Any) -> Any:
    """The function of torch that a criterion computes, or None."""
    if isinstance(criterion, functools.partial):
        return criterion.func
    modules = {
        torch.nn.CrossEntropyLoss: functional.cross_entropy,
        torch.nn.MSELoss: functional.mse_loss,
    }
    return modules.get(type(criterion), criterion)


def _options(criterion: Any) -> dict[str, Any]:
    """Options of a criterion: a module's attributes or a partial function's keywords."""
    if isinstance(criterion, functools.partial):
        return dict(criterion.keywords)
    names = ("reduction", "weight", "ignore_index")
    return {name: getattr(criterion, name) for name in names if hasattr(criterion, name)}
