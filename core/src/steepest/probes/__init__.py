"""Probes: measurements of a model on data, along the way; they change nothing."""

from steepest.probes._batch_hessian import BatchHessian as BatchHessian
from steepest.probes._batch_hessian import Rates as Rates
from steepest.probes._batch_hessian import batch_hessian as batch_hessian
from steepest.probes._batch_hessian import batch_learning_rate as batch_learning_rate
from steepest.probes._batch_hessian import hessian_noise as hessian_noise
from steepest.probes._batch_hessian import learn_rates as learn_rates
from steepest.probes._lanczos import Spectrum as Spectrum
from steepest.probes._lanczos import lanczos as lanczos
from steepest.probes._last_iterate import last_iterate_bound as last_iterate_bound
from steepest.probes._norm_test import GradientMoments as GradientMoments
from steepest.probes._norm_test import NormTest as NormTest
from steepest.probes._norm_test import coordinate_norm_test as coordinate_norm_test
from steepest.probes._norm_test import norm_test as norm_test
from steepest.probes._snr_pruning import Ticket as Ticket
from steepest.probes._snr_pruning import prune_lowest as prune_lowest
from steepest.probes._snr_pruning import signal_to_noise as signal_to_noise
from steepest.probes._snr_pruning import snr_pruning as snr_pruning
from steepest.probes._stability import Stability as Stability
from steepest.probes._stability import instability_index as instability_index
from steepest.probes._stability import stability as stability
from steepest.probes._stability import stability_threshold as stability_threshold
