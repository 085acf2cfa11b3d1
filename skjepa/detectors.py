"""`JEPAScoreDetector`: the scikit-learn face. Contracts and thresholds; the mathematics lives below."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skjepa._validation import check_number, seed_from
from skjepa.calibration import conformal_offset, conformal_p_values, contamination_offset
from skjepa.encoders import Encoder, FingerprintError, load_encoder
from skjepa.engine import extract
from skjepa.extraction import Extraction, require_same_settings
from skjepa.scores import fit_score_model
from skjepa.sources import Source, as_source
from skjepa.views import Transform
