"""Build one torch module from a fitted detector, which maps a batch and a threshold to scores and labels."""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from skjepa.deployment.score_modules import LayeredModule, Numbers
from skjepa.detectors.rates import n_allowed
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.batches.pooling import Layer, read_layers
from skjepa.scores.layered import OUTPUT, LayeredScore

Reading = tuple[Encoder, tuple[Layer, ...], str]
"""An encoder, the layers that are read from it, and the dtype in which they are kept."""


class EncoderModule(nn.Module):
    """Map a batch to pooled layers by name, float64, with the embedding last; includes the normalisation."""

    def __init__(self, encoder: Encoder, layers: tuple[Layer, ...], dtype: str) -> None:
        super().__init__()
        self.module = copy.deepcopy(encoder.module).to(encoder.dtype).eval().requires_grad_(False)
        self.preprocessing, self.layers, self.layers_dtype = encoder.preprocessing, layers, dtype

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x if self.preprocessing is None else self.preprocessing.normalise(x)
        output, parts = read_layers(self.module, self.module, self.layers, x, self.layers_dtype)
        names = [layer.name for layer in self.layers]
        return {name: part.double() for name, part in zip([*names, OUTPUT], [*parts, output], strict=True)}


class CrossMargin(Numbers):
    """Compute `cross_conformal_margin` of scores by each model, (n_models, n_samples)."""

    def __init__(self, fold_scores: list[np.ndarray], level: float) -> None:
        super().__init__()
        self.hold(**{f"fold_{i}": scores for i, scores in enumerate(fold_scores)})
        self.k = max(1, n_allowed(level, sum(map(len, fold_scores))))

    def forward(self, scores: list[Tensor]) -> Tensor:
        margins = [score[:, None] - self.get_buffer(f"fold_{i}") for i, score in enumerate(scores)]
        return torch.topk(torch.cat(margins, dim=1), self.k, dim=1).values[:, -1]


class DetectorModule(nn.Module):
    """Compute scores, decisions and labels of a batch; with folds also the scores by each model, (n_models, n_samples).

    Parameters
    ----------
    readings : list of (Encoder, layers, dtype)
        The reading of each model.
    models : list of LayeredScore
    margin : CrossMargin or None
        None without folds.
    """

    def __init__(self, readings: list[Reading], models: list[LayeredScore], margin: CrossMargin | None) -> None:
        super().__init__()
        different: list[Reading] = []
        self.encoder_of = []  # folds share a frozen encoder
        for reading in readings:
            if reading not in different:
                different.append(reading)
            self.encoder_of.append(different.index(reading))
        self.encoders = nn.ModuleList(EncoderModule(*reading) for reading in different)
        self.models = nn.ModuleList(LayeredModule(model) for model in models)
        self.margin = margin

    def forward(self, x: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        layers = [encoder(x) for encoder in self.encoders]
        scores = [model(layers[i]) for model, i in zip(self.models, self.encoder_of, strict=True)]
        score = scores[0] if self.margin is None else self.margin(scores)
        decision = score - threshold
        label = torch.where(decision >= 0, 1, -1)
        return (score, decision, label) if self.margin is None else (score, decision, label, torch.stack(scores))
