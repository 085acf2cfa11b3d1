"""Provide `OnEmbeddings`, the base class of detectors that compare embeddings of images, or rows of numbers."""

import os
import warnings
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import normalize

from skjepa.data.one_picture import listed
from skjepa.data.sources import Source, as_source, holds_vectors
from skjepa.detectors.base import CalibratedDetector, Samples
from skjepa.detectors.encoder_choice import encoder_of_fit, frozen_encoder, require_fingerprint, use_here
from skjepa.encoders.automatic import is_auto
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.encoder_pass import extract
from skjepa.extraction.extraction import Extraction, require_finite
from skjepa.extraction.store.settings import Settings, require_same_settings
from skjepa.inspection.diagnosis import near_copies
from skjepa.inspection.findings import GROUPS_ARE_GIVEN, NEAR_COPIES
from skjepa.persistence.schema import Above, MayLack, Saved
from skjepa.pretraining.tables import VectorJEPA
from skjepa.scores.layered import OUTPUT, layers_of

CONCATENATED, SUM = "concatenated", "sum"
"""Special values of `layer`: compare all layers and the embedding side by side, or sum the distances in each."""

_FEW = 8  # samples: for so few, reading all of large weights takes as long as the forward pass
_OF_PASSES = {"method": None, "views": None, "transform": None, "seed": None}  # of singular values: unused


