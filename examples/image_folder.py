"""
Find unusual images in a folder
===============================

Fit on a folder of normal images, score another folder, and look at the lowest scores. Tiles of photographs are normal.
The incoming folder also holds a few tiles of a medical scan, of an elevation model, and of handwritten digits.
"""

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from skjepa import JEPAScoreDetector
from skjepa.data import demo_images

# %%
# Two folders
# -----------
# File names, formats and sizes are free; the encoder's preprocessing is applied to each file.

folder = Path(mkdtemp())


def write(name, images, prefix):
    (folder / name).mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / name / f"{prefix}-{i:03d}.png")


images = demo_images(seed=0)
write("normal", images["fit"][:200], "photograph")
write("incoming", images["photographs"][:60], "photograph")
for kind in ("MRI scan", "elevation model", "digits"):
    write("incoming", images[kind][:6], kind)

# %%
# Fit, and score
# --------------
# The detector uses the bundled encoder and flags at most 5 % of new normal images on average. To guarantee this rate,
# it holds out part of the normal images. The expensive pass over the incoming images runs once; scores, decisions and
# p-values follow from it.

detector = JEPAScoreDetector(target_fpr=0.05, calibration=0.4, random_state=0).fit(folder / "normal")
incoming = detector.extract(folder / "incoming")
margin = detector.decision_function(incoming)  # negative = flagged
p_values = detector.p_values(incoming)

order = np.argsort(margin)
for i in order[:5]:
    print(f"{incoming.ids[i]:25} margin {margin[i]:6.2f}   p = {p_values[i]:.3f}")
foreign = np.array([not name.startswith("photograph") for name in incoming.ids])
print(f"flagged: {np.sum(margin[foreign] < 0)} of {foreign.sum()} images of other kinds, ", end="")
print(f"{np.sum(margin[~foreign] < 0)} of {np.sum(~foreign)} photographs")

# %%
# The most and the least typical images
# -------------------------------------
# A red frame marks a flagged image. Look at these images before you read any number.

figure, axes = plt.subplots(3, 8, figsize=(9, 4.2), layout="constrained")
for place, (square, i) in enumerate(zip(axes.ravel(), [*order[:16], *order[:-9:-1]], strict=True)):
    square.imshow(Image.open(folder / "incoming" / str(incoming.ids[i])))
    square.set(xticks=[], yticks=[])
    square.set_title(f"{margin[i]:.2f}", fontsize=9)
    square.spines[:].set(edgecolor="#c0392b" if margin[i] < 0 else "#cccccc", linewidth=3 if margin[i] < 0 else 1)
    if place % 8 == 0:
        square.set_ylabel("most typical" if place == 16 else "most atypical", fontsize=9)
plt.show()
