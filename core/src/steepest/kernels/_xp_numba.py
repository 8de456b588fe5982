"""The namespace ``xp`` of an update rule, for numba: scalar functions, inlined into the loop."""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit
def abs(x):
    return np.abs(x)


@njit
def exp(x):
    return np.exp(x)


@njit
def log(x):
    return np.log(x)


@njit
def sqrt(x):
    return np.sqrt(x)


@njit
def sign(x):
    return np.sign(x)


@njit
def maximum(a, b):
    return a if (a > b or a != a) else b


@njit
def minimum(a, b):
    return a if (a < b or a != a) else b


@njit
def atan2(y, x):
    return math.atan2(y, x)


@njit
def where(condition, a, b):
    return a if condition else b
