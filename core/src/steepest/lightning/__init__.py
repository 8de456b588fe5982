"""Lightning: the tasks that the book's chapters share, and glue."""

from steepest.lightning._adaptive_batch_size import AdaptiveBatchSize as AdaptiveBatchSize
from steepest.lightning._cache import DownloadError as DownloadError
from steepest.lightning._cifar10 import CIFAR10Data as CIFAR10Data
from steepest.lightning._classifier import Classifier as Classifier
from steepest.lightning._diabetes import DiabetesData as DiabetesData
from steepest.lightning._digits import DigitsData as DigitsData
from steepest.lightning._fzoos import FZooS as FZooS
from steepest.lightning._grammar import Grammar as Grammar
from steepest.lightning._grammar_data import GrammarData as GrammarData
from steepest.lightning._language_model import LanguageModel as LanguageModel
from steepest.lightning._loader import EpochLoader as EpochLoader
from steepest.lightning._lr_range_test import LRRangeTest as LRRangeTest
from steepest.lightning._oracles import Oracles as Oracles
from steepest.lightning._quiet import quiet as quiet
from steepest.lightning._random_state import RandomState as RandomState
from steepest.lightning._regressor import Regressor as Regressor
from steepest.lightning._shared_randomness import SharedRandomness as SharedRandomness
from steepest.lightning._surface_module import SurfaceModule as SurfaceModule
from steepest.lightning._transformer import Transformer as Transformer
from steepest.lightning._wikitext2 import WikiText2Data as WikiText2Data
from steepest.lightning._zo2 import ZO2 as ZO2
