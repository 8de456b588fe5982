"""Solvers: a problem, to a result."""

from steepest.solvers._direct_search import Proposal as Proposal
from steepest.solvers._direct_search import Search as Search
from steepest.solvers._direct_search import SearchStep as SearchStep
from steepest.solvers._direct_search import direct_search as direct_search
from steepest.solvers._directional_attack import DirectionalAttack as DirectionalAttack
from steepest.solvers._directional_attack import attack_direction as attack_direction
from steepest.solvers._directional_attack import directional_attack as directional_attack
from steepest.solvers._private_genetic import Queries as Queries
from steepest.solvers._private_genetic import Synthetic as Synthetic
from steepest.solvers._private_genetic import gaussian_mechanism as gaussian_mechanism
from steepest.solvers._private_genetic import genetic_search as genetic_search
from steepest.solvers._private_genetic import halfspaces as halfspaces
from steepest.solvers._private_genetic import marginals as marginals
from steepest.solvers._private_genetic import private_genetic as private_genetic
from steepest.solvers._private_genetic import zcdp_scale as zcdp_scale
