"""The namespace ``xp`` of an update rule, for Triton: device functions on blocks.

Each is a function of its own, because Triton's interpreter patches ``triton.language`` where a
function looks it up, and a bare ``tl.sqrt`` taken at import would stay unpatched.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def abs(x):
    return tl.abs(x)


@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def log(x):
    return tl.log(x)


@triton.jit
def sqrt(x):
    return tl.sqrt(x)


@triton.jit
def sign(x):
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def where(condition, a, b):
    return tl.where(condition, a, b)


@triton.jit
def atan2(y, x):
    # Triton has no atan of its own, and libdevice's is not there for the interpreter.
    # Reduce to z = min/max in [0, 1], then to |z| <= tan(pi/8) by the half-angle identity
    # atan(z) = pi/4 + atan((z - 1) / (z + 1)), and sum the alternating series by Horner.
    ay = tl.abs(y)
    ax = tl.abs(x)
    low = tl.minimum(ax, ay)
    high = tl.maximum(ax, ay)
    z = low / tl.where(high == 0.0, high + 1.0, high)
    far = z > 0.4142135623730950488
    w = tl.where(far, (z - 1.0) / (z + 1.0), z)
    q = w * w
    terms: tl.constexpr = 10 if y.dtype == tl.float32 else 22
    series = tl.zeros_like(w)
    for k in tl.static_range(terms):
        series = 1.0 / (2 * (terms - 1 - k) + 1) - q * series
    # A Python number times a tensor keeps the tensor's precision; in tl.where it would not.
    angle = w * series + far.to(y.dtype) * 0.7853981633974483
    angle = tl.where(ay > ax, 1.5707963267948966 - angle, angle)
    angle = tl.where(x < 0.0, 3.141592653589793 - angle, angle)
    return tl.where(y < 0.0, -angle, angle)
