"""
GridSearchCV with one pass of the encoder
=========================================

Choose floor, formula and reference by cross-validation. The encoder runs once for all combinations. Tiles of
photographs are normal, and tiles of a scan serve as the outliers of the search. The chosen settings are then tested on
out-of-distribution images of other kinds, which the search has not seen.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV

from skjepa import JEPAScoreDetector, NormalKFold, extract, inlier_labels, load_encoder
from skjepa.data import demo_images
from skjepa.evaluation import detection_metrics

images = demo_images(seed=0)
normal, outliers = images["fit"][:150], images["MRI scan"]
is_outlier = np.repeat([0, 1], [len(normal), len(outliers)])

# %%
# The expensive pass, once
# ------------------------
# Everything below accepts the ``Extraction`` instead of images.

encoder = load_encoder("bundled")
extraction = extract(encoder, np.concatenate([normal, outliers]))

# %%
# Search
# ------
# ``NormalKFold`` keeps outliers out of the training sets. Labels follow scikit-learn: +1 normal, -1 outlier. With 0 for
# normal and 1 for outliers the search would maximise 1 - AUROC without raising an error.

search = GridSearchCV(
    JEPAScoreDetector(encoder),
    {"formula": ["jepa", "density", "joint"], "floor": ["auto", 1e-6], "reference": ["knn", "gaussian"]},
    scoring="roc_auc",
    cv=NormalKFold(5, random_state=0),
    refit=False,  # it would fit on the outliers too
)
search.fit(extraction, inlier_labels(is_outlier))
results = search.cv_results_
order = np.argsort(results["mean_test_score"])
for i in order[::-1]:
    print(f"{results['mean_test_score'][i]:.3f}  {results['params'][i]}")

# %%
# "jepa" ignores the reference, so its rows come in pairs.

figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
names = ["{formula}, floor {floor}, {reference}".format(**results["params"][i]) for i in order]
colours = {"jepa": "#E69F00", "density": "#009E73", "joint": "#0072B2"}
axes.barh(
    names,
    results["mean_test_score"][order],
    xerr=results["std_test_score"][order],
    color=[colours[results["params"][i]["formula"]] for i in order],
)
axes.axvline(0.5, color="#555555", linestyle=":")
axes.set(xlabel="cross-validated AUROC against the scan, and its standard deviation over folds", xlim=(0, 1))
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Test the choice on data that the search has not seen
# ----------------------------------------------------

detector = JEPAScoreDetector(encoder, **search.best_params_, target_fpr=0.1, calibration=0.3, random_state=0)
detector.fit(extraction[is_outlier == 0])
unseen = detector.score_samples(images["photographs"][:60])
print(f"photographs: {np.mean(unseen < detector.offset_):.1%} flagged (guaranteed: at most 10 % on average)")
for name in ("elevation model", "digits"):
    scores = detector.score_samples(images[name][:60])
    auroc = detection_metrics(unseen, scores)["auroc"]
    print(f"{name}: {np.mean(scores < detector.offset_):.1%} flagged, AUROC {auroc:.3f}")
