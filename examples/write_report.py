"""
Write a report, and explain why an image is unusual
===================================================

Write one HTML page that shows which images are unusual, and list for single images which terms of the score are low.
"""

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np

from skjepa import JEPAScoreDetector, report
from skjepa.data import demo_images

images = demo_images(seed=0)
kinds = ("photographs", "MRI scan", "elevation model", "digits")
incoming = np.concatenate([images[kind][:10] for kind in kinds])
kind_of = np.repeat(kinds, 10)

# %%
# The page
# --------
# The page has a summary, a histogram, galleries with the nearest normal images, a map, a diagnosis of the encoder in
# words, and a table to search and sort. It is one file that loads nothing from elsewhere. The expensive pass runs once,
# for the page and for the rest of this example.

detector = JEPAScoreDetector(target_fpr=0.1, calibration=0.3, random_state=0).fit(images["fit"][:200])
measured = detector.extract(incoming)
page = report(detector, measured, Path(mkdtemp()) / "report.html", normal=images["fit"][:100], images=incoming)
print(f"{page.name}: {page.stat().st_size / 1024:.0f} KiB")

# %%
# Is the encoder suitable?
# ------------------------

print(detector.diagnose())

# %%
# Why is this image unusual?
# --------------------------
# The terms of the score add up to the score. The figure shows the image with the lowest score of each kind, and its
# terms in standard deviations of the fit images. A bar to the left is less normal than the fit images, a red bar by
# more than two standard deviations.

explained = detector.explain(measured)
lowest = [np.flatnonzero(kind_of == kind)[np.argmin(explained.score[kind_of == kind])] for kind in kinds]
print(f"{np.sum(explained.decision < 0)} of {len(incoming)} images flagged")
for i in lowest:
    print(f"{kind_of[i]}: {explained.words(i).split('; ', 1)[1]}")

figure, axes = plt.subplots(2, 4, figsize=(9.5, 4.2), layout="constrained", height_ratios=[1, 1.4], sharey="row")
names = list(explained.parts)
for (top, bottom), i in zip(axes.T, lowest, strict=True):
    top.imshow(incoming[i])
    top.set_axis_off()
    top.set_title(f"{kind_of[i]}\n{'flagged' if explained.decision[i] < 0 else 'not flagged'}", fontsize=10)
    values = [explained.deviations[name][i] for name in names]
    bottom.barh(names, values, color=["#c0392b" if value < -2 else "#0072B2" for value in values])
    bottom.axvline(0, color="#555555", linewidth=0.8)
    bottom.spines[["top", "right"]].set_visible(False)
axes[1, 0].invert_yaxis()
figure.supxlabel("standard deviations of the fit images", fontsize=10)
plt.show()
