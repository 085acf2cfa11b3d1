"""What a fit learned, whether it is sound, and why a sample scores as it does."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skjepa.detectors.measuring import MeasuringDetector
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.extraction import Extraction
from skjepa.inspection.anomaly_maps import column_shares
from skjepa.inspection.diagnosis import diagnose
from skjepa.inspection.findings import Diagnosis
from skjepa.inspection.terms import Explanation, explain_terms
from skjepa.inspection.volume_maps import VolumeExplainer, learn_volume_explainer
from skjepa.jacobian.directions import Correction
from skjepa.scores.layered import AnyScore, LayeredScore, layers_of


class ExplainingDetector(MeasuringDetector):
    """A detector whose models show what they learned and explain the scores of samples."""

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
        """What may be wrong with the encoder or its scores, with advice; needs no labels. Prints readably.

        Parameters
        ----------
        X : images, vectors or Extraction, optional
            New samples, at least two: what is wrong on them that was not at fit, and where they are unlike the fit
            samples. By default what `fit` learned from.

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
        return diagnose(fitted.model, self._measured(fitted, self._read(X)), fitted.diagnosis)

    def explain(self, X: Any) -> Explanation:
        """Why samples score as they do: the terms of the score, which add up to it, beside those of the fit samples.

        Parameters
        ----------
        X : images, vectors or Extraction

        Returns
        -------
        skjepa.inspection.Explanation
            One row a sample; `print` tells it in words. Where in the image the volume term comes from is for
            `volume_explainer`.

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
        samples = self._read(X)
        terms, columns, ids = [], [], np.array([])
        for fitted in self.models_:
            measured = self._measured(fitted, samples)
            found, ids = fitted.model.terms(measured), measured.ids
            if measured is not X:
                found = {name: measured.aligned(values) for name, values in found.items()}
                ids = measured.all_ids
            terms.append(found)
            columns.append(_columns_of(fitted.model, measured, is_whole=measured is X))
        scores = np.stack([np.sum(list(found.values()), axis=0) for found in terms])
        told = explain_terms(ids, self._combine(scores) - self.offset_, terms, [m.terms for m in self.models_])
        shares = [own for own in columns if own is not None]
        if not shares:
            return told
        names = getattr(self, "feature_names_in_", None)
        return replace(told, columns=np.mean(shares, axis=0), column_names=None if names is None else list(names))

    def volume_explainer(self, X: Any, *, patch_size: int | None = None, **options: Any) -> VolumeExplainer:
        """Learn heat maps of the volume term from normal images: 2 K passes an image, beside and not in `fit`.

        Parameters
        ----------
        X : images or vectors
            Normal samples, those of the fit or others; a hundred are enough.
        patch_size : int, optional
        **options
            Of `skjepa.learn_volume_explainer`: memory_budget, device, n_jobs, on_error, progress.

        Returns
        -------
        VolumeExplainer
            With the encoder, the floor and the rank of this detector; of one without backward passes floor and rank are
            learned from X. Its maps are of the exact Jacobian at the image
            itself: views, a subspace and its correction change the volume term, not the maps.

        Raises
        ------
        ValueError
            Every fold trained an encoder of its own.
        """
        own = self._first.encoder
        if own is not None and len(self.models_) > 1:
            raise ValueError("every fold trained an encoder of its own, there is no one volume to explain")
        encoder = own or self.fitted_encoder(X)
        given = RunOptions.of(self, on_error="raise", progress=False).keywords | options
        learned: dict[str, Any] = {"floor": self.floor_, "rank": self.rank_} if hasattr(self, "floor_") else {}
        return learn_volume_explainer(encoder, X, patch_size=patch_size, **learned, **given)


def _columns_of(model: AnyScore, measured: Extraction, *, is_whole: bool) -> NDArray[np.float64] | None:
    """Of a table, what each column adds; None of images and of scores that do not read the rows."""
    if not isinstance(model, LayeredScore) or not measured.is_table:
        return None
    shares = column_shares(model, layers_of(measured, list(model.chain.deviations)))
    return shares if shares is None or is_whole else measured.aligned(shares)
