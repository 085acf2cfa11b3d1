"""Any torch module as the encoder: vectors here, with the paper's score and the learned one side by side.

Normal points lie on a ring; the encoder is a small network with a random but smooth first layer.
"""

import numpy as np
import torch
from torch import nn

from skjepa import JEPAScoreDetector, jepa_score, load_encoder

rng = np.random.default_rng(0)


def ring(n):
    angle, radius = rng.uniform(0, 2 * np.pi, n), rng.normal(1, 0.05, n)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])


torch.manual_seed(0)
module = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 16))
encoder = load_encoder(module, precision="float64")

normal, unseen, centre = ring(500), ring(200), rng.normal(0, 0.1, size=(200, 2))
print("paper's score, first points:", jepa_score(encoder, normal[:3]).round(2))

detector = JEPAScoreDetector(encoder, contamination=0.05).fit(normal)
print(f"flagged on the ring: {np.mean(detector.predict(unseen) == -1):.1%}")
print(f"flagged in its centre: {np.mean(detector.predict(centre) == -1):.1%}")
