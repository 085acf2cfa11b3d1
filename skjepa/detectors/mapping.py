"""Where samples are odd: maps in the coordinates of the pictures, and the spots in them that normal pictures lack."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.validation import check_number
from skjepa.data.sources import Source, as_source
from skjepa.detectors.explaining import ExplainingDetector
from skjepa.encoders.encoder import Encoder
from skjepa.encoders.geometry import Placement, placement
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.extraction import Extraction
from skjepa.extraction.position_pass import PositionBatch, position_pass
from skjepa.inspection.anomaly_maps import AnomalyMaps, joined, maps_of_batch
from skjepa.inspection.picture_maps import LEVEL, NEEDS_LOCAL, PictureMap, Spot, spots_of
from skjepa.scores.layered import LayeredScore
from skjepa.scores.local import LocalModel


class MappingDetector(ExplainingDetector):
    """A detector that says where a sample is odd."""

    def anomaly_map(self, X: Any) -> NDArray[np.floating] | list[NDArray[np.float32] | None]:
        """Where samples are odd, in the coordinates of the pictures as given; higher = more anomalous.

        Resize and crop of the encoder are undone. With ``local=True`` each position's surprise in nats, of a model of
        normal pictures at that position. Else what each position adds to the surprises of the hidden layers, which
        sums to them (`skjepa.inspection.AnomalyMaps`), smoothed: it costs nothing at fit.

        Parameters
        ----------
        X : images or vectors
            The samples themselves; one forward pass each.

        Returns
        -------
        array of shape (n_samples, H, W), float32
            NaN where the encoder saw nothing, and throughout where a picture could not be read. Of pictures of
            different sizes a list of arrays (H, W), None for one that could not be read. Of vectors (n_samples, d), the
            share of each column.

        Raises
        ------
        ValueError, TypeError
            X is an Extraction, the score reads no hidden layers, none of these has a grid of positions, or every fold
            trained an encoder of its own.

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
        """The spots of each picture that are odder than the oddest one of all but this share of normal pictures.

        Parameters
        ----------
        X : images
        level : float in (0, 1)
            Share of normal pictures in which a spot is found, in expectation.

        Returns
        -------
        list of list of Spot
            One list for each sample, the oddest spot first; empty where there is none or the picture cannot be read.

        Raises
        ------
        ValueError, TypeError
            Fitted without ``local=True``; as `anomaly_map`.
        """
        if not self.local:
            raise ValueError(NEEDS_LOCAL)
        return [[] if found is None else list(found.spots) for found in self.picture_maps(X, level=level)]

    def picture_maps(self, X: Any, *, level: float = LEVEL) -> list[PictureMap | None]:
        """Maps, p-values and spots of pictures, before they are spread over pixels; None where one cannot be read.

        Parameters
        ----------
        X : images
        level : float in (0, 1)
            Of `spots`.

        Raises
        ------
        ValueError, TypeError
            As `anomaly_map`.
        """
        source, found = self._source_of(X), {}
        level = check_number("level", level, above=0.0, below=1.0)
        placements: dict[tuple[int, int], Placement] = {}
        encoder = self._encoder_of_maps(source)
        preprocessing = encoder.preprocessing
        if preprocessing is None:
            raise ValueError(f"{encoder.name} encodes vectors: there is no picture to lay a map over")

        def see(batch: PositionBatch) -> None:
            for size in set(batch.picture_sizes) - placements.keys():
                placements[size] = placement(preprocessing, size)
            for place, made in zip(batch.places, self._maps_of(batch, encoder, source, placements, level), strict=True):
                found[place] = made

        self._show_positions(encoder, source, see)
        return [found.get(i) for i in range(len(source))]

    def additive_maps(self, X: Any) -> AnomalyMaps:
        """The surprises of the hidden layers, shared out among positions or columns, exactly.

        Parameters
        ----------
        X : images or vectors

        Returns
        -------
        skjepa.inspection.AnomalyMaps
            Of the samples that could be read.
        """
        source, parts = self._source_of(X), []
        encoder = self._encoder_of_maps(source)
        self._show_positions(encoder, source, lambda batch: parts.append(self._additive(batch, encoder)))
        return joined(parts)

    def _maps_of(
        self,
        batch: PositionBatch,
        encoder: Encoder,
        source: Source,
        placements: dict[tuple[int, int], Placement],
        level: float,
    ) -> list[PictureMap]:
        names = [str(source.ids[i]) for i in batch.places]
        places = [placements[size] for size in batch.picture_sizes]
        if not self.local or batch.rows is None:
            values = self._additive(batch, encoder).combined()
            return [PictureMap(*found) for found in zip(names, values, places, strict=True)]
        models, rows = self._local_models, batch.rows
        logs = [model.log_distances(rows) for model in models]
        pairs = list(zip(models, logs, strict=True))
        surprises = np.mean([model.surprises(log) for model, log in pairs], axis=0)
        p_values = np.exp(np.mean([np.log(model.patch_p_values(log)) for model, log in pairs], axis=0))
        hottest = np.sort(np.concatenate([model.surprises(model.hottest) for model in models]))
        shape = (-1, *models[0].grid)
        grids = zip(names, surprises.reshape(shape), places, p_values.reshape(shape), strict=True)
        return [PictureMap(name, own, place, p, spots_of(own, hottest, place, level)) for name, own, place, p in grids]

    def _additive(self, batch: PositionBatch, encoder: Encoder) -> AnomalyMaps:
        size = None if encoder.input_shape is None else (encoder.input_shape[1], encoder.input_shape[2])
        return maps_of_batch(self._layered_models, batch, size)

    def _table_maps(self, source: Source) -> NDArray[np.float64]:
        maps = self.additive_maps(source)
        if "input" not in maps.shares:
            raise ValueError("the score does not read the rows themselves: give layers='auto', or 'input' among layers")
        return maps.shares["input"]

    def _show_positions(self, encoder: Encoder, source: Source, see: Any) -> None:
        layers = self._first.settings.get("layers")
        position_pass(encoder, source, list(layers or []), see, RunOptions.of(self))

    def _source_of(self, X: Any) -> Source:
        if isinstance(X, Extraction):
            raise TypeError("X is an Extraction, whose positions are gone: give the samples themselves")
        return as_source(self._validated(X, reset=False))

    def _encoder_of_maps(self, source: Source) -> Encoder:
        own = self._first.encoder
        if own is not None and len(self.models_) > 1:
            raise ValueError("every fold trained an encoder of its own, there is no one map of a sample")
        return own or self.fitted_encoder(source)

    @property
    def _layered_models(self) -> list[LayeredScore]:
        models = [fitted.model for fitted in self.models_]
        if not all(isinstance(model, LayeredScore) for model in models):
            raise ValueError(
                "maps are of hidden layers, and this score reads none: fit with formula='joint' and layers='auto'"
            )
        return models  # type: ignore[return-value]

    @property
    def _local_models(self) -> list[LocalModel]:
        return [model.local for model in self._layered_models if model.local is not None]
