r"""A classifier that is constant in a ball around each input, with high confidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor


class Certificate(NamedTuple):
    """Answer of :meth:`Smoothed.certify` about n inputs."""

    prediction: Tensor
    """Class of each input, int64 of shape (n,); -1 where it abstains."""
    radius: Tensor
    """Within it, in the 2-norm, no input has another class; of shape (n,), 0 where it abstains."""


@final
class Smoothed(torch.nn.Module):
    r"""Randomized smoothing: the class that a classifier gives most often to noisy copies.

    .. math::

        g(x) = \arg\max_c \Pr[f(x + \delta) = c], \qquad \delta \sim \mathcal N(0, \sigma^2 I).

    Whatever :math:`f` is, :math:`g` cannot change fast. If its class has probability at least
    :math:`p > \frac12`, it is the same within :math:`R = \sigma\, \Phi^{-1}(p)` of :math:`x`. The
    bound :math:`p` is found by sampling: a few copies choose the class, many others count it, and
    :math:`p` is the lower end of the Clopper-Pearson interval of that count. So the statement
    about one input is false with probability at most ``alpha``.

    Args:
        classifier: Inputs (n, ...) to scores (n, classes). A black box will do; a denoiser in
            front of it is what makes it fit for noise.
        sigma: Standard deviation :math:`\sigma` of the noise, in the input's units.
        seed: Seed of the noise.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        A classifier that is sure of one half of the plane: the radius is the distance to the
        other, less what sampling costs.

        >>> import torch
        >>> half = lambda x: torch.stack([x[:, 0], -x[:, 0]], 1)
        >>> found = Smoothed(half, sigma=1.0).certify(torch.tensor([[1.0, 5.0]]), samples=100_000)
        >>> found.prediction, bool(0.97 < found.radius < 1.0)
        (tensor([0]), True)

    Reference:
        :cite:t:`cohen2019certified`.

    When not to use it:
        Without a classifier that is right about noisy inputs: what is certified is then little,
        or wrong. And for other norms than the 2-norm.
    """

    def __init__(self, classifier: Callable[[Tensor], Tensor], sigma: float, seed: int = 0) -> None:
        super().__init__()
        if not (math.isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma={sigma!r} is not valid: give a finite number > 0")
        self.classifier = classifier
        self.sigma = sigma
        self.seed = seed

    @torch.no_grad()
    def counts(self, x: Tensor, samples: int, seed: int, chunk: int = 4096) -> Tensor:
        """How often each class is chosen among noisy copies, int64 of shape (n, classes)."""
        rng = torch.Generator(x.device).manual_seed(seed)
        together = max(1, chunk // max(1, len(x)))
        total: Tensor | None = None
        for first in range(0, samples, together):
            k = min(together, samples - first)
            noise = torch.randn(k, *x.shape, generator=rng, dtype=x.dtype, device=x.device)
            scores = self.classifier((x + self.sigma * noise).flatten(0, 1))
            votes = torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1])
            part = votes.reshape(k, len(x), -1).sum(0)
            total = part if total is None else total + part
        assert total is not None
        return total

    def forward(self, x: Tensor, samples: int = 100) -> Tensor:
        """Shares of the classes among noisy copies, of shape (n, classes)."""
        return self.counts(x, samples, self.seed) / samples

    def certify(
        self, x: Tensor, selection: int = 100, samples: int = 1000, alpha: float = 1e-3
    ) -> Certificate:
        """Class and radius of each input.

        Args:
            x: Inputs (n, ...).
            selection: Copies that choose the class.
            samples: Other copies, that count it.
            alpha: Largest probability that the statement about an input is false.

        Raises:
            ValueError: If a number of copies is below 1 or ``alpha`` is outside of (0, 1).
        """
        for name, number in (("selection", selection), ("samples", samples)):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"{name}={number!r} is not valid: give a whole number >= 1")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha!r} is not valid: give a number in (0, 1)")
        # $c = \arg\max_{c'} \#\{i : f(x + \delta_i) = c'\}$
        chosen = self.counts(x, selection, self.seed).argmax(1)
        votes = self.counts(x, samples, self.seed + 1)
        # $k = \#\{i \le n : f(x + \delta_i) = c\}$
        hits = votes.gather(1, chosen[:, None])[:, 0]
        # $p: \; \Pr[\mathrm{Bin}(n, p) \ge k] = \alpha$
        share = clopper_pearson(hits, samples, alpha)
        # $p > \frac12$
        sure = share > 0.5
        # $R = \sigma\, \Phi^{-1}(\max(p, \frac12))$
        radius = self.sigma * torch.special.ndtri(share.clamp_min(0.5))
        prediction = torch.where(sure, chosen, -1)
        return Certificate(prediction, torch.where(sure, radius, 0.0))


def clopper_pearson(hits: Tensor, samples: int, alpha: float) -> Tensor:
    r"""Lower confidence bound of a probability, from a count.

    The largest :math:`p` with :math:`\Pr[\mathrm{Bin}(n, p) \ge k] \le \alpha`.

    Args:
        hits: Counts :math:`k`, whole numbers of any shape.
        samples: Draws :math:`n`.
        alpha: Probability that the bound is above the truth.

    Returns:
        Bounds, float64 of the counts' shape.

    Example:
        If all of n draws hit, the bound is the n-th root of alpha.

        >>> bound = clopper_pearson(torch.tensor([100]), samples=100, alpha=0.001)
        >>> bound.item() - 0.001**0.01 < 1e-12
        True
    """
    known, place = torch.unique(hits, return_inverse=True)
    k = torch.arange(samples + 1, dtype=torch.float64, device=hits.device)
    ways = math.lgamma(samples + 1) - torch.lgamma(k + 1) - torch.lgamma(samples - k + 1)
    bounds = []
    for count in known.tolist():
        low, high = 0.0, 1.0
        for _ in range(60):
            p = (low + high) / 2
            logs = ways[count:] + k[count:] * math.log(p) + (samples - k[count:]) * math.log1p(-p)
            tail = logs.logsumexp(0).exp().item()
            low, high = (p, high) if tail <= alpha else (low, p)
        bounds.append(low if count else 0.0)
    return torch.tensor(bounds, dtype=torch.float64, device=hits.device)[place]
