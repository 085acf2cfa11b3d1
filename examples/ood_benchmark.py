"""
Benchmark detectors on your own images
======================================

Compare the default detector with Mahalanobis distance, nearest neighbours, an isolation forest and a control that sees
no content, with one pass of the encoder for all. Fit, calibration and test images never overlap.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import IsolationForest

from skjepa import (
    ComplexityDetector,
    EmbeddingDetector,
    JEPAScoreDetector,
    KNNDetector,
    MahalanobisDetector,
    run_benchmark,
)
from skjepa.data import demo_images

# %%
# Normal images, sets of outliers, detectors
# ------------------------------------------
# The images are arrays here; folders, lists of files and data sets work as well. The normal images are split at random:
# half to fit on, a fifth to calibrate, the rest to test.

images = demo_images(seed=0)
normal = np.concatenate([images.pop("fit"), images.pop("photographs")])
result = run_benchmark(
    normal,
    {name: group[:60] for name, group in images.items()},
    {
        "skjepa": JEPAScoreDetector(),
        "JEPA-SCORE alone": JEPAScoreDetector(formula="jepa"),
        "Mahalanobis++": MahalanobisDetector(normalize=True),
        "kNN": KNNDetector(),
        "isolation forest": EmbeddingDetector(IsolationForest(random_state=0)),
        "bits per pixel": ComplexityDetector(),
    },
    limit=240,
    n_resamples=200,
)

# %%
# Tables
# ------
# The tables show AUROC by set, paired tests against the first detector with Holm's correction, and the share of normal
# test images flagged at conformal thresholds. ``result.save(folder)`` writes these tables, all scores, and figures.

print(result.to_markdown())

# %%
# The same as a figure
# --------------------
# No detector leads everywhere. Below .5 (red) a detector ranks outliers as *more* typical than normal images.

detectors, sets = result.detectors, result.sets
auroc = np.array([[result.summary["detectors"][d]["sets"][s]["auroc"]["value"] for s in sets] for d in detectors])
figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
shown = axes.imshow(auroc, cmap="RdBu", vmin=0, vmax=1, aspect="auto")
axes.set_xticks(range(len(sets)), sets)
axes.set_yticks(range(len(detectors)), detectors)
for (row, column), value in np.ndenumerate(auroc):
    axes.text(
        column, row, f"{value:.2f}", ha="center", va="center", color="white" if abs(value - 0.5) > 0.3 else "black"
    )
axes.spines[:].set_visible(False)
figure.colorbar(shown, label="AUROC")
plt.show()
