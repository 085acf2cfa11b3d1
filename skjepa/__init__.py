"""Pretrained JEPA-family encoders as calibrated anomaly detectors with a scikit-learn face.

Public names load on first use (PEP 562), so ``import skjepa`` alone imports neither torch nor timm.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "Encoder": "encoders",
    "load_encoder": "encoders",
    "Extraction": "extraction",
    "embed": "engine",
    "extract": "engine",
    "jepa_score": "engine",
    "Directions": "directions",
    "learn_directions": "subspace",
    "learn_volume_explainer": "volume_maps",
    "extract_layers": "layers",
    "lanczos_log_volume": "lanczos",
    "JEPAScoreDetector": "detectors",
    "MahalanobisDetector": "baselines",
    "KNNDetector": "baselines",
    "EmbeddingDetector": "baselines",
    "ComplexityDetector": "baselines",
    "FlowDensity": "flows",
    "EmbeddingTransformer": "transformers",
    "NormalKFold": "model_selection",
    "VectorJEPA": "vector",
    "inlier_labels": "model_selection",
    "run_benchmark": "benchmark",
    "prune": "curation",
    "report": "reporting",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'skjepa' has no attribute {name!r}")
    return getattr(import_module(f"skjepa.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
