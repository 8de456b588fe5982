"""steepest: optimizers, and the estimators of gradients and curvature that feed them."""

__version__ = "0.1.0.dev0"
