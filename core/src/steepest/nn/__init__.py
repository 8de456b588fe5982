"""Modules: layers and reparameterizations that change how a network descends."""

from steepest.nn._ghost_batch_norm import GhostBatchNorm as GhostBatchNorm
