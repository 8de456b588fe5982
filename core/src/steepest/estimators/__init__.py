"""Cheap answers for dear ones: estimates of gradients and curvature from an oracle's answers."""

from steepest.estimators._extrapolation import extrapolate as extrapolate

__all__ = ["extrapolate"]
