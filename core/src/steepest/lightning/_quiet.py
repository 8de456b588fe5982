"""Less noise from Lightning."""

from __future__ import annotations

import logging
import warnings

NOISE = (
    # Advice for data that is read from disk; ours is in memory.
    r"The '\w+' does not have many workers",
    # Lightning's own use of PyTorch, on every call, whatever the user does.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


def hush() -> None:
    """Ignore warnings that say nothing of the user's code or data."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


def quiet() -> None:
    """Drop Lightning's announcements (devices, seeds, tips) and keep its warnings.

    For notebooks and command lines, where they bury what one wants to read.

    Example:
        >>> quiet()
        >>> logging.getLogger("lightning.pytorch").level == logging.WARNING
        True
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    hush()
