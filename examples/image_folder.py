"""
A folder of images: which are odd?
==================================

Fit on a folder of normal images, score another, look at the lowest scores. Normal are tiles of photographs; among the
incoming ones are a few tiles of a medical scan, of a terrain model, and handwritten digits.
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
# Any names, formats and sizes will do; the encoder's preprocessing is applied to each file.

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
# The bundled encoder, and a promise: at most 5 % of new normal images flagged, on average. For that, part of the
# normal images is held out. The expensive pass over the incoming images is done once; scores, decisions and p-values
# follow from it.

detector = JEPAScoreDetector(target_fpr=0.05, calibration=0.4, random_state=0).fit(folder / "normal")
incoming = detector.extract(folder / "incoming")
margin = detector.decision_function(incoming)  # negative = flagged
p_values = detector.p_values(incoming)

order = np.argsort(margin)
for i in order[:5]:
    print(f"{incoming.ids[i]:25} margin {margin[i]:6.2f}   p = {p_values[i]:.3f}")
foreign = np.array([not name.startswith("photograph") for name in incoming.ids])
print(f"flagged: {np.sum(margin[foreign] < 0)} of {foreign.sum()} foreign images, ", end="")
print(f"{np.sum(margin[~foreign] < 0)} of {np.sum(~foreign)} photographs")

# %%
# The most atypical, and the most typical
# ---------------------------------------
# A red frame is a flagged image. Look at these before any number.

figure, axes = plt.subplots(3, 8, figsize=(9, 4.2), layout="constrained")
for place, (square, i) in enumerate(zip(axes.ravel(), [*order[:16], *order[:-9:-1]], strict=True)):
    square.imshow(Image.open(folder / "incoming" / str(incoming.ids[i])))
    square.set(xticks=[], yticks=[])
    square.set_title(f"{margin[i]:.2f}", fontsize=9)
    square.spines[:].set(edgecolor="#c0392b" if margin[i] < 0 else "#cccccc", linewidth=3 if margin[i] < 0 else 1)
    if place % 8 == 0:
        square.set_ylabel("most typical" if place == 16 else "most atypical", fontsize=9)
plt.show()
