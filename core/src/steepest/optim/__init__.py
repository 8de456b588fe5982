"""Optimizers: answers of an oracle and state, to an update of the parameters."""

from steepest.optim._adabelief import AdaBelief as AdaBelief
from steepest.optim._adagrad_norm import AdaGradNorm as AdaGradNorm
from steepest.optim._adahessian import AdaHessian as AdaHessian
from steepest.optim._adam import Adam as Adam
from steepest.optim._adam import AdaMax as AdaMax
from steepest.optim._adam_atan2 import AdamAtan2 as AdamAtan2
from steepest.optim._adamw import SGDW as SGDW
from steepest.optim._adamw import AdamW as AdamW
from steepest.optim._averaged import Averaged as Averaged
from steepest.optim._base import Elementwise as Elementwise
from steepest.optim._cbo import CBO as CBO
from steepest.optim._cbo import ConsensusHopping as ConsensusHopping
from steepest.optim._cbo import consensus_weights as consensus_weights
from steepest.optim._clip_norm import ClipNorm as ClipNorm
from steepest.optim._diffgrad import DiffGrad as DiffGrad
from steepest.optim._dog import DoG as DoG
from steepest.optim._dog import LDoG as LDoG
from steepest.optim._estimated import Estimated as Estimated
from steepest.optim._factory import create as create
from steepest.optim._factory import find as find
from steepest.optim._factory import list as list
from steepest.optim._filter import Filter as Filter
from steepest.optim._gradient_noise import GradientNoise as GradientNoise
from steepest.optim._gradient_penalty import GradientPenalty as GradientPenalty
from steepest.optim._grams import Grams as Grams
from steepest.optim._gravity import Gravity as Gravity
from steepest.optim._grokfast import Grokfast as Grokfast
from steepest.optim._innaprop import INNA as INNA
from steepest.optim._innaprop import INNAprop as INNAprop
from steepest.optim._lawn import LAWN as LAWN
from steepest.optim._mezo import MeZO as MeZO
from steepest.optim._mirror_descent import MirrorDescent as MirrorDescent
from steepest.optim._oasis import OASIS as OASIS
from steepest.optim._opt_amsgrad import OptAMSGrad as OptAMSGrad
from steepest.optim._oracle import Answer as Answer
from steepest.optim._oracle import OracleDriven as OracleDriven
from steepest.optim._perp_grad import PerpGrad as PerpGrad
from steepest.optim._sam import SAM as SAM
from steepest.optim._sania import SANIA as SANIA
from steepest.optim._smb import SMB as SMB
from steepest.optim._snes import SNES as SNES
from steepest.optim._snes import rank_utilities as rank_utilities
from steepest.optim._triple_momentum import TripleMomentum as TripleMomentum
from steepest.optim._triple_momentum import tuned_momenta as tuned_momenta
from steepest.optim._udog import UDoG as UDoG
from steepest.optim._vrgd import VRGD as VRGD
from steepest.optim._vrgd import gsnr as gsnr
from steepest.optim._wrapper import Wrapper as Wrapper
from steepest.optim._xgrad import XGrad as XGrad

# For import *, which is not to replace the builtin list.
__all__ = [name for name in dir() if name[0] != "_" and name != "list"]
