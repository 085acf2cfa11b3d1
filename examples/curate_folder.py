"""
Clean a collection
==================

A collection with junk in it, and nobody knows which: photographs, and among them a sixth of scans, terrain and
digits. No image is moved or deleted; ``prune`` says which to keep.
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
# Three ways to judge
# -------------------
# JEPA-SCORE asks the encoder alone. The default detector learns from the collection, junk and all, each image scored
# by a model that has not seen it; or from a reference known to be clean, where there is one.

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
# Without a reference neither way does much better than chance on a collection as small and as mixed as this: a terrain
# model is smooth, which JEPA-SCORE takes for typical, and tiles of junk that are alike vouch for one another. A clean
# reference is worth having.

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
# What goes first
# ---------------
# The lowest scores, learned from the clean reference.

order = np.argsort(ways["default, learned from a clean reference"].scores)
figure, axes = plt.subplots(2, 10, figsize=(9, 2.3), layout="constrained")
for square, i in zip(axes.ravel(), order, strict=False):
    square.imshow(collection[i])
    square.set(xticks=[], yticks=[])
    square.set_xlabel(kind_of[i], fontsize=7)
plt.show()
