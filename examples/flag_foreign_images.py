"""Flag foreign images with a promise: first about false alarms, then about false discoveries.

Fit on tiles of two photographs, hold half of them out for calibration, and flag at most 5 % of new normal images (on
average over calibration sets). Then look for the foreign images in a mixed batch, such that at most a fifth of those
flagged are normal (on average). Runs offline, in seconds, with the bundled encoder.
"""

import numpy as np

from skjepa import JEPAScoreDetector
from skjepa.demo import demo_images
from skjepa.evaluation import detection_metrics

images = demo_images(seed=0)
detector = JEPAScoreDetector(target_fpr=0.05, calibration=0.5, random_state=0).fit(images["fit"])

normal_scores = detector.score_samples(images["photographs"])
print(f"photographs: {np.mean(normal_scores < detector.offset_):.1%} flagged (promised: at most 5 % on average)")
for name in ("MRI scan", "elevation model", "digits"):
    scores = detector.score_samples(images[name])
    auroc = detection_metrics(normal_scores, scores)["auroc"]
    print(f"{name}: {np.mean(scores < detector.offset_):.1%} flagged, AUROC {auroc:.3f}")

mixed = np.concatenate([images["photographs"][::8], images["elevation model"][:8]])
foreign = np.arange(len(mixed)) >= len(mixed) - 8
flagged = detector.predict_fdr(mixed, level=0.2) == -1
print(
    f"{flagged.sum()} of {len(mixed)} mixed images flagged, {np.mean(~foreign[flagged]):.0%} of them photographs "
    f"(promised: at most 20 % on average), {np.mean(flagged[foreign]):.0%} of the 8 elevation models found"
)
