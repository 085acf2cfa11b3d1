"""Draw heat maps of the log-volume below their images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from skjepa._utils.figures import ShownFigure
from skjepa.data.images import as_picture
from skjepa.inspection.volume_maps import VolumeMaps


def volume_maps_figure(images: Sequence[Any], maps: VolumeMaps, captions: Sequence[str] = ()) -> Figure:
    """Draw images above their heat maps of the volume term.

    Red patches make the image less normal, blue patches more normal.

    Parameters
    ----------
    images : sequence of arrays or PIL images
        The images of the maps, in the same order.
    maps : skjepa.inspection.VolumeMaps
    captions : sequence of str, optional
        A caption per image, by default its id.

    Returns
    -------
    matplotlib.figure.Figure
        All maps share one colour scale, in nats per patch. The number under each map is its log-volume minus the
        baseline.
    """
    figure = ShownFigure(figsize=(1.5 * len(maps) + 1, 3.6), layout="constrained")
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
    figure.colorbar(colours, ax=list(axes[1]), label="nats per patch", fraction=0.03)
    return figure