class OnEmbeddings(CalibratedDetector):
    """Base class of detectors of embeddings or hidden layers, of images or from an Extraction, or of vectors.

    It makes one forward pass of `encoder` per image. Subclasses have the parameters declared here, and define
    `_fit_rows` and `_score_rows`.
    """

    is_local: ClassVar[bool] = True  # compares with neighbours, so near copies in the fit samples spoil the scores
    adds_layers: ClassVar[bool] = False  # accepts layer="sum"
    normalize: bool
    layer: MayLack[str | None] = None
    encoder: MayLack[str | Encoder] = "auto"
    device: MayLack[str] = "auto"
    memory_budget: MayLack[Annotated[int, Above(0)] | None] = None
    n_jobs: MayLack[int | None] = None
    on_error: MayLack[Annotated[str, Saved(Literal["raise", "skip"])]] = "raise"
    verbose: MayLack[float | bool | Literal["auto"]] = "auto"
    encoder_: MayLack[Encoder | None] = None
    _settings: Settings | None
    _widths: MayLack[list[int]]

    @abstractmethod
    def _fit_rows(self, rows: NDArray[np.float64], y: NDArray | None) -> Any: ...

    @abstractmethod
    def _score_rows(self, model: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]: ...

    def _check_parameters(self) -> None:
        """Check the parameters of the subclass; raise ValueError or TypeError."""

    def _read_for_fit(self, X: Any, seed: int) -> Samples:
        self._check_thresholds()
        self._check_parameters()
        if not isinstance(self.normalize, bool | np.bool_):
            raise TypeError(f"normalize must be True or False; got {self.normalize!r}")
        if self.layer is not None and not isinstance(self.layer, str):
            raise TypeError(f"layer must be the name of a layer or None; got {self.layer!r}")
        if self.layer == SUM and not self.adds_layers:
            raise ValueError(
                f"layer='sum' works with MahalanobisDetector alone: give {type(self).__name__} layer='concatenated'"
            )
        if isinstance(self.encoder, VectorJEPA):
            raise TypeError(
                "encoder is a VectorJEPA, which is trained on rows; put it before the detector: "
                f"make_pipeline(EmbeddingTransformer(VectorJEPA()), {type(self).__name__}())"
            )
        RunOptions.of(self)
        self._settings = self.encoder_ = None
        X = listed(X)
        if not isinstance(X, Extraction) and holds_vectors(X):
            rows = self._rows_of(X, reset=True)
            self._check_size(rows.ids, seed)
            return rows
        samples = X if isinstance(X, Extraction) else self._embedded_for_fit(as_source(X), seed)
        require_finite(samples)
        self._widths = [block.shape[1] for block in self._blocks(samples).values()]
        self.n_features_in_ = sum(self._widths)
        self._settings = samples.settings
        self._check_size(samples.ids, seed)  # some may have been skipped
        return samples

    def embed_images(self, X: Any, *, store: str | os.PathLike | None = None) -> Extraction:
        """Return embeddings and layers of images, from forward passes alone, for `fit` and `score_samples`.

        The encoder and the layers are the detector's own.

        Parameters
        ----------
        X : images
        store : path, optional
            Folder that keeps finished images, and from which the run resumes.

        Raises
        ------
        TypeError
            X holds rows of numbers, or the detector was fitted on rows.
        skjepa.encoders.FingerprintError
            The encoder has changed since `fit`.
        """
        source = as_source(X)
        if source.is_vector:
            raise TypeError(f"X holds rows of numbers, which {type(self).__name__} takes as they are: give images")
        if hasattr(self, "models_"):
            return self._embedded(source, store)
        return self._embedded_by(frozen_encoder(self.encoder, source, verbose=self.verbose), source, store)

    def _embedded_for_fit(self, source: Source, seed: int) -> Extraction:
        self._check_size(source.ids, seed)
        self.encoder_ = frozen_encoder(self.encoder, source, verbose=self.verbose)
        return self._embedded_by(self.encoder_, source)

    def _embedded_by(
        self, encoder: Encoder, source: Source, store: str | os.PathLike | None = None, **layers: Any
    ) -> Extraction:
        """Return embeddings of images for a fit; `layers` are the layers of an earlier fit."""
        if not layers:
            chosen = "auto" if self.layer in (CONCATENATED, SUM) else None if self.layer is None else [self.layer]
            layers = {"layers": chosen}
        return extract(encoder, source, method="forward", store=store, **layers, **RunOptions.of(self).keywords)

    def _read(self, X: Any) -> Samples:
        X = listed(X)
        if not isinstance(X, Extraction) and holds_vectors(X):
            return self._rows_of(X, reset=False)
        samples = X if isinstance(X, Extraction) else self._embedded(as_source(X))
        require_finite(samples)
        if self._settings is not None:
            expected, found = ({**of, **_OF_PASSES} for of in (self._settings, samples.meta))
            require_same_settings(expected, found, "the detector's fit and these samples")
        width = sum(block.shape[1] for block in self._blocks(samples).values())
        if width != self.n_features_in_:
            raise ValueError(
                f"X has {width} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        return samples

    def _embedded(self, source: Source, store: str | os.PathLike | None = None) -> Extraction:
        """Return embeddings of new images with the encoder and the layers of the fit."""
        if self._settings is None:
            raise TypeError(
                f"this {type(self).__name__} was fitted on rows of numbers, and X holds images; fit on images, or give "
                "rows made as those of the fit were, such as skjepa.embed(encoder, X)"
            )
        fingerprint = self._settings["fingerprint"]
        encoder = encoder_of_fit(self.encoder_, self.encoder, source, fingerprint, estimator="detector", act="score")
        with encoder.unchanging(at_a_glance=len(source) <= _FEW):
            require_fingerprint(encoder.fingerprint, fingerprint, f"encoder {encoder.name!r}")
            return self._embedded_by(
                encoder,
                source,
                store,
                layers=self._settings.get("layers"),
                layers_dtype=self._settings.get("layers_dtype") or "float32",
            )

    def _rows_of(self, X: Any, *, reset: bool) -> Source:
        if self.layer is not None:
            raise TypeError(
                f"layer={self.layer!r} is a layer of an encoder, and X holds rows of numbers; give images, or an "
                "Extraction made by skjepa.extract(encoder, X, method='forward')"
            )
        if reset and not is_auto(self.encoder):
            raise TypeError(
                "encoder= is for images, and X holds rows of numbers, which are compared as they are; leave encoder "
                "out, or put an EmbeddingTransformer(encoder) before the detector"
            )
        return as_source(self._validated(X, reset=reset))

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "OnEmbeddings":
        made = cls.__new__(cls)
        made.__dict__.update(state)
        use_here(made, given)
        return made

    def portable_check(self) -> None:
        super().portable_check()
        if self.layer is not None and self._settings is None:
            raise ValueError(f"layer={self.layer!r} is a layer of an encoder, and the fit samples are rows of numbers")

    @property
    def reads(self) -> str:
        return "embeddings" if self.layer is None else "forward"

    def _blocks(self, samples: Samples) -> dict[str, NDArray[np.float64]]:
        """Return the rows to compare, by the name of their layer."""
        if not isinstance(samples, Extraction):
            return {"": samples.rows()}
        if self.layer is None:
            return {OUTPUT: samples.embeddings}
        layers = layers_of(samples, None if self.layer in (CONCATENATED, SUM) else [self.layer])
        return {name: np.asarray(rows, dtype=np.float64) for name, rows in layers.items()}

    def _embeddings(self, samples: Samples) -> NDArray[np.float64]:
        blocks = self._blocks(samples).values()
        return np.hstack([normalize(rows) if self.normalize else rows for rows in blocks])

    def _learn(self, samples: Samples, y: NDArray | None, seed: int) -> tuple[Any, NDArray[np.float64]]:
        rows = self._embeddings(samples)
        if self.is_local and not GROUPS_ARE_GIVEN.get() and near_copies(rows) > NEAR_COPIES:
            warnings.warn(
                "many of the fit samples are near copies of a few others, so their scores are too high and the "
                "threshold is unreliable: fit on one sample of each, or give groups= and calibration=",
                stacklevel=4,
            )
        model = self._fit_rows(rows, y)
        return model, self._score_rows(model, rows)

    def _score(self, model: Any, samples: Samples) -> NDArray[np.float64]:
        return self._score_rows(model, self._embeddings(samples))
