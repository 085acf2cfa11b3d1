"""Provide `ExplainingDetector`, which diagnoses a fit and explains the scores of samples."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skjepa.data.images import ImageReadError
from skjepa.data.one_picture import listed
from skjepa.data.source import Source
from skjepa.data.tiles import TiledPictures
from skjepa.detectors.judgement import Judgement
from skjepa.detectors.tiling import TilingDetector
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.extraction import Extraction
from skjepa.inspection.anomaly_maps import column_shares
from skjepa.inspection.diagnosis import diagnose
from skjepa.inspection.findings import Diagnosis
from skjepa.inspection.terms import Explanation, explain_terms
from skjepa.inspection.volume_maps import VolumeExplainer, learn_volume_explainer
from skjepa.jacobian.directions import Correction
from skjepa.scores.layered import AnyScore, LayeredScore, layers_of
from skjepa.scores.model import Terms


class _FoundTerms(NamedTuple):
    """Of all samples, those that could not be read among them.

    Attributes
    ----------
    ids : array of shape (n_samples,), str
    places : array of shape (n_samples,), str
        What the terms belong to: the samples themselves, or with `tiles` the most anomalous tile of each image.
    terms : list of dict of name -> array of shape (n_samples,)
        By each model; NaN where a sample could not be read.
    measured : list of Extraction
        By each model, of the samples that could be read.
    errors : dict of position -> reason
    """

    ids: NDArray[np.str_]
    places: NDArray[np.str_]
    terms: list[Terms]
    measured: list[Extraction]
    errors: dict[int, str]

    @property
    def scores(self) -> NDArray[np.float64]:
        """By each model, (n_models, n_samples)."""
        return np.stack([np.sum(list(found.values()), axis=0) for found in self.terms])


class ExplainingDetector(TilingDetector):
    """Base class of detectors that diagnose their fit and explain the scores of samples."""

    @property
    def model_(self) -> AnyScore:
        return self._first.model

    @property
    def floor_(self) -> float:
        return self._first.model.floor

    @property
    def rank_(self) -> int:
        return self._first.model.rank

    @property
    def correction_(self) -> Correction | None:
        return self._first.model.correction

    @property
    def intrinsic_dim_(self) -> float:
        if isinstance(self._first.model, LayeredScore):
            return self._first.diagnosis.intrinsic_dim
        return self._first.model.reference.intrinsic_dim_

    def diagnose(self, X: Any = None) -> Diagnosis:
        """Report what may be wrong with the encoder or its scores, with advice.

        No labels are needed. The result prints as readable text.

        Parameters
        ----------
        X : images, vectors or Extraction, optional
            At least two new samples: the result then reports problems that were absent at fit, and how these samples
            differ from the fit samples. By default the fit samples are diagnosed.

        Returns
        -------
        skjepa.inspection.Diagnosis
            Its `findings` are empty where nothing is wrong.

        Examples
        --------
        >>> import numpy as np, torch
        >>> from skjepa import JEPAScoreDetector, load_encoder
        >>> X, _ = np.random.default_rng(0).normal(size=(200, 6)), torch.manual_seed(0)
        >>> flat = load_encoder(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU()))
        >>> diagnosis = JEPAScoreDetector(flat, method="exact").fit(X).diagnose()
        >>> [finding.name for finding in diagnosis.findings]
        ['rank deficiency']
        """
        fitted = self._first
        if X is None:
            return fitted.diagnosis
        samples = self._read(X) if self.tiles is None else self._cut(self._pictures(X)).source
        return diagnose(fitted.model, self._measured(fitted, samples), fitted.diagnosis)

    def explain(self, X: Any) -> Explanation:
        """Explain the score of each sample by its terms, compared with the terms of the fit samples.

        The terms add up to the score. `anomaly_map` shows where in an image the terms of the hidden layers come from,
        and `volume_explainer` where the volume term comes from.

        Parameters
        ----------
        X : images, vectors or Extraction

        Returns
        -------
        skjepa.inspection.Explanation
            One row per sample; `print` shows it in words. With `tiles` the terms are those of the most anomalous tile
            of each image, and its place is in the id ("IMAGE [left,top,side]").

        Examples
        --------
        >>> import numpy as np, torch
        >>> from skjepa import JEPAScoreDetector, load_encoder
        >>> X, _ = np.random.default_rng(0).normal(size=(200, 6)), torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
        >>> detector = JEPAScoreDetector(load_encoder(net)).fit(X)
        >>> odd = detector.explain(X[:1] + 5)
        >>> bool(np.isclose(sum(odd.parts.values()), detector.score_samples(X[:1] + 5)).all())
        True
        >>> odd.least_normal(0)[0]
        'layer 1'
        """
        check_is_fitted(self)
        found = self._terms_of(X)
        return self._with_columns(self._told(found), found, X)

    def judge_and_explain(self, X: Any) -> tuple[Judgement, Explanation]:
        """Return what `judge` and `explain` return, from one pass over the samples.

        Parameters
        ----------
        X : images, vectors or Extraction

        Returns
        -------
        skjepa.detectors.Judgement
        skjepa.inspection.Explanation
        """
        check_is_fitted(self)
        found = self._terms_of(X)
        told = self._told(found)
        return self._judgement(*self._reasons(found, told)), self._with_columns(told, found, X)

    def _with_columns(self, told: Explanation, found: _FoundTerms, X: Any) -> Explanation:
        """Add the contribution of each column of a table."""
        measured_of = zip(self.models_, found.measured, strict=self.tiles is None)
        shares = [
            own
            for fitted, measured in measured_of
            if (own := _columns_of(fitted.model, measured, is_whole=measured is X)) is not None
        ]
        if not shares:
            return told
        names = getattr(self, "feature_names_in_", None)
        return replace(told, columns=np.mean(shares, axis=0), column_names=None if names is None else list(names))

    def _reasoned(self, X: Any) -> tuple[NDArray[np.str_], NDArray[np.float64], Sequence[str]]:
        found = self._terms_of(X)
        return self._reasons(found, self._told(found))

    @staticmethod
    def _reasons(found: _FoundTerms, told: Explanation) -> tuple[NDArray[np.str_], NDArray[np.float64], Sequence[str]]:
        return found.ids, found.scores, [found.errors.get(i) or told.reason(i) for i in range(len(told))]

    def _terms_of(self, X: Any) -> _FoundTerms:
        if self.tiles is not None:
            source = self._pictures(X)
            return self._terms_of_tiles(source, self._cut(source))
        samples = self._read(X)
        measured = [self._measured(fitted, samples) for fitted in self.models_]
        terms: list[Terms] = []
        for fitted, own in zip(self.models_, measured, strict=True):
            found = fitted.model.terms(own)
            terms.append(found if own is X else {name: own.aligned(values) for name, values in found.items()})
        first = measured[0]
        ids, errors = (first.ids, {}) if first is X else (first.all_ids, first.errors)
        return _FoundTerms(ids, ids, terms, measured, errors)

    def _terms_of_tiles(
        self,
        source: Source,
        tiles: TiledPictures,
        see: Callable[[Extraction, NDArray[np.intp]], None] | None = None,
    ) -> _FoundTerms:
        """Return the terms of the most anomalous tile of each image; `see` is told of all tiles."""
        oddest = self._oddest_tiles(self.models_, tiles, see=see)
        unread = np.flatnonzero(np.isnan(oddest[0].scores)).tolist()
        names, terms = oddest[-1].names.astype(np.str_), [found.terms for found in oddest]
        return _FoundTerms(source.ids, names, terms, [], {i: _why_unread(source, i) for i in unread})

    def _told(self, found: _FoundTerms) -> Explanation:
        decisions = self._combine(found.scores) - self.offset_
        return explain_terms(found.places, decisions, found.terms, [fitted.terms for fitted in self.models_])

    def volume_explainer(self, X: Any, *, patch_size: int | None = None, **options: Any) -> VolumeExplainer:
        """Learn heat maps of the volume term from normal images.

        `fit` does not learn these maps, because they take 2 K passes per image, where K is the number of encoder
        outputs.

        Parameters
        ----------
        X : images or vectors
            Normal samples, from the fit or new; a hundred are enough.
        patch_size : int, optional
            See `skjepa.learn_volume_explainer`.
        **options
            memory_budget, device, n_jobs, on_error and progress, see `skjepa.learn_volume_explainer`.

        Returns
        -------
        skjepa.inspection.VolumeExplainer
            It has the encoder, the floor and the rank of this detector. Where the detector makes no backward passes,
            floor and rank are learned from X. The maps always show the exact Jacobian at the image itself; views,
            a subspace and its correction change the volume term but not the maps.

        Raises
        ------
        ValueError
            Every fold trained its own encoder.
        """
        own = self._first.encoder
        if own is not None and len(self.models_) > 1:
            raise ValueError(
                "every fold trained its own encoder, so there is no single volume to explain: give a trained Encoder "
                "as encoder, or a share such as calibration=0.2"
            )
        X = listed(X)  # it is read twice
        encoder = own or self.fitted_encoder(X)
        given = RunOptions.of(self, on_error="raise", progress=False).keywords | options
        learned: dict[str, Any] = {"floor": self.floor_, "rank": self.rank_} if hasattr(self, "floor_") else {}
        return learn_volume_explainer(encoder, X, patch_size=patch_size, **learned, **given)


def _why_unread(source: Source, i: int) -> str:
    try:
        source.load(i)
    except ImageReadError as error:
        return str(error)
    return f"{source.ids[i]}: no tile could be measured"


def _columns_of(model: AnyScore, measured: Extraction, *, is_whole: bool) -> NDArray[np.float64] | None:
    """Return the contribution of each column of a table; None for images and for scores that do not read the rows."""
    if not isinstance(model, LayeredScore) or not measured.is_table:
        return None
    shares = column_shares(model, layers_of(measured, list(model.chain.deviations)))
    return shares if shares is None or is_whole else measured.aligned(shares)
