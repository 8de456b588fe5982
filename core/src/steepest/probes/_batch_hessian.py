r"""The Hessian of a batch, as random matrix theory sees it, and the learning rates it allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steepest._registry import method
from steepest.kernels import add_noise_, offsets
from steepest.oracles import Objective
from steepest.probes._lanczos import Spectrum

PAPER = "granziol2020learning"
TITLE = (
    "Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural "
    "Network Training"
)
OPTIMIZERS = ("sgd", "momentum", "adam")


class BatchHessian(NamedTuple):
    """Answer of :func:`batch_hessian`."""

    largest: float
    """Largest eigenvalue of the batch's Hessian: the outlier, or the edge if none stands out."""
    edge: float
    """Upper edge of the bulk that the noise spreads around zero."""
    overlap: float
    """Squared cosine between the outlier's eigenvector and the true one; 0 inside the bulk."""


class Rates(NamedTuple):
    """Answer of :func:`learn_rates`."""

    lr: float
    """Learning rate of SGD with momentum."""
    momentum: float
    """Its momentum."""


@method(paper=PAPER, title=TITLE, oracle="none", forward=0, backward=0)
def batch_hessian(
    curvature: float, batch_size: int, *, sigma: float, params: int, samples: int | None = None
) -> BatchHessian:
    r"""Predict the largest eigenvalue of a batch's Hessian from that of the whole data.

    The Hessian of a batch of B out of N samples is the true one plus noise. Let the noise be a
    symmetric matrix with independent entries of variance :math:`\sigma^2 / b`, where
    :math:`1/b = 1/B - 1/N`, and let :math:`s = \sigma\sqrt{P/b}` for P parameters. Noise alone
    has its eigenvalues within :math:`\pm 2s`. An eigenvalue :math:`\lambda` of the true Hessian
    becomes

    .. math::

        \lambda' = \lambda + \frac{s^2}{\lambda} = \lambda + \frac{P \sigma^2}{b \lambda}
        \quad\text{if } \lambda > s, \qquad
        \text{overlap } 1 - \frac{s^2}{\lambda^2},

    and is lost in the bulk, whose edge is :math:`2s`, otherwise. A batch's Hessian is always
    sharper than the true one: the noise picks the direction that suits it.

    Args:
        curvature: Largest eigenvalue :math:`\lambda` of the Hessian of the whole data.
        batch_size: B, samples in a batch, drawn without replacement.
        sigma: Standard deviation of an entry of one sample's Hessian (:func:`hessian_noise`).
        params: Number of parameters, P.
        samples: Samples in the data, N; by default infinitely many.

    Returns:
        :class:`BatchHessian`.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        Noise of s = 1/2 beside an eigenvalue of 1.

        >>> batch_hessian(1.0, 1600, sigma=1.0, params=400)
        BatchHessian(largest=1.25, edge=1.0, overlap=0.75)

    Reference:
        :cite:t:`granziol2020learning`.

    When not to use it:
        For numbers you rely on. A network's noise is not of independent entries: it is largest
        where the curvature is, so :math:`\lambda + a/b` fits with another a than
        :math:`P\sigma^2/\lambda`. Measure with :func:`~steepest.probes.lanczos`.
    """
    if not curvature >= 0 or not sigma >= 0:
        raise ValueError(f"give numbers >= 0, not {curvature=}, {sigma=}")
    if params < 1 or batch_size < 1 or (samples is not None and samples < batch_size):
        raise ValueError(
            f"give whole numbers >= 1, no batch beyond the data, not {params=}, {batch_size=}, "
            f"{samples=}"
        )
    # $1/b = 1/B - 1/N$
    share = 1 / batch_size - (1 / samples if samples else 0.0)
    # $s = \sigma \sqrt{P / b}$
    spread = sigma * math.sqrt(params * share)
    if curvature > spread:
        # $1 - s^2 / \lambda^2$
        overlap = 1 - (spread / curvature) ** 2
        # $\lambda' = \lambda + s^2 / \lambda$
        return BatchHessian(curvature + spread**2 / curvature, 2 * spread, overlap)
    # $\lambda' = 2s$
    return BatchHessian(2 * spread, 2 * spread, 0.0)


