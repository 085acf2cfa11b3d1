"""A scikit-learn pipeline on a table: impute, train a JEPA on the rows, flag with a promise about false alarms.

The normal rows are the benign tumours of the Wisconsin data; a twentieth of all values is made missing. Five folds
calibrate the threshold, so that every row is learned from. Seconds.
"""

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

detector = make_pipeline(
    SimpleImputer().set_output(transform="pandas"), JEPAScoreDetector(calibration=5, target_fpr=0.05)
)
detector.fit(known)

scores = np.concatenate([detector.score_samples(unseen), detector.score_samples(malignant)])
labels = np.repeat([1, -1], [len(unseen), len(malignant)])  # scikit-learn's: +1 is normal
print(f"AUROC {roc_auc_score(labels, scores):.3f}")
print(f"benign: {np.mean(detector.predict(unseen) == -1):.1%} flagged (5 % asked for)")
print(f"malignant: {np.mean(detector.predict(malignant) == -1):.1%} flagged")
