"""Cheap answers for dear ones: estimates of gradients and curvature from an oracle's answers."""

from steepest.estimators._base import GradientEstimator as GradientEstimator
from steepest.estimators._base import Projection as Projection
from steepest.estimators._base import RandomEstimator as RandomEstimator
from steepest.estimators._extrapolation import extrapolate as extrapolate
from steepest.estimators._forward import ForwardGradient as ForwardGradient
from steepest.estimators._hutchinson import Curvature as Curvature
from steepest.estimators._hutchinson import hutchinson as hutchinson
from steepest.estimators._spsa import SPSA as SPSA
