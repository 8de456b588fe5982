"""Schedules: hyper-parameters over the steps of a run, given beforehand, read off, or learned."""

from steepest.schedules._dac import Environment as Environment
from steepest.schedules._dac import QController as QController
from steepest.schedules._dac import QuadraticDescent as QuadraticDescent
from steepest.schedules._dac import SigmoidTracking as SigmoidTracking
from steepest.schedules._dac import constant as constant
from steepest.schedules._dac import play as play
from steepest.schedules._one_cycle import OneCycle as OneCycle
from steepest.schedules._step_law import Bowl as Bowl
from steepest.schedules._step_law import PowerLaw as PowerLaw
from steepest.schedules._step_law import StepLaw as StepLaw
from steepest.schedules._step_law import fit_bowl as fit_bowl
from steepest.schedules._step_law import fit_power_law as fit_power_law
from steepest.schedules._step_law import step_law as step_law
