"""The learning rate range test: a short run at rising rates, of which nothing remains."""

from __future__ import annotations

import copy
import math
import warnings
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from steepest._registry import method
from steepest.lightning._oracles import Oracles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@method(
    paper="smith2018disciplined",
    title="A disciplined approach to neural network hyper-parameters: Part 1 -- learning rate, "
    "batch size, momentum, and weight decay",
    oracle="gradient",
)
class LRRangeTest:
    r"""Find the largest usable learning rate, in one short run in which it rises.

    .. math::

        \eta_k = \eta_0 \left(\frac{\eta_1}{\eta_0}\right)^{k/(n-1)}, \qquad
        \eta_{\max} = \eta_{k^*}, \quad k^* = \operatorname*{arg\,min}_k \tilde L_k,

    where :math:`\tilde L` is the training loss, averaged over a window of steps around each.
    While rates are small the loss falls ever faster; at its lowest point steps have become so
    long that they undo each other, and the next ones make it rise. What is suggested is the
    last rate before that, for the peak of :class:`~steepest.schedules.OneCycle`; a constant rate
    has to be smaller.

    Call :meth:`run` before you train::

        test = LRRangeTest()
        lr_max = test.run(module, data)

    The run is a fit of *copies* of the module and the data, with an optimizer of their own from
    ``configure_optimizers``, and without its schedules. So module, optimizer, data and loops
    are as they were, bit for bit, and so are the random numbers of Python, NumPy and torch.
    Optimizers that ask for more than a gradient get it (:class:`Oracles`).

    Args:
        low: First rate, :math:`\eta_0`.
        high: Last rate, :math:`\eta_1`. Groups whose rates differ keep their proportions; these
            are the rates of the first.
        steps: Number of rates, n; the run ends early if the loss is not finite, or has risen
            above those of the first window by ``stop`` times their size.
        window: Steps in an average.
        stop: Rise of the loss at which the run ends; see ``steps``.

    Attributes:
        rates: Rates that were tried.
        losses: Training losses at them.

    Raises:
        ValueError: If an argument is out of its range.
        RuntimeError: In :meth:`run`, if there is more than one optimizer, or fewer than three
            finite losses, or ``training_step`` returns none.

    Example:
        >>> from steepest.lightning import Classifier, DigitsData, quiet
        >>> quiet()
        >>> test = LRRangeTest(1e-4, 1.0, steps=30)
        >>> lr_max = test.run(Classifier(hidden=[16]), DigitsData())
        >>> 1e-4 < lr_max <= 1, test.rates[0]
        (True, 0.0001)

    Reference:
        :cite:t:`smith2018disciplined`.

    Deviations:
        Rates rise in proportion, not linearly, since their order of magnitude is what one does
        not know. The loss is that of the training batches.

    When not to use it:
        In the middle of a run: it begins with the module's weights, but with a new optimizer.
        With tiny batches the lowest point is noise; raise ``window``.
    """

    def __init__(
        self,
        low: float = 1e-5,
        high: float = 10.0,
        steps: int = 100,
        *,
        window: int = 5,
        stop: float = 3.0,
    ) -> None:
        if not 0 < low < high < math.inf:
            raise ValueError(f"give rates 0 < low < high, not {low=}, {high=}")
        if steps < 3 or not 1 <= window <= steps or not stop > 0:
            raise ValueError(
                f"give at least 3 steps, a window of 1 to that many and a stop > 0, "
                f"not {steps=}, {window=}, {stop=}"
            )
        self.low, self.high, self.steps = low, high, steps
        self.window, self.stop = window, stop
        self.rates: list[float] = []
        self.losses: list[float] = []

    def run(self, module: LightningModule, data: Any, **options: Any) -> float:
        """Run the test.

        Args:
            module: What will be trained; its weights are where the test begins.
            data: A data module, a ``DataLoader``, or what else ``Trainer.fit`` takes for training.
            **options: Of the ``Trainer`` that runs the test, e.g. ``accelerator``, ``precision``
                or ``accumulate_grad_batches``. One device.

        Returns:
            The suggestion, :attr:`lr_max`.
        """
        self.rates, self.losses = [], []
        silent = {"logger": False, "num_sanity_val_steps": 0, "limit_val_batches": 0} | {
            f"enable_{part}": False for part in ("checkpointing", "progress_bar", "model_summary")
        }
        with isolate_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You defined a `validation_step`")  # it is not run
            trainer = Trainer(
                **{"devices": 1, "max_epochs": -1, "max_steps": self.steps, **silent, **options},
                callbacks=[Oracles(), _Sweep(self)],
            )
            trainer.fit(_copy(module), _copy(data))
        return self.lr_max

    def smooth(self) -> list[float]:
        """Losses, each averaged over the window around it."""
        half, n = self.window // 2, len(self.losses)
        windows = (self.losses[max(0, k - half) : min(n, k + half + 1)] for k in range(n))
        return [sum(w) / len(w) for w in windows]

    @property
    def lr_max(self) -> float:
        """The rate at which the averaged loss was lowest."""
        if sum(map(math.isfinite, self.losses)) < 3:
            raise RuntimeError("fewer than three finite losses: run the test from a smaller rate")
        smooth = [x if math.isfinite(x) else math.inf for x in self.smooth()]
        # $\eta_{\max} = \eta_{\arg\min_k \bar\ell_k}$
        return self.rates[smooth.index(min(smooth))]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw losses and their average over the rates, with the suggestion.

        Args:
            ax: Where; by default a new figure's.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots()[1]
        ax.plot(self.rates, self.losses, color="#bbbbbb", lw=1, label="loss of the batch")
        ax.plot(self.rates, self.smooth(), color="#0072B2", label=f"mean of {self.window} steps")
        ax.axvline(self.lr_max, color="#D55E00", ls="--", label=f"suggested: {self.lr_max:.2g}")
        ax.set(xscale="log", xlabel="learning rate", ylabel="training loss")
        ax.legend()
        return ax