@method(paper=PAPER, title=TITLE, oracle="none", forward=0, backward=0)
def batch_learning_rate(
    curvature: float,
    batch_size: int,
    *,
    sigma: float,
    params: int,
    samples: int | None = None,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    damping: float = 1e-3,
) -> float:
    r"""Predict the largest stable learning rate as a function of the batch size.

    With :math:`\lambda'` and the edge :math:`2s` from :func:`batch_hessian`:

    .. math::

        \eta_{\text{sgd}} = \frac{2}{\lambda'}, \qquad
        \eta_{\text{momentum}} = \frac{2 (1 + \beta)}{\lambda'}, \qquad
        \eta_{\text{adam}} = \min\Bigl(\frac{2 (\lambda + \delta)}{\lambda'},
            \frac{2 \delta}{2 s}\Bigr).

    SGD's rate is :math:`2/\lambda` for large batches, half of that at the transition
    :math:`b = P\sigma^2/\lambda^2`, where the outlier joins the bulk, and falls with the square
    root of the batch size below. A curvature of :math:`\lambda + a/b` with a large a, which is
    what noise does that is largest where the curvature is, makes the rate *linear* in b until it
    reaches :math:`2/\lambda`. A method that divides by an estimate of curvature plus a damping
    :math:`\delta` takes its longest steps where the true curvature is nil. There the batch's is
    at most :math:`2s`, and its rate grows with the *square root* of the batch size.

    Args:
        curvature: Largest eigenvalue :math:`\lambda` of the Hessian of the whole data.
        batch_size: B, samples in a batch.
        sigma: Standard deviation of an entry of one sample's Hessian.
        params: Number of parameters, P.
        samples: Samples in the data, N; by default infinitely many.
        optimizer: ``sgd``, ``momentum`` (heavy ball) or ``adam`` (any method that divides by
            curvature).
        momentum: Heavy ball's :math:`\beta`.
        damping: What an adaptive method adds to the curvature that it divides by,
            :math:`\delta`, in the Hessian's units.

    Returns:
        The learning rate; infinity if nothing curves.

    Raises:
        ValueError: If a number is out of its range, or ``optimizer`` is not known.

    Example:
        At the transition, and far above it.

        >>> rates = [batch_learning_rate(1.0, b, sigma=1.0, params=100) for b in (100, 10**6)]
        >>> [round(rate, 3) for rate in rates]
        [1.0, 2.0]

    Reference:
        :cite:t:`granziol2020learning`.

    Deviations:
        The adaptive method's rate is stated for a preconditioner that knows the curvature
        :math:`\lambda`; its square root in b is the paper's. The paper's linear law for SGD
        needs noise that is not of independent entries: fit a, and use :math:`2/(\lambda + a/b)`.

    When not to use it:
        Instead of trying: a rate that is stable for one batch's Hessian may still be too large
        for a sequence of them, and the loss is not quadratic.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f"optimizer={optimizer!r} is not known: choose one of {', '.join(OPTIMIZERS)}"
        )
    if not 0 <= momentum < 1 or not damping > 0:
        raise ValueError(f"give a momentum in [0, 1), a damping > 0, not {momentum=}, {damping=}")
    found = batch_hessian(curvature, batch_size, sigma=sigma, params=params, samples=samples)
    if not found.largest:
        return math.inf
    if optimizer == "adam":
        steep = 2 * (curvature + damping) / found.largest
        return min(steep, 2 * damping / found.edge) if found.edge else steep
    return 2 * (1 + momentum if optimizer == "momentum" else 1.0) / found.largest


@method(paper=PAPER, title=TITLE, oracle="hvp", forward=2, backward=4)
def hessian_noise(
    batches: Sequence[Objective],
    whole: Objective,
    batch_size: int,
    *,
    samples: int | None = None,
    probes: int = 1,
    seed: int = 0,
) -> float:
    r"""Estimate the standard deviation of an entry of one sample's Hessian.

    The noise :math:`H_B - H` of a batch has :math:`P^2` entries of variance
    :math:`\sigma^2/b`, and the square of its Frobenius norm is what a normal vector meets on
    average:

    .. math::

        \frac{P^2 \sigma^2}{b} = \mathbb{E} \lVert H_B - H \rVert_F^2
        = \mathbb{E} \lVert (H_B - H) v \rVert^2, \qquad v \sim \mathcal{N}(0, I),
        \qquad \frac1b = \frac1B - \frac1N.

    The estimate of :math:`\sigma^2` has no bias; its root has a small one.

    Args:
        batches: Losses of some batches, of one size and drawn without replacement.
        whole: The loss on all the data, over the same parameters.
        batch_size: B, samples in a batch.
        samples: Samples in the data, N; by default infinitely many.
        probes: Vectors for each batch; two products each.
        seed: Seed of the vectors.

    Returns:
        :math:`\sigma`.

    Raises:
        ValueError: If there is no batch, it is as large as the data, or ``probes`` is not
            positive.

    Example:
        Two samples' Hessians of 1 and 3 around a mean of 2, drawn from a large population.

        >>> p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        >>> def f(c):
        ...     return Objective(lambda: 0.5 * c * (p**2).sum(), [p])
        >>> round(hessian_noise([f(1.0), f(3.0)], f(2.0), 1, probes=500), 1)
        1.0

    Reference:
        :cite:t:`granziol2020learning`.

    When not to use it:
        To compare models: :math:`\sigma` spreads all noise evenly over :math:`P^2` entries.
    """
    if not batches or probes < 1:
        raise ValueError("give at least one batch and one probe")
    if samples is not None and samples <= batch_size:
        raise ValueError(f"a batch of {batch_size} out of {samples} samples has no noise")
    params, names = whole.params, whole.names
    size = sum(p.numel() for p in params)
    start = offsets(params, names)
    square = 0.0
    for i in range(len(batches) * probes):
        v = [torch.zeros_like(p, requires_grad=False) for p in params]
        add_noise_(v, seed + i, 1.0, start=start)
        ours, all_ = batches[i // probes].hvp(v).product, whole.hvp(v).product
        square += _square(torch._foreach_sub(ours, all_))
    per_entry = square / (len(batches) * probes) / size**2
    return math.sqrt(per_entry / (1 / batch_size - (1 / samples if samples else 0.0)))


@method(paper=PAPER, title=TITLE, oracle="hvp", forward=20, backward=40)
def learn_rates(spectrum: Spectrum, damping: float = 0.0) -> Rates:
    r"""Learning rate and momentum from the two ends of a batch's spectrum.

    Heavy ball on a quadratic with curvatures in :math:`[\mu, L]` is fastest with

    .. math::

        \beta = \left(\frac{\sqrt\kappa - 1}{\sqrt\kappa + 1}\right)^2, \qquad
        \eta = \frac{4}{(\sqrt L + \sqrt\mu)^2} = \frac{(1 + \sqrt\beta)^2}{L}, \qquad
        \kappa = L / \mu.

    Here :math:`L = \lambda_{\max} + \delta`, the largest Ritz value, and
    :math:`\mu = |\lambda_{\min}| + \delta`. For a convex quadratic these are its own ends. For a
    network the lower end is negative, the mirror image of the bulk's edge: curvature below that
    cannot be told from noise, and is not waited for. Twenty products replace a grid of runs.

    Args:
        spectrum: From :func:`~steepest.probes.lanczos` on the loss of a batch of the size that
            will be trained with; a smaller one is sharper, and gives a smaller rate.
        damping: Margin :math:`\delta` added to both ends.

    Returns:
        :class:`Rates`, for SGD with momentum.

    Raises:
        ValueError: If ``damping`` is negative, or no curvature is positive.

    Example:
        >>> learn_rates(Spectrum(torch.tensor([1.0, 9.0]), torch.tensor([0.5, 0.5])))
        Rates(lr=0.25, momentum=0.25)

    Reference:
        :cite:t:`granziol2020learning`.

    Deviations:
        The pair is heavy ball's optimum for the two ends; the paper's learner, which we know by its
        description, may form it from the spectrum in another way.

    When not to use it:
        Once for a whole run: curvature changes most at the beginning. Ask again, or let a
        schedule warm up.
    """
    if not damping >= 0:
        raise ValueError(f"damping={damping!r} is not valid: give a number >= 0")
    # $\lambda_-, \; \lambda_+$
    low, high = float(spectrum.values[0]), float(spectrum.values[-1])
    if not high > 0:
        raise ValueError("no curvature is positive here: there is no largest stable rate")
    # $a = \lambda_+ + \delta$
    top = high + damping
    # $c = |\lambda_-| + \delta$
    bottom = min(abs(low) + damping, top)
    # $q = (\sqrt a - \sqrt c) / (\sqrt a + \sqrt c)$
    root = (math.sqrt(top) - math.sqrt(bottom)) / (math.sqrt(top) + math.sqrt(bottom))
    # $\eta = (1 + q)^2 / a, \quad \beta = q^2$
    return Rates(lr=(1 + root) ** 2 / top, momentum=root**2)


def _square(tensors: Sequence[Tensor]) -> float:
    return float(sum(t.double().square().sum() for t in tensors))
