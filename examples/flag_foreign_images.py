"""
Control false alarms and false discoveries
==========================================

The same detector with two guarantees. A limit on false alarms: at most 5 % of new normal images are flagged. A limit on
false discoveries: of the images flagged in a mixed batch, at most a fifth are normal. Both hold on average over
calibration sets, so the example draws a hundred of them.
"""

import matplotlib.pyplot as plt
import numpy as np

from skjepa import Extraction, JEPAScoreDetector, extract
from skjepa.data import demo_images
from skjepa.evaluation import detection_metrics

# %%
# Limit false alarms
# ------------------
# Fit on tiles of photographs, and hold half of them out for calibration.

images = demo_images(seed=0)
measured = {name: extract("bundled", group) for name, group in images.items() if name != "digits"}
detector = JEPAScoreDetector(target_fpr=0.05, calibration=0.5, random_state=0).fit(measured["fit"])

normal_scores = detector.score_samples(measured["photographs"])
print(f"photographs: {np.mean(normal_scores < detector.offset_):.1%} flagged (guaranteed: at most 5 % on average)")
for name in ("MRI scan", "elevation model"):
    scores = detector.score_samples(measured[name])
    auroc = detection_metrics(normal_scores, scores)["auroc"]
    print(f"{name}: {np.mean(scores < detector.offset_):.1%} flagged, AUROC {auroc:.3f}")

# %%
# Limit false discoveries
# -----------------------
# Where most images are normal, 5 % false alarms may outnumber the true ones. ``predict_fdr`` uses a whole batch: the
# Benjamini-Hochberg procedure sorts its p-values and flags up to the last one under ``level * rank / n``, so that the
# threshold adapts to the number of outliers. A conformal p-value is the share of calibration images, counting the image
# itself, that score as low. Each batch has 24 photographs and 8 tiles of an elevation model. 160 other photographs that
# the detector has not seen calibrate it.

level, rng = 0.2, np.random.default_rng(0)
unseen = measured["photographs"]
false_alarms, false_discoveries, found = [], [], []
for _ in range(100):
    photographs = rng.permutation(len(unseen))
    terrain = rng.permutation(len(measured["elevation model"]))[:8]
    detector.calibrate(unseen[photographs[:160]])
    batch = Extraction.concat([unseen[photographs[160:184]], measured["elevation model"][terrain]])
    foreign = np.arange(len(batch)) >= 24
    flagged = detector.predict_fdr(batch, level=level) == -1
    false_alarms.append(np.mean(detector.predict(batch)[~foreign] == -1))
    false_discoveries.append(np.mean(~foreign[flagged]) if flagged.any() else 0.0)
    found.append(np.mean(flagged[foreign]))
print(f"mean over 100 batches: {np.mean(false_alarms):.1%} of photographs flagged by the first rule (guaranteed: 5 %);")
print(f"{np.mean(false_discoveries):.1%} of those flagged by the second are photographs (guaranteed: 20 %),")
print(f"which finds {np.mean(found):.0%} of the terrain")

# %%
# One batch, and all of them
# --------------------------
# The left figure shows the last batch, the right one all batches. The guarantee holds on average: in a single batch
# more than a fifth of the flagged images may be normal.

p_values = detector.p_values(batch)
order = np.argsort(p_values, kind="stable")
ranks = np.arange(1, len(order) + 1)
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained", width_ratios=[1.5, 1])
for kind, colour, name in ((~foreign, "#0072B2", "photograph"), (foreign, "#E69F00", "elevation model")):
    left.scatter(ranks[kind[order]], p_values[order][kind[order]], color=colour, label=name, zorder=3)
left.scatter(ranks, np.where(flagged, p_values, np.nan)[order], 110, "none", edgecolors="#c0392b", label="flagged")
left.plot(ranks, level * ranks / len(ranks), color="#555555", label="level x rank / n")
left.axhline(0.05, color="#555555", linestyle=":", label="false alarms at 5 %")
left.set(xlabel="rank", ylabel="conformal p-value", title="One batch: the same p-values, two rules")
left.legend(frameon=False, fontsize=9)
right.hist(false_discoveries, np.linspace(0, 1, 21), color="#0072B2")
right.axvline(np.mean(false_discoveries), color="#c0392b", label="mean")
right.axvline(level, color="#555555", linestyle="--", label="guaranteed")
right.set(xlabel="share of false discoveries", ylabel="batches", title="All batches")
right.legend(frameon=False, fontsize=9)
for square in (left, right):
    square.spines[["top", "right"]].set_visible(False)
plt.show()
