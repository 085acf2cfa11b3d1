"""
Find outliers in a table, in a scikit-learn pipeline
====================================================

Impute missing values, train a small JEPA on the rows, and flag outliers at a chosen false-alarm rate. The normal rows
are the benign tumours of the Wisconsin breast cancer data; a twentieth of all values is removed.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline

from skjepa import JEPAScoreDetector

X, benign = load_breast_cancer(return_X_y=True, as_frame=True)
X = X.mask(np.random.default_rng(0).random(X.shape) < 0.05)
known, unseen = train_test_split(X[benign == 1], test_size=0.5, random_state=0)
malignant = X[benign == 0]

# %%
# Fit on benign rows
# ------------------
# On a table the default encoder is a small JEPA, trained on the given rows in about a second. Five folds calibrate the
# threshold, so that no row has to be held out from learning.

detector = make_pipeline(
    SimpleImputer().set_output(transform="pandas"), JEPAScoreDetector(calibration=5, target_fpr=0.05)
)
detector.fit(known)

# %%
# Score rows it has not seen
# --------------------------

margins = {"benign": detector.decision_function(unseen), "malignant": detector.decision_function(malignant)}
scores = np.concatenate(list(margins.values()))
labels = np.repeat([1, -1], [len(unseen), len(malignant)])  # scikit-learn's: +1 is normal
print(f"AUROC {roc_auc_score(labels, scores):.3f}")
print(f"benign: {np.mean(detector.predict(unseen) == -1):.1%} flagged (target: 5 %)")
print(f"malignant: {np.mean(detector.predict(malignant) == -1):.1%} flagged")

# %%
# Rows left of the line are flagged.

figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
bins = np.linspace(scores.min(), scores.max(), 41)
for (name, margin), colour in zip(margins.items(), ("#0072B2", "#E69F00"), strict=True):
    axes.hist(margin, bins, color=colour, alpha=0.65, label=name)
axes.axvline(0, color="#c0392b", label="threshold")
axes.set(xlabel="decision function (negative = flagged)", ylabel="rows")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()