class _Sweep(Callback):
    """Sets the rates, and takes down the losses."""

    def __init__(self, test: LRRangeTest) -> None:
        self.test = test

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (count := len(trainer.optimizers)) != 1:
            raise RuntimeError(f"the module has {count} optimizers: a range test needs one")
        trainer.strategy.lr_scheduler_configs = []
        groups = trainer.optimizers[0].param_groups
        own = [float(group.get("initial_lr", group["lr"])) for group in groups]
        self.shares = [lr / own[0] for lr in own] if own[0] else [1.0] * len(own)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        test = self.test
        # $\eta_k = \eta_{\text{low}}\, (\eta_{\text{high}} / \eta_{\text{low}})^{k / (K - 1)}$
        self.rate = test.low * (test.high / test.low) ** (trainer.global_step / (test.steps - 1))
        groups = trainer.optimizers[0].param_groups
        for group, share in zip(groups, self.shares, strict=True):
            group["lr"] = self.rate * share

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        test = self.test
        found = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if found is None:
            raise RuntimeError("training_step returned no loss: a range test reads it")
        loss = float(found)
        test.rates.append(self.rate)
        test.losses.append(loss)
        first = test.losses[: test.window]
        if not loss <= max(first) + test.stop * max(map(abs, first)):
            trainer.should_stop = True


def _copy(thing: Any) -> Any:
    """A copy to run on: without its trainer, and with the same data sets."""
    if not isinstance(thing, LightningModule | LightningDataModule | DataLoader):
        return thing
    shared = thing.dataset if isinstance(thing, DataLoader) else None
    trainer = thing.__dict__.get("_trainer" if isinstance(thing, LightningModule) else "trainer")
    memo: dict[int, Any] = {id(shared): shared, id(trainer): None}
    return copy.deepcopy(thing, memo)
