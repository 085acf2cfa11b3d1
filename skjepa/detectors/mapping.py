"""Provide `MappingDetector`, which shows where in an image an anomaly is, as maps and as spots."""

import math
import warnings
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.validation import check_number
from skjepa.data.sources import Source, as_source
from skjepa.data.tiles import boxes_of, check_sides
from skjepa.detectors.explaining import ExplainingDetector
from skjepa.detectors.judgement import Judgement
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.extraction import Extraction
from skjepa.extraction.position_pass import PositionBatch, position_pass
from skjepa.inspection.anomaly_maps import AnomalyMaps, joined, maps_of_batch
from skjepa.inspection.collected_maps import CollectedMaps, CollectedTileMaps
from skjepa.inspection.picture_maps import LEVEL, NEEDS_LOCAL, PictureMap, Spot, spots_of
from skjepa.scores.layered import LayeredScore
from skjepa.scores.local import LocalModel, across_models, positions_of


class MappingDetector(ExplainingDetector):
    """Base class of detectors that show where a sample is anomalous."""

    def anomaly_map(self, X: Any) -> NDArray[np.floating] | list[NDArray[np.float32] | None]:
        """Show where samples are anomalous, in the coordinates of the original images; higher = more anomalous.

        The resizing and cropping of the encoder are undone. With ``local=True`` the map shows the surprise at each
        position in nats (natural-log units), by a model of normal images at that position. Otherwise it shows the
        contribution of each position to the surprises of the hidden layers, smoothed. Before smoothing the
        contributions sum to these surprises (see `skjepa.inspection.AnomalyMaps`); they need no extra work in `fit`.

        Parameters
        ----------
        X : images or vectors
            The samples themselves; each takes one forward pass.

        Returns
        -------
        array of shape (n_samples, H, W), float32
            NaN outside the part of an image that the encoder reads, and everywhere for an image that could not be
            read. For images of different sizes: a list of arrays (H, W), with None for an image that could not be read.
            For vectors: an array (n_samples, d) with the contribution of each column.

        Raises
        ------
        ValueError, TypeError
            X is an Extraction, the score reads no hidden layers, none of these has a grid of positions, or every fold
            trained its own encoder.

        Examples
        --------
        >>> import numpy as np
        >>> from skjepa import JEPAScoreDetector
        >>> normal = np.random.default_rng(0).integers(100, 156, size=(40, 32, 32, 3), dtype=np.uint8)
        >>> odd = normal[:1].copy()
        >>> odd[0, 20:28, 4:12] = 255
        >>> found = JEPAScoreDetector(method="forward").fit(normal[1:]).anomaly_map(odd)[0]
        >>> found.shape, bool(found[20:28, 4:12].mean() > found.mean())
        ((32, 32), True)
        """
        source = self._source_of(X)
        if source.is_vector:
            return self._table_maps(source)
        maps = self.picture_maps(source)
        sizes = {found.placement.picture_size for found in maps if found is not None}
        pixels = [None if found is None else found.pixels() for found in maps]
        if len(sizes) > 1:
            return pixels
        blank = np.full(next(iter(sizes), (0, 0)), np.nan, dtype=np.float32)
        return np.stack([blank if values is None else values for values in pixels])

    def spots(self, X: Any, *, level: float = LEVEL) -> list[list[Spot]]:
        """Return the anomalous spots of each image, most anomalous first.

        A spot is reported where it is more anomalous than the worst position of all but the share `level` of normal
        images.

        Parameters
        ----------
        X : images
        level : float in (0, 1)
            Expected share of normal images in which a spot is found.

        Returns
        -------
        list of list of Spot
            One list per sample; empty where there is no spot or the image cannot be read.

        Raises
        ------
        ValueError, TypeError
            Fitted without ``local=True``, or for the reasons listed at `anomaly_map`.

        Warns
        -----
        UserWarning
            There are too few normal images for any spot to be found at this level.
        """
        if not self.local:
            raise ValueError(NEEDS_LOCAL)
        maps = self.picture_maps(X, level=level)
        self._warn_of_few(maps, level)
        return [[] if found is None else list(found.spots) for found in maps]

    def picture_maps(self, X: Any, *, level: float = LEVEL) -> list[PictureMap | None]:
        """Return map, p-values and spots of each image on the encoder's grid of positions.

        Parameters
        ----------
        X : images
        level : float in (0, 1)
            As for `spots`.

        Returns
        -------
        list of PictureMap or None
            One per sample; None where the image cannot be read.

        Raises
        ------
        ValueError, TypeError
            For the reasons listed at `anomaly_map`.
        """
        source, encoder, level = self._checked_for_maps(X, level)
        maps = self._collector(encoder, source, level)
        if not self.local:
            self._show_positions(encoder, maps.samples, lambda batch: self._add_shares(maps, batch, encoder))
        elif not isinstance(maps, CollectedTileMaps):
            self._add_local(maps, self._measured(self._first, maps.samples), np.arange(len(source)))
        else:
            for chosen in self._in_parts(maps.tiles):
                self._add_local(maps, self._measured_by(self._first, encoder, maps.samples[chosen]), chosen)
        return maps.found()

    def judge_and_map(self, X: Any, *, level: float = LEVEL) -> tuple[Judgement, list[PictureMap | None]]:
        """Return what `judge` and `picture_maps` return, with ``local=True`` from one pass over the images.

        Parameters
        ----------
        X : images
        level : float in (0, 1)
            As for `spots`.

        Returns
        -------
        skjepa.detectors.Judgement
        list of PictureMap or None

        Raises
        ------
        ValueError, TypeError
            For the reasons listed at `anomaly_map`.

        Examples
        --------
        >>> import numpy as np
        >>> from skjepa import JEPAScoreDetector
        >>> normal = np.random.default_rng(0).integers(100, 156, size=(40, 32, 32, 3), dtype=np.uint8)
        >>> detector = JEPAScoreDetector(method="forward", local=True).fit(normal[1:])
        >>> judged, maps = detector.judge_and_map(normal[:1])
        >>> judged, maps[0].pixels().shape
        (Judgement(0 of 1 flagged), (32, 32))
        """
        source, encoder, level = self._checked_for_maps(X, level)
        if not self.local:
            return self.judge(source), self.picture_maps(source, level=level)
        maps = self._collector(encoder, source, level)
        if not isinstance(maps, CollectedTileMaps):
            found = self._terms_of(maps.samples)
            self._add_local(maps, found.measured[0], np.arange(len(source)))
        else:
            found = self._terms_of_tiles(source, maps.tiles, partial(self._add_local, maps))
        return self._judgement(*self._reasons(found, self._told(found))), maps.found()

    def _checked_for_maps(self, X: Any, level: float) -> tuple[Source, Encoder, float]:
        source, level = self._source_of(X), check_number("level", level, above=0.0, below=1.0)
        encoder = self._encoder_of_maps(source)
        if encoder.preprocessing is None:
            raise ValueError(
                f"encoder {encoder.name!r} encodes vectors, and there is no image to lay a map over: call "
                "anomaly_map(X), which returns the contribution of each column"
            )
        return source, encoder, level

    def _collector(self, encoder: Encoder, source: Source, level: float) -> CollectedMaps:
        assert encoder.preprocessing is not None  # checked by the callers
        if self.tiles is None:
            return CollectedMaps(encoder.preprocessing, source, level)
        tiles = self._cut(source)
        return CollectedTileMaps(encoder.preprocessing, tiles, level, self._times(tiles.counts))

    def _add_local(self, maps: CollectedMaps, measured: Extraction, chosen: NDArray[np.intp]) -> None:
        """Add the maps of the samples that could be read; `chosen` are the places of `measured.all_ids` among all."""
        grid, rows = positions_of(measured)
        surprises, p_values, hottest = across_models(self._local_models, rows)
        each = zip(chosen[measured.measured].tolist(), measured.ids, surprises, p_values, strict=True)
        for i, name, own, p in each:
            place, values = maps.placement(i), own.reshape(grid)
            spots = spots_of(values, hottest, place, maps.level(i))
            maps.add(i, PictureMap(str(name), values, place, p.reshape(grid), spots))

    def _times(self, counts: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return how many times more tiles each image has than the smallest normal image of the fit, rounded up."""
        return -(-counts // min((model.n_parts for model in self._local_models), default=int(counts.max())))

    def _warn_of_few(self, maps: list[PictureMap | None], level: float) -> None:
        """Warn if there are too few normal images for any spot to be found."""
        n = sum(len(model.hottest) for model in self._local_models)
        times = 1
        if self.tiles is not None:
            sides = check_sides("tiles", self.tiles)
            sizes = {found.placement.picture_size for found in maps if found is not None}
            times = int(self._times(np.array([len(boxes_of(*size, sides)) for size in sizes] or [1])).max())
        if times / (n + 1) > level:
            warnings.warn(
                f"with {n} normal images no spot can have a p-value below {min(1, times / (n + 1)):.2g}, so none is "
                f"found at level {level:g}: fit with at least {math.ceil(times / level) - 1} normal images of the same "
                "size",
                stacklevel=3,
            )

    def additive_maps(self, X: Any) -> AnomalyMaps:
        """Split the surprise of each hidden layer into contributions of positions or columns that sum to it exactly.

        Parameters
        ----------
        X : images or vectors

        Returns
        -------
        skjepa.inspection.AnomalyMaps
            Contributions for the samples that could be read.

        Raises
        ------
        ValueError, TypeError
            For the reasons listed at `anomaly_map`, or the detector has `tiles`: contributions would add up to the
            scores of tiles, not of images.
        """
        if self.tiles is not None:
            raise ValueError(
                "additive_maps splits the score of an image, and with tiles= each tile has its own score: fit with "
                "tiles=None, or call anomaly_map(X)"
            )
        source, parts = self._source_of(X), []
        encoder = self._encoder_of_maps(source)
        self._show_positions(encoder, source, lambda batch: parts.append(self._additive(batch, encoder)))
        return joined(parts)

    def _add_shares(self, maps: CollectedMaps, batch: PositionBatch, encoder: Encoder) -> None:
        for i, values in zip(batch.places, self._additive(batch, encoder).combined(), strict=True):
            maps.add(i, PictureMap(str(maps.samples.ids[i]), values, maps.placement(i)))

    def _additive(self, batch: PositionBatch, encoder: Encoder) -> AnomalyMaps:
        size = None if encoder.input_shape is None else (encoder.input_shape[1], encoder.input_shape[2])
        return maps_of_batch(self._layered_models, batch, size)

    def _table_maps(self, source: Source) -> NDArray[np.float64]:
        maps = self.additive_maps(source)
        if "input" not in maps.shares:
            raise ValueError(
                f"layers={self.layers!r} does not read the columns of X: fit with layers='auto', or with 'input' among "
                "the layers"
            )
        return maps.shares["input"]

    def _show_positions(self, encoder: Encoder, source: Source, see: Any) -> None:
        layers = self._first.settings.get("layers")
        position_pass(encoder, source, list(layers or []), see, RunOptions.of(self))

    def _source_of(self, X: Any) -> Source:
        if isinstance(X, Extraction):
            raise TypeError("X is an Extraction, which does not keep positions: give the images or vectors themselves")
        return as_source(self._validated(X, reset=False))

    def _encoder_of_maps(self, source: Source) -> Encoder:
        own = self._first.encoder
        if own is not None and len(self.models_) > 1:
            raise ValueError(
                "every fold trained its own encoder, so there is no single map of a sample: give a trained Encoder "
                "as encoder, or a share such as calibration=0.2"
            )
        return own or self.fitted_encoder(source)

    @property
    def _layered_models(self) -> list[LayeredScore]:
        models = [fitted.model for fitted in self.models_]
        if not all(isinstance(model, LayeredScore) for model in models):
            raise ValueError(
                "maps show hidden layers, and this score reads none: fit with formula='joint' and layers='auto'"
            )
        return models  # type: ignore[return-value]

    @property
    def _local_models(self) -> list[LocalModel]:
        return [model.local for model in self._layered_models if model.local is not None]
