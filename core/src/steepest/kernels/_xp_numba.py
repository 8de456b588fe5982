"""The namespace ``xp`` of an update rule, for numba: scalar functions, inlined into the loop."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit
def abs(x):
    return np.abs(x)


@njit(error_model="numpy")
def exp(x):
    # As for atan2: arithmetic where np.exp would be a call, and Cephes' rational function, to
    # within two roundings of float64. Below -708 the result is 0, without subnormal numbers.
    inside = x if x > -708.0 else -708.0
    inside = inside if inside < 709.0 else 709.0
    n = np.floor(inside * 1.4426950408889634 + 0.5)
    r = inside - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6
    z = r * r
    p = (1.26177193074810590878e-4 * z + 3.02994407707441961300e-2) * z + 1.0
    q = (3.00198505138664455042e-6 * z + 2.52448340349684104192e-3) * z
    q = (q + 2.27265548208155028766e-1) * z + 2.0
    e = 1.0 + 2.0 * (r * p / (q - r * p))
    e = e * np.int64((np.int64(n) + 1023) << 52).view(np.float64)  # times two to the n
    e = e if x < 709.0 else np.inf
    e = e if x > -708.0 else 0.0
    return e if x == x else x


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


@njit(error_model="numpy")
def atan2(y, x):
    # math.atan2 is a call for each element; this is arithmetic, which vectorizes. The rational
    # function is that of the Cephes library, to within a rounding of float64.
    across, up = np.abs(x), np.abs(y)
    large = across if across > up else up
    small = up if across > up else across
    ratio = 1.0 if small == large else small / large
    ratio = 0.0 if large == 0.0 and small == 0.0 else ratio
    steep = ratio > 0.66
    t = (ratio - 1.0) / (ratio + 1.0) if steep else ratio
    z = t * t
    p = -8.750608600031904122785e-1 * z - 1.615753718733365076637e1
    p = (p * z - 7.500855792314704667340e1) * z - 1.228866684490136173410e2
    p = p * z - 6.485021904942025371773e1
    q = (z + 2.485846490142306297962e1) * z + 1.650270098316988542046e2
    q = (q * z + 4.328810604912902668951e2) * z + 4.853903996359136964868e2
    q = q * z + 1.945506571482613964425e2
    angle = t + t * z * (p / q)
    angle = angle + 0.25 * np.pi if steep else angle
    angle = 0.5 * np.pi - angle if up > across else angle
    angle = np.pi - angle if np.copysign(1.0, x) < 0 else angle
    return np.copysign(angle, y)


@njit
def where(condition, a, b):
    return a if condition else b
