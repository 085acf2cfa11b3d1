from .curation.collection import prune as prune
from .deployment.export import export_onnx as export_onnx
from .detectors.adapter import EmbeddingDetector as EmbeddingDetector
from .detectors.baselines import KNNDetector as KNNDetector
from .detectors.baselines import MahalanobisDetector as MahalanobisDetector
from .detectors.complexity import ComplexityDetector as ComplexityDetector
from .detectors.embedding_transformer import EmbeddingTransformer as EmbeddingTransformer
from .detectors.jepa_score import JEPAScoreDetector as JEPAScoreDetector
from .encoders.encoder import Encoder as Encoder
from .encoders.encoder import load_encoder as load_encoder
from .evaluation.benchmark import run_benchmark as run_benchmark
from .evaluation.model_selection import NormalKFold as NormalKFold
from .evaluation.model_selection import inlier_labels as inlier_labels
from .extraction.cost.estimate import estimate_cost as estimate_cost
from .extraction.encoder_pass import embed as embed
from .extraction.encoder_pass import extract as extract
from .extraction.extraction import Extraction as Extraction
from .extraction.layers import extract_layers as extract_layers
from .extraction.learned_directions import learn_directions as learn_directions
from .extraction.paper_score import jepa_score as jepa_score
from .inspection.volume_maps import learn_volume_explainer as learn_volume_explainer
from .jacobian.directions import Directions as Directions
from .jacobian.lanczos import lanczos_log_volume as lanczos_log_volume
from .pretraining.tables import VectorJEPA as VectorJEPA
from .reporting.report_file import report as report
from .scores.flow import FlowDensity as FlowDensity

__version__: str
