"""
Use skjepa beside PyOD's detectors
==================================

Give any detector of this package PyOD's interface, to compare and combine it with PyOD's own. The task is to fit on
benign tumours and find the malignant ones, in the Wisconsin breast cancer data with 569 rows of 30 features. Half of
the benign rows are used to fit; the other half and all malignant rows are scored. PyOD's signs apply here:
higher = more abnormal, 1 = outlier.
"""

import matplotlib.pyplot as plt
import numpy as np
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.lof import LOF
from pyod.utils.utility import standardizer
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from skjepa import JEPAScoreDetector
from skjepa.detectors import MahalanobisDetector
from skjepa.pyod import PyODDetector

X, target = load_breast_cancer(return_X_y=True)
fit, normal = train_test_split(X[target == 1], test_size=0.5, random_state=0)
test = np.vstack([normal, X[target == 0]])
is_outlier = np.repeat([0, 1], [len(normal), len(test) - len(normal)])
scaler = StandardScaler().fit(fit)
fit, test = scaler.transform(fit), scaler.transform(test)

# %%
# One loop for all
# ----------------
# ``PyODDetector`` gives any detector of this package or of scikit-learn the methods of PyOD.

detectors = {
    "skjepa joint": PyODDetector(JEPAScoreDetector(random_state=0), contamination=0.05),
    "skjepa jepa": PyODDetector(JEPAScoreDetector(formula="jepa", random_state=0), contamination=0.05),
    "KNN": KNN(contamination=0.05),
    "LOF": LOF(contamination=0.05),
    "IForest": IForest(contamination=0.05, random_state=0),
    "Mahalanobis": PyODDetector(MahalanobisDetector(), contamination=0.05),
}

print("detector           AUROC   normal flagged   outliers flagged")
scores = {}
for name, detector in detectors.items():
    detector.fit(fit)
    scores[name] = detector.decision_function(test)
    flagged = detector.predict(test)
    shares = flagged[is_outlier == 0].mean(), flagged[is_outlier == 1].mean()
    print(f"{name:16}   {roc_auc_score(is_outlier, scores[name]):.3f}   {shares[0]:14.1%}   {shares[1]:16.1%}")

# %%
# Combine two detectors
# ---------------------
# Their scores are standardised and averaged.

pair = ["skjepa joint", "KNN"]
train = np.column_stack([detectors[name].decision_scores_ for name in pair])
_, standardised = standardizer(train, np.column_stack([scores[name] for name in pair]))
scores[" + ".join(pair)] = standardised.mean(axis=1)
print(f"{' + '.join(pair)}: AUROC {roc_auc_score(is_outlier, standardised.mean(axis=1)):.3f}")

# %%
# ROC curves
# ----------
# The table is easy and all detectors are close: plain Mahalanobis distance is as good as any.

figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
for (name, values), colour in zip(scores.items(), colours, strict=True):
    normal_flagged, caught, _ = roc_curve(is_outlier, values)
    style = "--" if "+" in name else "-"
    axes.plot(normal_flagged, caught, style, color=colour, label=f"{name} ({roc_auc_score(is_outlier, values):.3f})")
axes.set(xlabel="benign rows flagged", ylabel="malignant rows caught", xlim=(-0.01, 0.4), ylim=(0.6, 1.005))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(title="AUROC", frameon=False)
plt.show()
