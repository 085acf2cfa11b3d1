"""
Clean a collection
==================

Find unwanted images in a collection. The collection holds photographs and, unlabelled among them, a sixth of scans,
terrain and digits. ``prune`` reports which images to keep; it moves and deletes nothing.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import precision_recall_curve, roc_auc_score

from skjepa import JEPAScoreDetector, extract, prune
from skjepa.data import demo_images

images = demo_images(seed=0)
photographs, reference = images["fit"][:150], images["photographs"][:150]
kinds = ("MRI scan", "elevation model", "digits")
collection = np.concatenate([photographs, *(images[kind][:10] for kind in kinds)])
kind_of = np.repeat(["photograph", *kinds], [150, 10, 10, 10])
is_junk = kind_of != "photograph"

# %%
# Three ways to score
# -------------------
# JEPA-SCORE depends only on the encoder. The default detector learns from the collection, junk included, and scores
# each image with a model that was fitted without it. If a clean reference exists, the detector can learn from that.

measured, clean = extract("bundled", collection), extract("bundled", reference)
ways = {
    "JEPA-SCORE, no reference": prune(measured, keep=0.8),
    "default, learned from the collection": prune(measured, keep=0.8, detector=JEPAScoreDetector()),
    "default, learned from a clean reference": prune(measured, keep=0.8, normal=clean),
}
for name, pruned in ways.items():
    dropped = ~pruned.kept
    counts = ", ".join(f"{np.sum(dropped & (kind_of == kind))} of 10 {kind}" for kind in kinds)
    auroc = roc_auc_score(is_junk, -pruned.scores)
    print(f"{name}: AUROC {auroc:.2f}; dropped {counts}, {np.sum(dropped & ~is_junk)} of 150 photographs")

# %%
# Precision against recall
# ------------------------
# A clean reference is worth having. Without one, neither way does much better than chance on a collection as small and
# as mixed as this: the elevation model is smooth, which JEPA-SCORE ranks as typical, and similar tiles of junk make
# each other look normal.

figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
for (name, pruned), colour in zip(ways.items(), ("#E69F00", "#56B4E9", "#0072B2"), strict=True):
    precision, recall, _ = precision_recall_curve(is_junk, -pruned.scores)
    axes.plot(recall, precision, color=colour, label=name)
axes.axhline(is_junk.mean(), color="#555555", linestyle=":", label="at random")
axes.set(xlabel="share of the junk found", ylabel="share of junk among what is dropped", xlim=(0, 1), ylim=(0, 1.02))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, fontsize=9)
plt.show()

# %%
# What is dropped first
# ---------------------
# The images with the lowest scores, with the clean reference.

order = np.argsort(ways["default, learned from a clean reference"].scores)
figure, axes = plt.subplots(2, 10, figsize=(9, 2.3), layout="constrained")
for square, i in zip(axes.ravel(), order, strict=False):
    square.imshow(collection[i])
    square.set(xticks=[], yticks=[])
    square.set_xlabel(kind_of[i], fontsize=7)
plt.show()
