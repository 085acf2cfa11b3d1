"""Flag foreign images with a promise about false alarms.

Fit on tiles of two photographs, hold a quarter out for calibration, and flag at most 5 % of new normal images (on
average over calibration sets). Runs offline, in seconds, with the bundled encoder.
"""

import numpy as np

from skjepa import JEPAScoreDetector
from skjepa.demo import demo_images
from skjepa.evaluation import detection_metrics

images = demo_images(seed=0)
detector = JEPAScoreDetector(target_fpr=0.05, calibration=0.25, random_state=0).fit(images["fit"])

normal_scores = detector.score_samples(images["photographs"])
print(f"photographs: {np.mean(normal_scores < detector.offset_):.1%} flagged (promised: at most 5 % on average)")
for name in ("MRI scan", "elevation model", "digits"):
    scores = detector.score_samples(images[name])
    auroc = detection_metrics(normal_scores, scores)["auroc"]
    print(f"{name}: {np.mean(scores < detector.offset_):.1%} flagged, AUROC {auroc:.3f}")
