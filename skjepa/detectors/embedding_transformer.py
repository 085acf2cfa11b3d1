"""Provide `EmbeddingTransformer`, which turns images or vectors into embeddings inside a scikit-learn pipeline."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skjepa._utils.validation import seed_from
from skjepa.data.sources import Source, as_source
from skjepa.detectors.encoder_choice import (
    encoder_of_fit,
    frozen_encoder,
    is_trained_on,
    require_fingerprint,
    trained_encoder,
)
from skjepa.detectors.fitting import all_or_nothing, validated
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.encoder_pass import embed
from skjepa.extraction.extraction import Extraction
from skjepa.pretraining.tables import VectorJEPA


class EmbeddingTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Turn images or vectors into the embeddings of an encoder, so that any detector of rows can follow in a pipeline.

    It runs the forward pass alone, without the Jacobian.

    Parameters
    ----------
    encoder : str, Encoder or VectorJEPA
        "auto" (images up to 64 pixels: "bundled"; larger images: "lite0"; vectors: a `VectorJEPA`), a name that
        `load_encoder` knows, an `Encoder`,
        or a `VectorJEPA`, which `fit` clones and trains on the rows of X.
    device, memory_budget, n_jobs
        See `skjepa.embed`.
    on_error : {"raise", "skip"}
        What happens where an image cannot be read: an error, or a row of NaN and a warning.
    random_state : int, RandomState or Generator, optional
        Seeds the training of a `VectorJEPA` that has no seed of its own; None means 0.
    verbose : int or "auto"
        A number above 0 shows a progress bar; "auto" shows one in a terminal or a notebook, after two seconds.

    Attributes
    ----------
    encoder_ : Encoder or None
        The encoder in use. None after a fit on an Extraction.
    fingerprint_ : str
        Fingerprint of the encoder; an Extraction of another encoder is refused.
    n_features_in_ : int
        Number of columns, where X holds vectors.

    Examples
    --------
    A column of image paths beside a column of numbers, then any detector:

    >>> from sklearn.compose import make_column_transformer
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn.pipeline import make_pipeline
    >>> from skjepa import EmbeddingTransformer
    >>> columns = make_column_transformer((EmbeddingTransformer(), ["path"]), ("passthrough", ["weight"]))
    >>> detector = make_pipeline(columns, IsolationForest())

    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, size=(2, 32, 32, 3), dtype=np.uint8)
    >>> EmbeddingTransformer().fit_transform(images).shape
    (2, 64)
    """

    def __init__(
        self,
        encoder: str | Encoder | VectorJEPA = "auto",
        *,
        device: str = "auto",
        memory_budget: int | None = None,
        n_jobs: int | None = None,
        on_error: str = "raise",
        random_state: Any = None,
        verbose: int | str = "auto",
    ) -> None:
        self.encoder = encoder
        self.device = device
        self.memory_budget = memory_budget
        self.n_jobs = n_jobs
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: object = None) -> "EmbeddingTransformer":
        """Load the encoder, or train it on vectors.

        Parameters
        ----------
        X : images, paths, vectors or Extraction
            See `skjepa.data.as_source`. An Extraction holds its embeddings already.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            Bad data or parameters. A `fit` that fails leaves the result of an earlier `fit` unchanged.
        """
        with all_or_nothing(self):
            seed = seed_from(self.random_state)
            if isinstance(X, Extraction):
                self._fit_extraction(X)
            else:
                self._fit_source(as_source(validated(self, X, reset=True)), seed)
        return self

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Return the embeddings, (n_samples, K), float64; K is the number of encoder outputs.

        Parameters
        ----------
        X : images, paths, vectors or Extraction

        Raises
        ------
        skjepa.encoders.FingerprintError
            X is an Extraction of another encoder, or the encoder has changed since `fit`.
        """
        check_is_fitted(self)
        if isinstance(X, Extraction):
            require_fingerprint(X.meta.get("fingerprint"), self.fingerprint_, "the encoder of this Extraction")
            return X.embeddings
        source = as_source(validated(self, X, reset=False))
        encoder = encoder_of_fit(
            self.encoder_, self.encoder, source, self.fingerprint_, estimator="transformer", act="transform"
        )
        require_fingerprint(encoder.fingerprint, self.fingerprint_, f"encoder {encoder.name!r}")
        return self._embed(encoder, source)

    def _fit_extraction(self, extraction: Extraction) -> None:
        if extraction.n_features is not None:
            self.n_features_in_ = extraction.n_features
        self.encoder_: Encoder | None = None
        self.fingerprint_ = extraction.meta.get("fingerprint")
        self._n_features_out = extraction.embeddings.shape[1]

    def _fit_source(self, source: Source, seed: int) -> None:
        trains = is_trained_on(self.encoder, source)
        encoder = (
            trained_encoder(self.encoder, source, seed)
            if trains
            else frozen_encoder(self.encoder, source, verbose=self.verbose)
        )
        self.encoder_, self.fingerprint_ = encoder, encoder.fingerprint
        one = source[:1]
        if encoder.input_shape is not None and not source.is_vector:
            # A blank image gives the width of the embeddings; the first image of X may be unreadable.
            one = as_source(np.zeros((1, *encoder.input_shape[1:], 3), dtype=np.uint8))
        self._n_features_out = self._embed(encoder, one, progress=False).shape[1]

    def _embed(self, encoder: Encoder, source: Source, **changed: Any) -> NDArray[np.float64]:
        return embed(encoder, source, **RunOptions.of(self, **changed).keywords)
