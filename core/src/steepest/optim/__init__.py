"""Optimizers: answers of an oracle and state, to an update of the parameters."""

from steepest.optim._adahessian import AdaHessian as AdaHessian
from steepest.optim._adam import Adam as Adam
from steepest.optim._adam import AdaMax as AdaMax
from steepest.optim._adam_atan2 import AdamAtan2 as AdamAtan2
from steepest.optim._adamw import SGDW as SGDW
from steepest.optim._adamw import AdamW as AdamW
from steepest.optim._base import Elementwise as Elementwise
from steepest.optim._estimated import Estimated as Estimated
from steepest.optim._factory import create as create
from steepest.optim._factory import find as find
from steepest.optim._factory import list as list
from steepest.optim._filter import Filter as Filter
from steepest.optim._mezo import MeZO as MeZO
from steepest.optim._opt_amsgrad import OptAMSGrad as OptAMSGrad
from steepest.optim._oracle import Answer as Answer
from steepest.optim._oracle import OracleDriven as OracleDriven
from steepest.optim._sam import SAM as SAM
from steepest.optim._wrapper import Wrapper as Wrapper
