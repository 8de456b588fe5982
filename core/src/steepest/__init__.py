"""steepest: optimizers, and the estimators of gradients and curvature that feed them."""

from steepest._listing import listing as listing

__version__ = "0.1.0.dev0"
