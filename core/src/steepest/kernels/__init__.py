"""Tensors to tensors: the rule engine and its backends.

A rule is one update written as scalar arithmetic; ``apply`` runs it on many tensors with torch,
numba or Triton.
"""

from steepest.kernels import _xp_torch as xp  # noqa: F401  (rules import it from here)
from steepest.kernels._apply import apply as apply
from steepest.kernels._apply import available_backends as available_backends
from steepest.kernels._compose import compose as compose
from steepest.kernels._javascript import XP as XP
from steepest.kernels._javascript import javascript as javascript
from steepest.kernels._noise import add_noise_ as add_noise_
from steepest.kernels._noise import check_kind as check_kind
from steepest.kernels._noise import noise as noise
from steepest.kernels._noise import offsets as offsets
from steepest.kernels._noise import split_seed as split_seed
from steepest.kernels._rule import REDUCTIONS as REDUCTIONS
from steepest.kernels._rule import RULES as RULES
from steepest.kernels._rule import Rule as Rule
from steepest.kernels._rule import reduction as reduction
from steepest.kernels._rule import rule as rule
