"""Objectives: outputs, or points, to a loss."""

from steepest.objectives._rasterizer import Raster as Raster
from steepest.objectives._rasterizer import mesh as mesh
from steepest.objectives._rasterizer import rasterize as rasterize
from steepest.objectives._stablemax import stablemax_cross_entropy as stablemax_cross_entropy
from steepest.objectives._surfaces import SURFACES as SURFACES
from steepest.objectives._surfaces import Surface as Surface
from steepest.objectives._surfaces import beale as beale
from steepest.objectives._surfaces import himmelblau as himmelblau
from steepest.objectives._surfaces import plateau as plateau
from steepest.objectives._surfaces import ravine as ravine
from steepest.objectives._surfaces import rosenbrock as rosenbrock
from steepest.objectives._surfaces import saddle as saddle
from steepest.objectives._surfaces import surface as surface
from steepest.objectives._vanishing import vanishing_penalty as vanishing_penalty
