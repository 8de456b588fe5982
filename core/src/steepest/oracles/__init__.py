"""(loss, parameters, batch) → an exact answer: values, gradients, curvature products, rankings."""

from steepest.oracles._composite import Composite as Composite
from steepest.oracles._objective import Derivative as Derivative
from steepest.oracles._objective import Gradient as Gradient
from steepest.oracles._objective import HessianProduct as HessianProduct
from steepest.oracles._objective import Objective as Objective

__all__ = ["Composite", "Derivative", "Gradient", "HessianProduct", "Objective"]
