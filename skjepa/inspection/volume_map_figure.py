"""A figure of heat maps beside their images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from skjepa.data.images import as_picture
from skjepa.inspection.volume_maps import VolumeMaps


def volume_maps_figure(images: Sequence[Any], maps: VolumeMaps, captions: Sequence[str] = ()) -> Figure:
    """Images above their heat maps of the volume term: red patches make the image less normal, blue ones more.

    Parameters
    ----------
    images : sequence of arrays or PIL images
        Those that the maps are of, in their order.
    maps : skjepa.inspection.VolumeMaps
    captions : sequence of str, optional

    Returns
    -------
    matplotlib.figure.Figure
        One colour scale for all maps, in nats a patch; the number under each is its log-volume less the baseline.
    """
    figure = Figure(figsize=(1.5 * len(maps) + 1, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(maps), squeeze=False)
    limit = float(np.percentile(np.abs(maps.shares), 99)) or 1.0
    _, height, width = maps.input_shape
    colours = ScalarMappable(Normalize(-limit, limit), "RdBu")
    for i, (above, below) in enumerate(axes.T):
        above.imshow(as_picture(images[i]).resize((width, height)))
        above.set_title(captions[i] if captions else str(maps.ids[i])[:16], fontsize=9)
        below.imshow(maps.pixels(i), cmap=colours.cmap, norm=colours.norm, interpolation="nearest")
        below.set_xlabel(f"{maps.volume[i] - maps.baseline:+.1f} nats", fontsize=9)
        for square in (above, below):
            square.set_xticks([])
            square.set_yticks([])
    figure.colorbar(colours, ax=list(axes[1]), label="nats a patch", fraction=0.03)
    return figure
