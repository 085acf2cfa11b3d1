"""
Find the odd images in a folder, and where they are odd
=======================================================

Fit on a folder of images of gravel, judge another folder, and draw the odd places. In some of the new images lies a
coin, a piece of brick or a tuft of grass.
"""

from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
from PIL import Image

from skjepa import JEPAScoreDetector
from skjepa.data import gravel_images

# %%
# Two folders
# -----------
# Your own folders work the same way: names, formats and sizes of files are free.

folder = Path(mkdtemp())


def write(name, images, prefix):
    (folder / name).mkdir(exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / name / f"{prefix}-{i:03d}.png")


kinds = gravel_images(seed=0)
write("normal", kinds["fit"].images, "gravel")
write("incoming", kinds["gravel"].images[:40], "gravel")
for kind in ("coins", "bricks", "grass"):
    write("incoming", kinds[kind].images[:6], kind)

# %%
# Fit, and judge
# --------------
# ``target_fpr=0.05`` flags about 5 % of new normal images. ``local=True`` also learns what is normal at each place of
# an image. The images of one part of the photograph overlap, and ``groups=`` keeps these together when some are held
# out. The images are larger than 64 pixels, so that the encoder is EfficientNet-Lite0.

detector = JEPAScoreDetector(target_fpr=0.05, calibration=5, local=True, random_state=0)
detector.fit(folder / "normal", groups=kinds["fit"].places)
judged = detector.judge(folder / "incoming").to_frame().sort_values("score")
print(judged.head(12).to_string(index=False, float_format="{:.3f}".format, max_colwidth=50))

is_gravel = judged["id"].str.startswith("gravel")
is_flagged = judged["label"] == -1
print(f"\nflagged: {is_flagged[~is_gravel].sum()} of {(~is_gravel).sum()} images with something in them, ", end="")
print(f"{is_flagged[is_gravel].sum()} of {is_gravel.sum()} images of gravel alone")

# %%
# Where
# -----
# The most atypical images above the same images with their maps: the redder, the smaller the p-value of the place. A
# box marks a spot that is odder than any place in 95 % of normal images.

names = judged["id"].head(8).tolist()
paths = [folder / "incoming" / name for name in names]
figure, axes = plt.subplots(2, 8, figsize=(11, 3.2), layout="constrained")
for above, below, path, found in zip(*axes, paths, detector.picture_maps(paths), strict=True):
    above.imshow(Image.open(path))
    above.set_title(path.stem, fontsize=8)
    below.imshow(found.overlay(Image.open(path), legend=False))
    for square in (above, below):
        square.set_axis_off()
plt.show()
