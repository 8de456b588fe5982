"""Modules: layers and reparameterizations that change how a network descends."""

from steepest.nn._black_box import BlackBox as BlackBox
from steepest.nn._ghost_batch_norm import GhostBatchNorm as GhostBatchNorm
from steepest.nn._quantized_linear import QuantizedLinear as QuantizedLinear
from steepest.nn._quantized_linear import quantize as quantize
from steepest.nn._smoothed import Certificate as Certificate
from steepest.nn._smoothed import Smoothed as Smoothed
from steepest.nn._smoothed import clopper_pearson as clopper_pearson
