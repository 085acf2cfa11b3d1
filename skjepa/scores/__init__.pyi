from .densities import ConditionalDensity as ConditionalDensity
from .densities import DirectionDensity as DirectionDensity
from .densities import GaussianDensity as GaussianDensity
from .densities import KNNDensity as KNNDensity
from .densities import SpectrumDensity as SpectrumDensity
from .flow import FlowDensity as FlowDensity
from .model import ScoreModel as ScoreModel
from .model import joint_weights as joint_weights
