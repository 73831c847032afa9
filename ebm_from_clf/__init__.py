r"""Turn a pretrained timm classifier into a class-conditional generator, and keep it a classifier.

.. math:: p_c(x) = \exp(\gamma f_c(x)) \, q(x) / Z_c
"""

from .chains import ChainStore as ChainStore
from .checkpoint import load as load
from .checkpoint import save as save
from .contrastive import Contrastive as Contrastive
from .convert import convert as convert
from .edit import edit as edit
from .energy import ClassifierEnergy as ClassifierEnergy
from .errors import Diverged as Diverged
from .errors import UsageError as UsageError
from .evaluate import evaluate as evaluate
from .finetune import Finetuner as Finetuner
from .finetune import finetune as finetune
from .fitted import FittedGaussian as FittedGaussian
from .langevin import Langevin as Langevin
from .mixture import ClassMixture as ClassMixture
from .muon import Muon as Muon
from .objective import Objective as Objective
from .reference import Reference as Reference
from .reference import WhiteNoise as WhiteNoise
from .sample import sample as sample
from .settings import Settings as Settings
from .smooth import Smoothing as Smoothing
from .space import PixelSpace as PixelSpace
from .spectral import SpectralNoise as SpectralNoise
from .start import ClassGaussian as ClassGaussian
from .start import DataStart as DataStart
from .start import ReferenceStart as ReferenceStart
from .start import UniformStart as UniformStart
from .switches import topdown as topdown
from .units import units as units

__version__ = "0.1.0"
