"""Cheap answers for dear ones: estimates of gradients and curvature from an oracle's answers."""

from steepest.estimators._base import GradientEstimator as GradientEstimator
from steepest.estimators._base import Projection as Projection
from steepest.estimators._base import RandomEstimator as RandomEstimator
from steepest.estimators._coordinates import Coordinates as Coordinates
from steepest.estimators._extrapolation import extrapolate as extrapolate
from steepest.estimators._feature_reuse import FeatureReuse as FeatureReuse
from steepest.estimators._forward import ForwardGradient as ForwardGradient
from steepest.estimators._fourier import Features as Features
from steepest.estimators._hutchinson import Curvature as Curvature
from steepest.estimators._hutchinson import hutchinson as hutchinson
from steepest.estimators._per_pixel import PerPixel as PerPixel
from steepest.estimators._per_pixel import Pixels as Pixels
from steepest.estimators._per_pixel import credit as credit
from steepest.estimators._rank import NoisyJudge as NoisyJudge
from steepest.estimators._rank import RankGradient as RankGradient
from steepest.estimators._rank import rank_search as rank_search
from steepest.estimators._rank import rank_weights as rank_weights
from steepest.estimators._small_weights import SmallWeights as SmallWeights
from steepest.estimators._spsa import SPSA as SPSA
from steepest.estimators._subspace_gradient import SubspaceGradient as SubspaceGradient
from steepest.estimators._timesteps import partial_uniform as partial_uniform
from steepest.estimators._trajectory import Surrogate as Surrogate
from steepest.estimators._trajectory import TrajectoryGradient as TrajectoryGradient
from steepest.estimators._trajectory import fit_surrogate as fit_surrogate
from steepest.estimators._zo_grasp import zo_grasp as zo_grasp
