"""Provide `TilingDetector`, which cuts large images into tiles and scores an image by its most anomalous tile."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.hardware import default_budget
from skjepa.data.sources import Source, as_source
from skjepa.data.tiles import TiledPictures, check_sides, cut
from skjepa.detectors.base import Samples
from skjepa.detectors.encoder_choice import frozen_encoder
from skjepa.detectors.fitted_score import FittedScore
from skjepa.detectors.fitting import groups_in_mind
from skjepa.detectors.measuring import MeasuringDetector
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.extraction import Extraction
from skjepa.persistence.schema import MayLack, Saved
from skjepa.scores.model import Terms

_AT_A_TIME = 512  # tiles per scoring run
_TRIED = 4  # tiles measured to see how much memory one takes
_COPIES = 6  # memory that the fit of a local model takes, as a multiple of the extraction of its tiles


@dataclass
class _Kept:
    """Hold the pass over all tiles of a fit, the place of each tile in it, and the size of each image, by name."""

    extraction: Extraction | None = None
    places: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


_KEPT: ContextVar[_Kept | None] = ContextVar("kept", default=None)


def _kept(tiles: Source) -> Extraction | None:
    """Return what the running fit has measured of these tiles; None if it has not measured all of them."""
    kept = _KEPT.get()
    if kept is None or kept.extraction is None:
        return None
    places = [kept.places.get(name) for name in tiles.ids.tolist()]
    return None if None in places else kept.extraction[np.array(places, dtype=np.intp)]


class TilingDetector(MeasuringDetector):
    """Base class of detectors that can cut images into tiles, whose sides in pixels `tiles` gives."""

    tiles: MayLack[Annotated[Any, Saved(int | list[int] | tuple[int, ...] | None)]]

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> "TilingDetector":
        token = _KEPT.set(None if self.tiles is None else _Kept())
        try:
            super().fit(X, y, groups)
        finally:
            _KEPT.reset(token)
        return self

    fit.__doc__ = MeasuringDetector.fit.__doc__

    def extract(self, X: Any, **options: Any) -> Extraction:
        """Return an Extraction as `MeasuringDetector.extract` does; raise ValueError with `tiles`."""
        if self.tiles is not None:
            raise ValueError(
                "extract(X) gives one row per image, and with tiles= an image has one row per tile: give the images to "
                "fit and score_samples, or make the detector with tiles=None"
            )
        return super().extract(X, **options)

    @property
    def needs_samples(self) -> bool:
        return self.tiles is not None or super().needs_samples

    @property
    def _is_own(self) -> bool:
        return self.tiles is not None or super()._is_own

    def _read_for_fit(self, X: Any, seed: int) -> Samples:
        if self.tiles is None:
            return super()._read_for_fit(X, seed)
        source = self._pictures(X)
        self._check_settings(source.ids, seed)
        self.encoder_ = frozen_encoder(self.encoder, source, verbose=self.verbose)
        if self.on_error == "skip":
            is_readable = self._cut(source).sizes[:, 0] > 0
            _warn_of(source.ids[~is_readable])
            source = source.only(is_readable)
            self._check_size(source.ids, seed)
        return source if self._learns_directions else self._measure_all(source, seed)

    def _measure_all(self, source: Source, seed: int) -> Source:
        """Measure all tiles of a fit once, for its folds and its scores, unless they do not fit into memory.

        Return the images to fit on: those of which every tile could be measured.
        """
        tiles, kept = self._cut(source), _KEPT.get()
        if kept is None or len(tiles.source) > self._most_tiles(self._frozen(), tiles, seed):
            return source
        kept.extraction = self._extract(self._frozen(), tiles.source, seed, memory=self.memory)
        kept.places = {name: i for i, name in enumerate(kept.extraction.ids.tolist())}
        if not kept.extraction.errors:
            return source
        source = source.only(~np.isin(np.arange(len(source)), tiles.groups[list(kept.extraction.errors)]))
        self._check_size(source.ids, seed)
        return source

    def _read(self, X: Any) -> Samples:
        return super()._read(X) if self.tiles is None else self._pictures(X)

    def _pictures(self, X: Any) -> Source:
        if isinstance(X, Extraction):
            raise TypeError("X is an Extraction, and tiles are cut from images: give the images, or tiles=None")
        source = as_source(X)
        if source.is_vector:
            raise ValueError("X holds vectors, and tiles are cut from images: give images, or tiles=None")
        return source

    def _cut(self, source: Source) -> TiledPictures:
        """Cut images into tiles; during a fit, each image is read for its size once."""
        kept = _KEPT.get() or _Kept()
        known = [kept.sizes.get(name) for name in source.ids.tolist()]
        sizes = None if None in known else np.array(known, dtype=np.intp).reshape(-1, 2)
        tiles = cut(source, check_sides("tiles", self.tiles), sizes=sizes)
        kept.sizes |= dict(zip(source.ids.tolist(), map(tuple, tiles.sizes.tolist()), strict=True))
        return tiles

    @abstractmethod
    def _learn_from(
        self, samples: Samples, apart: NDArray | None, pictures: NDArray | None, seed: int
    ) -> tuple[FittedScore, NDArray[np.float64]]:
        """Return what `_learn` returns.

        `apart` names the group of each sample, whose members are scored by models fitted without the group. `pictures`
        is the position of the image that each sample is a tile of.
        """

    def _learn_from_tiles(
        self, source: Source, apart: NDArray | None, seed: int
    ) -> tuple[FittedScore, NDArray[np.float64]]:
        """Return a model of the tiles, and for each image the score of its most anomalous tile."""
        encoder = self._frozen()
        tiles = whole = self._cut(source)
        measured = _kept(tiles.source)
        if measured is None:
            tiles = self._tiles_to_learn_from(encoder, whole, seed)
        with groups_in_mind(True):  # tiles overlap, so a warning about near copies would mislead
            apart = None if apart is None else apart[tiles.groups]
            fitted, scores = self._learn_from(tiles.source if measured is None else measured, apart, tiles.groups, seed)
        if len(scores) == len(whole.source):
            return fitted, tiles.least_normal(scores)
        return fitted, self._oddest_tiles([fitted], whole, encoder)[0].scores

    def _tiles_to_learn_from(self, encoder: Encoder, tiles: TiledPictures, seed: int) -> TiledPictures:
        """Return the tiles to fit on: all, or, if memory is short, as many from each image."""
        most = self._most_tiles(encoder, tiles, seed)
        if len(tiles.source) <= most:
            return tiles
        rng, quota = np.random.default_rng(seed), max(2, most // len(tiles))
        drawn = [rng.permutation(np.flatnonzero(tiles.groups == i))[:quota] for i in range(len(tiles))]
        return tiles[np.sort(np.concatenate(drawn))]

    def _most_tiles(self, encoder: Encoder, tiles: TiledPictures, seed: int) -> int:
        """Return how many tiles fit into memory, by the size of what is measured of a few."""
        few = np.unique(np.linspace(0, len(tiles.source) - 1, _TRIED).astype(int))  # some may fail
        found = self._extract(encoder, tiles.source[few], seed, quiet=True)
        n_bytes = found.embeddings.nbytes + sum(rows.nbytes for rows in found.layers.values())
        return int((self.memory_budget or default_budget("cpu")) * len(found) / (_COPIES * n_bytes))

    def _scores_by_model(self, samples: Samples) -> NDArray[np.float64]:
        if self.tiles is None or not isinstance(samples, Source):
            return super()._scores_by_model(samples)
        return np.stack([found.scores for found in self._oddest_tiles(self.models_, self._cut(samples))])

    def _oddest_tiles(
        self,
        models: Sequence[FittedScore],
        tiles: TiledPictures,
        encoder: Encoder | None = None,
        see: Callable[[Extraction, NDArray[np.intp]], None] | None = None,
    ) -> list["OddestTiles"]:
        """Return for each model the most anomalous tile of each image.

        Each tile is measured once for all models, or once for each model that learned its own directions. `see` is
        called with what was measured of some tiles at a time, and with the places of these tiles among all. During a
        fit, `encoder` is the encoder of that fit.
        """
        oddest = [OddestTiles(tiles) for _ in models]
        with nullcontext(encoder) if encoder else self._fitted_encoder(tiles.source) as used:
            for chosen in self._in_parts(tiles):
                part = tiles[chosen]
                measured: Extraction | None = None
                for fitted, own in zip(models, oddest, strict=True):
                    if measured is None or fitted.directions is not None:
                        measured = self._measured_by(fitted, used, part.source)
                    own.add(part, fitted.model.terms(measured), measured)
                if see is not None and measured is not None:
                    see(measured, chosen)
        return oddest

    def _measured_by(self, fitted: FittedScore, encoder: Encoder, source: Source) -> Extraction:
        if (kept := _kept(source)) is not None:
            return kept
        seed, directions = fitted.settings["seed"], fitted.directions
        return self._extract(encoder, source, seed, fitted=fitted, directions=directions, memory=self.memory)

    def _in_parts(self, tiles: TiledPictures) -> Iterator[NDArray[np.intp]]:
        """Yield the places of a few tiles at a time, so that their extractions fit into memory."""
        chosen = np.arange(len(tiles.source))
        if self.on_error == "skip" and (tiles.sizes[:, 0] > 0).any():  # a part without readable tiles would fail
            is_readable = tiles.sizes[:, 0] > 0
            _warn_of(tiles.ids[~is_readable])
            chosen = chosen[is_readable[tiles.groups]]
        for start in range(0, len(chosen), _AT_A_TIME):
            yield chosen[start : start + _AT_A_TIME]


class OddestTiles:
    """Hold the most anomalous tile of each image, by one model, among the tiles added so far.

    Attributes
    ----------
    names : array of shape (n_pictures,), str
        Names of these tiles; the name of the image where no tile could be read.
    terms : dict of name -> array of shape (n_pictures,)
        Terms of the scores of these tiles; NaN where no tile could be read.
    """

    def __init__(self, tiles: TiledPictures) -> None:
        self.names = tiles.ids.astype(object)
        self.terms: Terms = {}
        self._lowest = np.full(len(tiles), np.inf)

    def add(self, part: TiledPictures, terms: Terms, measured: Extraction) -> None:
        """Add some tiles with the terms of those that could be read."""
        found = {name: measured.aligned(values) for name, values in terms.items()}
        scores = np.sum(list(found.values()), axis=0)
        order = np.lexsort((scores, part.groups))  # NaN last
        oddest = order[np.unique(part.groups[order], return_index=True)[1]]
        chosen = oddest[scores[oddest] < self._lowest[part.groups[oddest]]]
        places = part.groups[chosen]
        self._lowest[places], self.names[places] = scores[chosen], part.source.ids[chosen]
        for name, values in found.items():
            self.terms.setdefault(name, np.full(len(self._lowest), np.nan))[places] = values[chosen]

    @property
    def scores(self) -> NDArray[np.float64]:
        return np.sum(list(self.terms.values()), axis=0)


def _warn_of(names: NDArray[np.str_]) -> None:
    for name in names.tolist():
        warnings.warn(f"skipped {name}: cannot be read as an image", stacklevel=4)
