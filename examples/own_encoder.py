"""
Use any torch module as the encoder
===================================

Wrap your own module with ``load_encoder``. In this example the inputs are points in the plane, normal points lie on a
ring, and the encoder is a small smooth network with random weights. The paper's score and the learned ones are shown
side by side.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from skjepa import JEPAScoreDetector, jepa_score, load_encoder

rng = np.random.default_rng(0)


def ring(n):
    angle, radius = rng.uniform(0, 2 * np.pi, n), rng.normal(1, 0.05, n)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])


# %%
# Wrap it
# -------
# A module must map ``(B, ...)`` to ``(B, K)``, each row from its own sample. Scoring does not train or change it.

torch.manual_seed(0)
module = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 16))
encoder = load_encoder(module, precision="float64")

normal, unseen, centre = ring(500), ring(200), rng.normal(0, 0.1, size=(200, 2))
print("paper's score, first points:", jepa_score(encoder, normal[:3]).round(2))

detector = JEPAScoreDetector(encoder, contamination=0.05).fit(normal)
print(f"flagged on the ring: {np.mean(detector.predict(unseen) == -1):.1%}")
print(f"flagged in its centre: {np.mean(detector.predict(centre) == -1):.1%}")

# %%
# What each score sees
# --------------------
# The maps show the scores over the plane by rank; brighter = more normal. This encoder was never trained, so its volume
# alone carries no information about the ring. The full formula and the default score learn where normal points lie,
# and find the ring.

axis = np.linspace(-1.8, 1.8, 61)
plane = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
figure, axes = plt.subplots(1, 3, figsize=(9, 3.8), layout="constrained", sharey=True)
titles = {"jepa": "volume alone (JEPA-SCORE)", "density": "volume + log q(z)", "joint": "default"}
for square, (formula, title) in zip(axes, titles.items(), strict=True):
    model = JEPAScoreDetector(encoder, formula=formula, contamination=0.05).fit(normal)
    score = model.score_samples(plane)
    square.imshow(rankdata(score).reshape(61, 61), origin="lower", extent=(-1.8, 1.8, -1.8, 1.8), cmap="viridis")
    square.contour(axis, axis, score.reshape(61, 61), levels=[model.offset_], colors="#ff6f5e", linestyles="solid")
    square.scatter(*normal[:150].T, s=3, color="white", alpha=0.7)
    square.set(title=title, xticks=[-1, 0, 1], yticks=[-1, 0, 1])
figure.supxlabel("white: normal points; red: threshold, 5 % of them outside", fontsize=10)
plt.show()
