r"""Batch normalization that keeps the noise of small batches."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from steepest._registry import method


@final
@method(
    paper="hoffer2017train",
    title=(
        "Train longer, generalize better: closing the generalization gap in large batch training "
        "of neural networks"
    ),
    oracle="none",
    forward=0,
    backward=0,
)
class GhostBatchNorm(_BatchNorm):
    r"""Ghost batch normalization: a large batch normalized in groups, each by itself.

    In training a batch of :math:`B_L` samples is cut into :math:`k` groups, as many of
    ``ghost_size`` samples, :math:`B_S`, as fit. Group :math:`i` is normalized by its own mean
    :math:`\mu_i` and variance, over samples and positions, and the running statistics take the
    groups one after the other, as if they were batches:

    .. math::

        y_i = \gamma\, \frac{x_i - \mu_i}{\sqrt{\sigma_i^2 + \epsilon}} + \beta, \qquad
        \mu \leftarrow (1 - \eta)\, \mu + \eta\, \mu_i \quad (i = 1, \dots, k).

    The noise in a small batch's statistics regularizes; in a large batch it averages out. Ghosts
    keep it, whatever the batch size. In evaluation this is plain batch normalization. Parameters
    and buffers are those of ``torch.nn.BatchNorm1d`` and its siblings, so checkpoints load both
    ways.

    Args:
        num_features: Channels C of inputs (N, C), (N, C, L), (N, C, H, W), ...
        ghost_size: Samples of a group; the paper takes 128. A batch is cut into as many groups
            of that size as fit, and a rest is spread over them.
        eps: Added to the variance.
        momentum: Weight :math:`\eta` of a new group in the running statistics; None for their
            plain mean.
        affine: Learn :math:`\gamma` and :math:`\beta`.
        track_running_stats: Keep running statistics for evaluation.

    Raises:
        ValueError: If ``ghost_size`` is not a whole number >= 1, or the input has fewer than two
            dimensions.

    Example:
        Two groups with means 0 and 10 both come out centered.

        >>> norm = GhostBatchNorm(1, ghost_size=2)
        >>> norm(torch.tensor([[-1.0], [1.0], [9.0], [11.0]])).flatten().detach()
        tensor([-1.0000,  1.0000, -1.0000,  1.0000])

    Reference:
        :cite:t:`hoffer2017train`.

    Deviations:
        Groups are of nearly equal size where ``ghost_size`` does not divide the batch; with a
        last group of what is left, its statistics could be of one sample.

    When not to use it:
        With ``convert_sync_batchnorm``, so ``Trainer(sync_batchnorm=True)``, which replaces it as
        it does all batch normalization. With batches near ``ghost_size``: it is then the usual
        one. Or where the noise of small batches is what hurts.
    """

    def __init__(
        self,
        num_features: int,
        ghost_size: int = 128,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        if not isinstance(ghost_size, int) or ghost_size < 1:
            raise ValueError(f"ghost_size={ghost_size!r} is not valid: give a whole number >= 1")
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.ghost_size = ghost_size

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, ...); the result has the same shape."""
        self._check_input_dim(x)
        if not self.training:
            return self._normalize(x)
        # $y = (y_1, \dots, y_k)$
        return torch.cat([self._normalize(part) for part in self._ghosts(x)])

    def _ghosts(self, x: Tensor) -> tuple[Tensor, ...]:
        # $k = \max(1, \lfloor B_L / B_S \rfloor)$
        groups = max(1, len(x) // self.ghost_size)
        # $x = (x_1, \dots, x_k)$
        return x.tensor_split(groups)

    def _normalize(self, x: Tensor) -> Tensor:
        # $\eta$
        weight = self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if weight is None:
                weight = 1.0 / float(self.num_batches_tracked)
        # $y_i = \gamma\, (x_i - \mu_i) / \sqrt{\sigma_i^2 + \epsilon} + \beta$
        return functional.batch_norm(
            x,
            # $\mu \leftarrow (1 - \eta)\, \mu + \eta\, \mu_i$
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            weight or 0.0,
            self.eps,
        )

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"the input has shape {tuple(x.shape)}: give (N, C, ...)")

    def extra_repr(self) -> str:
        """Sizes and options, for ``print``."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"
