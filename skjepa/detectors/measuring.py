"""Provide `MeasuringDetector`, which runs the encoder for a detector: on which samples, with which settings."""

import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from skjepa._utils.validation import seed_from
from skjepa.data.sources import Source, as_source
from skjepa.detectors.base import CalibratedDetector, Samples
from skjepa.detectors.encoder_choice import (
    encoder_of_fit,
    frozen_encoder,
    is_trained_on,
    require_fingerprint,
)
from skjepa.detectors.fitted_score import FittedScore
from skjepa.encoders.encoder import Encoder
from skjepa.encoders.in_use import in_eval_mode
from skjepa.encoders.stages import POSITIONS
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.pooling import is_positions
from skjepa.extraction.encoder_pass import embed, extract
from skjepa.extraction.extraction import Extraction, require_finite
from skjepa.extraction.store.settings import require_same_settings
from skjepa.jacobian.directions import Directions
from skjepa.jacobian.pass_method import PassMethod
from skjepa.persistence.schema import Above, MayLack, Saved, Unfitted
from skjepa.pretraining.tables import VectorJEPA

_FEW = 8  # up to this number of samples, hashing all weights would take as long as the forward pass


class MeasuringDetector(CalibratedDetector):
    """Base class of detectors that score Extractions and make them from samples, with the encoder of their fit."""

    encoder: str | Encoder | Unfitted[VectorJEPA]
    method: str | Directions
    n_directions: Annotated[int, Above(0)] | None
    layers: MayLack[Annotated[Any, Saved(str | list[str] | tuple[str, ...] | None)]]
    local: MayLack[bool]
    formula: str
    views: Annotated[int, Above(0)]
    view_transform: Annotated[Any, Saved(None)]
    time_budget: MayLack[Annotated[float, Above(0)] | None]
    device: str
    memory_budget: Annotated[int, Above(0)] | None
    memory: Annotated[Any, Saved(None)]
    n_jobs: int | None
    on_error: Annotated[str, Saved(Literal["raise", "skip"])]
    verbose: float | bool | Literal["auto"]
    encoder_: Annotated[Encoder, "d"] | None
    models_: list[Annotated[FittedScore, "d"]]

    def extract(self, X: Any, *, store: str | os.PathLike | None = None) -> Extraction:
        """Run the expensive pass alone, with the settings of this detector.

        `fit` and `score_samples` accept the result in place of the samples. Before `fit`, X is treated as fit samples
        and the settings are checked as `fit` checks them.

        Parameters
        ----------
        X : images or vectors
        store : path, optional
            Folder that keeps finished samples, and from which the run resumes.

        Returns
        -------
        skjepa.Extraction

        Raises
        ------
        ValueError
            Every fold trained its own encoder or learned its own directions.
        sklearn.exceptions.NotFittedError
            `fit` has yet to train the encoder or to learn the directions.
        """
        if not hasattr(self, "models_"):
            source = as_source(X)
            if is_trained_on(self.encoder, source):
                raise NotFittedError("the encoder is not trained yet: call fit(X) first")
            if self._learns_directions:
                raise NotFittedError(
                    "the directions are not learned yet: call fit(X) first, or give the result of learn_directions "
                    "as method"
                )
            own = seed_from(self.random_state)
            self._check_settings(source.ids, own)
            return self._extract(
                frozen_encoder(self.encoder, source, verbose=self.verbose), source, own, store=store, memory=self.memory
            )
        if self.needs_samples:
            raise ValueError(
                "every fold trained its own encoder or learned its own directions, so no single extraction serves all: "
                "call score_samples(X) on the samples themselves"
            )
        source, fitted = as_source(self._validated(X, reset=False)), self.models_[0]
        # The seed that the fit drew: a RandomState would give a different one at each call.
        seed, directions = fitted.settings["seed"], fitted.directions
        with self._fitted_encoder(source) as encoder:
            return self._extract(
                encoder, source, seed, fitted=fitted, directions=directions, store=store, memory=self.memory
            )

    def fitted_encoder(self, X: Any) -> Encoder:
        """Return the encoder that this fitted detector runs on the samples `X`.

        Raises
        ------
        ValueError
            The detector was fitted on an Extraction of a trained encoder, which it does not hold.
        skjepa.encoders.FingerprintError
            The encoder has changed since `fit`.
        """
        check_is_fitted(self)
        with self._fitted_encoder(as_source(X)) as encoder:
            return encoder

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Speed up many calls with a few samples each, in a context in which the encoder does not change.

        Each call otherwise checks whether the encoder has changed, which takes some 0.1 ms per submodule. Inside the
        context the encoder is compared with the encoder of the fit once, at the start, and stays in eval mode until the
        end. A change inside the context goes unnoticed. Use it from one thread.

        Raises
        ------
        skjepa.encoders.FingerprintError
            The encoder has changed since `fit`.

        Examples
        --------
        >>> import numpy as np
        >>> from skjepa import JEPAScoreDetector
        >>> images = np.random.default_rng(0).integers(0, 256, size=(30, 32, 32, 3), dtype=np.uint8)
        >>> detector = JEPAScoreDetector(method="forward").fit(images)
        >>> with detector.steady():
        ...     labels = [detector.predict(image[None])[0] for image in images[:3]]
        """
        check_is_fitted(self)
        encoders = {id(found): found for fitted in self.models_ if (found := fitted.encoder or self.encoder_)}
        with ExitStack() as stack:
            for encoder in encoders.values():
                stack.enter_context(encoder.unchanging())
                stack.enter_context(in_eval_mode(encoder.module))
            for fitted in self.models_:
                if found := fitted.encoder or self.encoder_:
                    require_fingerprint(found.fingerprint, fitted.settings["fingerprint"], f"encoder {found.name!r}")
            yield

    @property
    def needs_samples(self) -> bool:
        """Whether no single extraction serves all models, so that only the samples themselves can be scored.

        It is so with `tiles`, and where each fold trained its own encoder or learned its own directions.
        """
        return self._is_own and len(self.models_) > 1

    @contextmanager
    def _fitted_encoder(self, source: Source) -> Iterator[Encoder]:
        """Yield the encoder of the fit after comparing its fingerprint; inside, its weights are not checked again."""
        expected = self.models_[0].settings["fingerprint"]
        encoder = encoder_of_fit(self.encoder_, self.encoder, source, expected, estimator="detector", act="score")
        is_brief = len(source) <= _FEW and self.memory is None
        with encoder.unchanging(at_a_glance=is_brief):
            require_fingerprint(encoder.fingerprint, expected, f"encoder {encoder.name!r}")
            yield encoder

    @property
    def directions_(self) -> Directions | None:
        return self._first.directions or self._given_directions

    @property
    def method_reason_(self) -> str | None:
        return self._first.settings.get("method_reason")

    @property
    def _given_directions(self) -> Directions | None:
        return self.method if isinstance(self.method, Directions) else None

    @property
    def _first(self) -> FittedScore:
        check_is_fitted(self)
        return self.models_[0]

    def _method_is(self, name: str) -> bool:
        """Whether `method` is this name; False for Directions."""
        return isinstance(self.method, str) and self.method == name

    @property
    def _is_forward(self) -> bool:
        return self._method_is("forward")

    @property
    def _learns_directions(self) -> bool:
        return self._method_is("subspace")

    @property
    def _is_own(self) -> bool:
        """Whether `fit` trained an encoder or learned directions, so that each model measures samples by itself."""
        return self._first.encoder is not None or self._first.directions is not None

    def _read_for_fit(self, X: Any, seed: int) -> Samples:
        if isinstance(X, Extraction):
            require_finite(X)
            self._check_settings(X.ids, seed)
            if self._learns_directions:
                raise ValueError(
                    "method='subspace' learns directions from samples, and X is an Extraction: give what "
                    "skjepa.learn_directions returns as method, and extract with it"
                )
            if X.n_features is not None:
                self.n_features_in_ = X.n_features
            self.encoder_ = None
            if self.formula == "joint":
                X = self._narrowed(X)
            return X.forward_only() if self._is_forward and X.singular_values is not None else X
        source = as_source(self._validated(X, reset=True))
        self._check_settings(source.ids, seed)
        self.encoder_ = None
        if is_trained_on(self.encoder, source):
            return source
        self.encoder_ = frozen_encoder(self.encoder, source, verbose=self.verbose)
        if self._learns_directions:
            samples: Samples = source if self.on_error != "skip" else self._readable(self.encoder_, source)
        else:
            samples = self._extract(self.encoder_, source, seed, memory=self.memory)
        self._check_size(samples.ids, seed)  # some may have been skipped
        return samples

    def _narrowed(self, extraction: Extraction) -> Extraction:
        """Reduce an Extraction to the layers that this detector reads."""
        positions = [name for name in extraction.layers if is_positions(name)]
        if isinstance(self.layers, str):
            others = [name for name in extraction.layers if name not in positions]
            return extraction.narrowed(others) if positions and not self.local else extraction
        return extraction.narrowed([*self.layers, *positions] if self.local and self.layers else self.layers)

    def _readable(self, encoder: Encoder, source: Source) -> Source:
        """Return the samples that can be read, found by one forward pass each."""
        z = embed(encoder, source, **RunOptions.of(self, on_error="skip").keywords)
        return source.only(np.asarray(~np.isnan(z).any(axis=1)))

    def _read(self, X: Any) -> Samples:
        if isinstance(X, Extraction):
            require_finite(X)
            return X
        return as_source(self._validated(X, reset=False)) if self._is_own else self.extract(X)

    def _measured(self, fitted: FittedScore, samples: Samples) -> Extraction:
        """Return the extraction of samples by a fitted model, with its encoder and its directions."""
        if isinstance(samples, Source):
            with nullcontext(fitted.encoder) if fitted.encoder else self._fitted_encoder(samples) as encoder:
                memory = self._memory_of(fitted.encoder)
                seed = fitted.settings["seed"]
                return self._extract(encoder, samples, seed, fitted=fitted, directions=fitted.directions, memory=memory)
        if fitted.settings["method"] == "forward" and samples.singular_values is not None:
            samples = samples.forward_only()  # the fit had no singular values
        layers = fitted.settings.get("layers") or []
        if list(samples.layers) != list(layers) and set(layers) <= samples.layers.keys():
            samples = samples.narrowed(layers or None)
        require_same_settings(fitted.settings, samples.meta, "the detector's fit and these samples")
        return samples

    def _frozen(self) -> Encoder:
        assert self.encoder_ is not None  # `_read_for_fit` loaded it
        return self.encoder_

    def _memory_of(self, trained: Encoder | None) -> Any:
        """Return the cache, or None for an encoder that was trained for one fit: its results cannot be reused."""
        return self.memory if trained is None else None

    def _extract(
        self,
        encoder: Encoder,
        source: Source,
        seed: int | None,
        *,
        fitted: FittedScore | None = None,
        directions: Directions | None = None,
        store: str | os.PathLike | None = None,
        memory: Any = None,
        quiet: bool = False,
    ) -> Extraction:
        """Run the pass with the settings of a fitted model, or with the settings for a fit where `fitted` is None."""
        method, n_directions, layers = self._measures(fitted)
        dtype = ("float16" if self.local else None) if fitted is None else fitted.settings.get("layers_dtype")
        return extract(
            encoder,
            source,
            method=method if directions is None else directions,
            n_directions=n_directions if directions is None else None,
            layers=layers,
            layers_dtype=dtype or "float32",
            store=store,
            memory=memory if store is None else None,
            **self._options(seed)
            | ({} if fitted is None else {"time_budget": None})
            | ({"progress": False} if quiet else {}),
        )

    def _measures(self, fitted: FittedScore | None) -> tuple[str | Directions, int | None, Any]:
        """Return method, number of directions and layers of a pass: the settings of the fit for a fitted model.

        For a fit with "auto", the formulas "jepa" and "density" need backward passes at any cost. They do not use
        layers, but these are read all the same, so that one extraction serves every formula.
        """
        method, n_directions = self.method, self.n_directions
        is_auto = self._method_is("auto")
        if fitted is None and self._learns_directions:  # not learned yet, where only the size of a result is asked for
            return "forward", None, self._layers_of_fit
        if fitted is None:
            return "exact" if is_auto and self.formula != "joint" else method, n_directions, self._layers_of_fit
        if is_auto:
            passed = PassMethod.parse(fitted.settings["method"])
            method, n_directions = passed.kind, passed.n_directions
        return method, n_directions, fitted.settings.get("layers")

    @property
    def _layers_of_fit(self) -> Any:
        if not self.local or self.layers is None:
            return self.layers
        return [*([self.layers] if isinstance(self.layers, str) else self.layers), POSITIONS]

    def _options(self, seed: int | None) -> dict[str, Any]:
        """Return the options that all expensive passes of a fit share."""
        return {
            "views": self.views,
            "transform": self.view_transform,
            "random_state": seed,
            "time_budget": self.time_budget,
            **RunOptions.of(self).keywords,
        }

    @abstractmethod
    def _check_settings(self, ids: NDArray[np.str_], seed: int) -> None:
        """Refuse bad parameters before the expensive pass."""
