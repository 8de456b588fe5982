"""The callback that lets a training loader's batches grow as the norm test asks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from steepest._registry import method
from steepest.lightning._growing_loader import GrowingLoader, check
from steepest.lightning._session import _buffers, _unnoticed
from steepest.probes import GradientMoments, coordinate_norm_test, norm_test


@method(
    paper="lau2024adadagrad",
    title="AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
    oracle="per-sample",
    forward=2,
    backward=2,
)
class AdaptiveBatchSize(Callback):
    r"""Let the training batches grow until their gradient's noise is below its signal.

    Before a step, cut its batch into m parts of :math:`n_i` samples and take each part's mean
    gradient :math:`g_i`. They give the gradient :math:`g`, the variance :math:`V` of a sample's
    gradient, and the size that passes the norm test (:func:`~steepest.probes.norm_test`):

    .. math::

        V = \frac{1}{m - 1} \sum_i n_i \lVert g_i - g \rVert^2, \qquad
        b_{k+1} = \min\Bigl(b_{\max},\; \max\Bigl(b_k,
            \Bigl\lceil \frac{V}{\eta^2 \lVert g \rVert^2} \Bigr\rceil\Bigr)\Bigr).

    With AdaGrad as the optimizer this is AdAdaGrad, with AdaGrad-Norm AdAdaGrad-Norm; it works
    with any. Your module and your ``DataLoader`` stay as they are::

        Trainer(callbacks=[AdaptiveBatchSize(eta=0.5)]).fit(module, loader)

    - *Batches change for real*, in the middle of an epoch too, and no sample is dropped or
      repeated by it. The next batch drawn has the new size. Worker processes draw ahead: with
      ``num_workers`` of them, the next ``num_workers * prefetch_factor`` batches still have the
      old one.
    - *Gradients of parts*, not of samples, because every ``training_step`` has them: nothing is
      assumed of its layers. A test costs one more pass over the batch, in m pieces, and twice
      the parameters' memory. It leaves no trace: logs, metrics, buffers, torch's random numbers
      and ``.grad`` are as if it had not been.
    - *Resume* is exact, also inside an epoch: order, place, sizes and drawn batches are in the
      checkpoint. (Random numbers that a data set draws within worker processes begin anew.) The
      order is a function of torch's seed and the epoch, for every sampler that draws from torch.
    - *Several processes* (DDP): the parts of all count, and all take the same size. Sizes are a
      loader's, so a step has as many times more samples as there are processes.
    - *Accumulation*: the test is about the sum of the window's batches, with the gradient of its
      first.
    - *Epochs get shorter.* The progress bar, the number of batches and validation at the end of
      an epoch follow. A schedule that counts steps does not: let it count epochs.

    Logs ``batch_size``, the size of the batches to be drawn.

    Args:
        eta: Noise allowed, as a fraction of the gradient's norm, in (0, 1).
        coordinatewise: Let each coordinate pass a test of its own
            (:func:`~steepest.probes.coordinate_norm_test`), as suits AdaGrad and Adam.
        parts: Parts of a batch, at least 2; a batch with fewer samples is cut into single ones
            (pairs, if the module has batch normalization).
        every: Steps from one test to the next; the paper tests at each.
        max_batch_size: Largest size :math:`b_{\max}`; by default that of the data.

    Raises:
        ValueError: If an argument is out of its range, or samples in a batch cannot be counted.
        TypeError: While training, if batches are not the ``DataLoader``'s to make, or
            ``training_step`` returns no loss.
        RuntimeError: When the fit begins, if the trainer cannot do with it: manual optimization,
            a scaled or sharded model, validation after a fixed number of an epoch's batches.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from steepest.lightning import quiet
        >>> quiet()
        >>> grow = AdaptiveBatchSize(eta=0.1, every=1)
        >>> silent = {
        ...     f"enable_{part}": False
        ...     for part in ("checkpointing", "progress_bar", "model_summary")
        ... }
        >>> trainer = Trainer(callbacks=[grow], max_epochs=1, logger=False, **silent)
        >>> data = torch.randn(64, 32)
        >>> trainer.fit(BoringModel(), torch.utils.data.DataLoader(data, batch_size=4))
        >>> grow.batch_size > 4, trainer.global_step < 16
        (True, True)

    Reference:
        :cite:t:`lau2024adadagrad`.

    Deviations:
        The variance is of parts within each process, as the paper's of workers' gradients is; it
        has the same mean as that of single samples.

    When not to use it:
        With a loss that is a sum over samples: it must be a mean. With batch normalization the
        parts have statistics of their own, and look noisier than the batch. With plain SGD larger
        batches call for larger steps, which this does not take.
    """

    def __init__(
        self,
        eta: float = 0.5,
        *,
        coordinatewise: bool = False,
        parts: int = 8,
        every: int = 10,
        max_batch_size: int | None = None,
    ) -> None:
        if not 0 < eta < 1:
            raise ValueError(
                f"AdaptiveBatchSize: eta={eta!r} is not valid: give a number in (0, 1)"
            )
        for name, value, least in (
            ("parts", parts, 2),
            ("every", every, 1),
            ("max_batch_size", max_batch_size, 1),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(
                    f"AdaptiveBatchSize: {name}={value!r} is not valid: give a whole number >= "
                    f"{least}"
                )
        self.eta = eta
        self.coordinatewise = coordinatewise
        self.parts = parts
        self.every = every
        self.max_batch_size = max_batch_size
        self._loader: GrowingLoader | None = None
        self._state: dict[str, Any] | None = None
        self._patched = False

    @property
    def batch_size(self) -> int:
        """Size of the batches to be drawn.

        Raises:
            RuntimeError: If no fit has begun.
        """
        if self._loader is None:
            raise RuntimeError("there is no batch size before a fit: call trainer.fit first")
        return self._loader.batch_sampler.batch_size

    def state_dict(self) -> dict[str, Any]:
        """Order, place in it, and sizes."""
        return self._loader.state_dict() if self._loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until there is a loader."""
        self._state = state_dict or None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the training loader's place when Lightning prepares it."""
        self._check(trainer, pl_module)
        self._loader = None
        seed = int(trainer.strategy.broadcast(torch.initial_seed()))
        prepare = trainer.strategy.process_dataloader

        def process(dataloader: object) -> object:
            prepared = prepare(dataloader)
            return self._resizable(prepared, seed) if trainer.training else prepared

        trainer.strategy.process_dataloader = process  # type: ignore[method-assign]
        self._patched = True

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        if sum(isinstance(c, AdaptiveBatchSize) for c in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise RuntimeError("the trainer has two callbacks AdaptiveBatchSize: one is enough")
        if not module.automatic_optimization:
            raise RuntimeError(
                "AdaptiveBatchSize runs training_step on parts of a batch, and under manual "
                "optimization that would step: use automatic optimization"
            )
        if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
            raise RuntimeError(
                "AdaptiveBatchSize gives training_step parts of a batch: let it take a batch, not "
                "dataloader_iter"
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise RuntimeError(
                "AdaptiveBatchSize takes gradients without the gradient scaler of "
                "precision='16-mixed': use precision='bf16-mixed' or '32-true'"
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise RuntimeError(
                f"AdaptiveBatchSize takes gradients of whole models: "
                f"{type(trainer.strategy).__name__} splits them. Use one device, or strategy='ddp'"
            )
        if isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch:
            raise RuntimeError(
                f"val_check_interval={trainer.val_check_interval} counts batches of an epoch, and "
                "their number will change: leave it out, or count over epochs with "
                "check_val_every_n_epoch=None"
            )
        if isinstance(trainer.limit_train_batches, float) and trainer.limit_train_batches != 1.0:
            raise RuntimeError(
                f"limit_train_batches={trainer.limit_train_batches} is a share of an epoch's "
                "batches, and their number will change: give a whole number"
            )

    def _resizable(self, loader: object, seed: int) -> GrowingLoader:
        check(loader)
        grown = GrowingLoader(loader, seed)  # type: ignore[arg-type]
        if self._state is not None:
            grown.load_state_dict(self._state)
            self._state = None
        elif self._loader is not None:  # the module makes its loader anew every few epochs
            grown.batch_sampler.batch_size = self.batch_size
            grown.batch_sampler.sampler.seed = self._loader.batch_sampler.sampler.seed
        self._loader = grown
        return grown

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse several loaders; count the batches of the epoch that a resumed fit is in."""
        if self._loader is None or id(trainer.train_dataloader) != id(self._loader):
            raise TypeError("AdaptiveBatchSize resizes one training loader: give a single one")
        # Lightning calls no on_train_epoch_start where a checkpoint followed an epoch's last step.
        self._loader.batch_sampler.sampler.set_epoch(trainer.current_epoch)
        self._recount(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epoch's batches."""
        self._recount(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Test before the step, and let the batches grow that are drawn from now on."""
        assert self._loader is not None
        first = batch_idx % trainer.accumulate_grad_batches == 0
        if first and trainer.global_step % self.every == 0:
            sampler = self._loader.batch_sampler
            size = self._wanted(trainer, pl_module, batch, batch_idx)
            if size > sampler.batch_size:
                sampler.batch_size = size
                self._recount(trainer)
        pl_module.log("batch_size", float(self.batch_size), prog_bar=True, batch_size=1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the trainer as it was."""
        self._release(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the trainer as it was."""
        self._release(trainer)

    def _release(self, trainer: Trainer) -> None:
        if self._patched:
            del trainer.strategy.__dict__["process_dataloader"]
            self._patched = False

    def _wanted(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> int:
        """The size that passes, the same in all processes."""
        assert self._loader is not None
        moments = self._measure(trainer, module, batch, batch_idx)
        if trainer.world_size > 1:
            moments = moments.pooled(partial(trainer.strategy.reduce, reduce_op="sum"))
        if moments.parts < 2:
            return 0
        test = coordinate_norm_test if self.coordinatewise else norm_test
        together = trainer.world_size * trainer.accumulate_grad_batches
        wanted = test(moments, self.eta).size / together
        most = self.max_batch_size or len(self._loader.batch_sampler.sampler)
        size = 0 if math.isnan(wanted) else math.ceil(min(wanted, most))
        return int(trainer.strategy.broadcast(size))

    def _measure(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> GradientMoments:
        """Gradients of the batch's parts, leaving no trace."""
        groups = trainer.optimizers[0].param_groups
        params = [p for group in groups for p in group["params"] if p.requires_grad]
        moments = GradientMoments()
        devices = list({p.device for p in params if p.device.type != "cpu"})
        kept = torch.random.fork_rng(devices, device_type=module.device.type)
        start = [(o, n, t.detach().clone()) for o, n, t in _buffers(module)]
        with kept, _unnoticed(module, start), torch.enable_grad():
            for part, size in split(batch, self.parts, least=_least(module)):
                with trainer.precision_plugin.train_step_context():
                    loss = _loss(module, part, batch_idx)
                moments.add(torch.autograd.grad(loss, params, materialize_grads=True), size)
        return moments

    def _recount(self, trainer: Trainer) -> None:
        """Tell Lightning how many batches the epoch has now."""
        loop, fetcher = trainer.fit_loop, trainer.fit_loop._data_fetcher
        assert self._loader is not None and fetcher is not None
        limits = fetcher.combined_loader.limits
        total = min(len(self._loader), *(limits or ()), math.inf)
        loop.max_batches = fetcher.length = total  # type: ignore[assignment]
        if isinstance(trainer.val_check_interval, float):
            trainer.val_check_batch = max(1, int(total * trainer.val_check_interval))
        bar = trainer.progress_bar_callback
        if isinstance(bar, TQDMProgressBar) and bar._train_progress_bar is not None:
            bar.train_progress_bar.total = total
        elif (
            isinstance(bar, RichProgressBar)
            and bar.progress is not None
            and bar.train_progress_bar_id is not None
        ):
            bar.progress.update(bar.train_progress_bar_id, total=total)


def split(batch: Any, parts: int, *, least: int = 1) -> Iterator[tuple[Any, int]]:
    """Cut a batch along the first dimension of its tensors.

    Args:
        batch: Tensors in tuples, lists and dictionaries; numbers go to each part.
        parts: Number of parts, fewer if there are not as many samples.
        least: Samples in a part.

    Yields:
        A part, and its number of samples; sizes differ by one at most.

    Raises:
        ValueError: If the tensors do not have one number of samples.
    """
    leaves, spec = pytree.tree_flatten(batch)
    counts = {len(t) if t.ndim else -1 for t in leaves if isinstance(t, Tensor)}
    plain = all(isinstance(t, Tensor | int | float | None) for t in leaves)
    if len(counts) != 1 or -1 in counts or not plain:
        raise ValueError(
            "AdaptiveBatchSize cannot cut this batch into parts: give batches of tensors whose "
            "first dimension is the sample, in tuples, lists or dictionaries"
        )
    count = counts.pop()
    number = max(1, min(parts, count // least))
    cut = [t.tensor_split(number) if isinstance(t, Tensor) else [t] * number for t in leaves]
    for i, part in enumerate(zip(*cut, strict=True)):
        size = count // number + (i < count % number)
        yield pytree.tree_unflatten(list(part), spec), size


def _least(module: LightningModule) -> int:
    """Samples that a pass needs: batch normalization has no statistics of one."""
    return 1 + any(isinstance(m, _BatchNorm) and m.training for m in module.modules())


def _loss(module: LightningModule, batch: Any, batch_idx: int) -> Tensor:
    step = module.training_step
    indexed = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    output: Any = step(batch, batch_idx) if indexed else step(batch)
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"training_step returned {'no loss' if loss is None else type(loss).__name__}: "
            "AdaptiveBatchSize takes the gradient of every batch; return the loss, and leave "
            "batches to skip out of the data"
        )
    return loss
