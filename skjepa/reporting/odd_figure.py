"""Draw images above the same images with their anomaly maps, to show where each is odd."""

from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from skjepa.data.images import as_picture
from skjepa.inspection.picture_maps import LEVEL, P_STEPS, PictureMap, depth_colour

_COLUMN = 1.15  # inches


def odd_figure(images: Sequence[Any], maps: Sequence[PictureMap], captions: Sequence[str], *, title: str) -> Figure:
    """Draw each image above the same image with its map in red and its spots in boxes, with a legend.

    Parameters
    ----------
    images : sequence of PIL images, arrays (H, W, 3) or tensors (3, H, W)
    maps : sequence of PictureMap
        Result of `JEPAScoreDetector.picture_maps`.
    captions : sequence of str
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    n = len(images)
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=(_COLUMN * n, 2 * _COLUMN + 1.0), layout=layout)
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, n, squeeze=False)
    for i, (image, found) in enumerate(zip(images, maps, strict=True)):
        for axes, shown in ((above[i], as_picture(image)), (below[i], found.overlay(image, legend=False))):
            axes.imshow(shown, interpolation="antialiased")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        above[i].set_title(captions[i], fontsize=9, pad=3)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    if all(found.p_values is not None for found in maps):
        _draw_legend(figure)
    return figure


def _draw_legend(figure: Figure) -> None:
    handles = []
    for i, step in enumerate(P_STEPS):
        red, green, blue = (level / 255 for level in depth_colour((i + 1) / len(P_STEPS)))
        handles.append(Patch(facecolor=(red, green, blue), label=f"p <= {step:g}"))
    spot = f"more anomalous than every place in {1 - LEVEL:.0%} of normal images"
    handles.append(Patch(facecolor="none", edgecolor="#d8b800", linewidth=1.5, label=spot))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=8)
