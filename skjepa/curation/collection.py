"""Curation: which samples of a collection are worth keeping, by their scores. Nothing is moved or deleted."""

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.model_selection import KFold

from skjepa._utils.validation import check_choice, check_integer
from skjepa.curation.rules import Pruned, check_classes, check_rule, prune_scores
from skjepa.data.sources import Source, as_source, known_by_content
from skjepa.data.splits import checked_classes, folders_of
from skjepa.detectors.adapter import EmbeddingDetector
from skjepa.detectors.base import CalibratedDetector, Samples
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.extraction.extraction import Extraction

_HELD_OUT = 0.2


def prune(
    X: Any,
    *,
    keep: float | None = None,
    target_fpr: float | None = None,
    normal: Any = None,
    detector: Any = None,
    classes: ArrayLike | str | None = "folders",
    per_class: bool = False,
    drop_copies: bool = False,
    folds: int = 5,
    rounds: int = 1,
    store: str | os.PathLike | None = None,
    random_state: int = 0,
) -> Pruned:
    """Score a collection that holds junk, and say which of it to keep.

    Without a clean reference the detector learns from the collection itself, junk and all. No sample is then scored
    by a model that has seen it or a copy of it, for it would be its own nearest neighbour: each of `folds` models
    scores the part that it has not learned from.

    Parameters
    ----------
    X : images, vectors or Extraction
        See `skjepa.data.as_source`.
    keep : float in (0, 1)
        Share to keep, the best scores, rounded up; samples that could not be read do not count.
    target_fpr : float in (0, 1)
        In the place of `keep`: drop what is unlike `normal`, and at most this share of what is like it, in expectation.
    normal : images, vectors or Extraction, optional
        A clean reference to learn from in the place of X. X should hold none of it: it would score too high.
    detector : estimator, optional
        Cloned. Any but a `JEPAScoreDetector` needs vectors or an Extraction as X; one of scikit-learn's or PyOD's is
        given the vectors or the embeddings. By default a `JEPAScoreDetector` that skips unreadable images: of formula
        "joint" with `normal`, else "jepa" on the bundled encoder.
        A detector that learns where the samples of X lie takes a dense cluster of junk for normal; JEPA-SCORE depends
        on the encoder alone (docs/guide/curation.md has both).
    classes : "folders", array of one class a sample, or None
    per_class : bool
        Keep the share of every class, at least one sample of each: rare classes are then not wiped out.
    drop_copies : bool
        Keep at most one, the first by name, of samples that are the same to the bit (files: byte by byte).
    folds : int
        Models that share the collection.
    rounds : int
        Above 1, models learn once more, from those only that the round before would keep.
    store : path, optional
        Folder that keeps finished samples: the run resumes from it.
    random_state : int
        Of the folds. The order of X does not matter.

    Returns
    -------
    skjepa.curation.Pruned

    Raises
    ------
    ValueError, TypeError
        Bad data or parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa import KNNDetector, prune
    >>> rng = np.random.default_rng(0)
    >>> X = np.concatenate([rng.normal(size=(90, 3)), rng.normal(20, 5, size=(10, 3))])
    >>> pruned = prune(X, keep=0.9, detector=KNNDetector())
    >>> bool(pruned.kept[:90].all()), int(pruned.kept[90:].sum())
    (True, 0)
    """
    check_rule(keep, target_fpr, per_class)
    folds, rounds = check_integer("folds", folds, minimum=2), check_integer("rounds", rounds, minimum=1)
    if target_fpr is not None and normal is None:
        raise ValueError("target_fpr needs a clean reference to calibrate on: give normal, or keep")
    if rounds > 1 and normal is not None:
        raise ValueError("rounds above 1 learn from the collection; with normal nothing of it is learned from")
    if isinstance(classes, str):
        check_choice("classes", classes, ("folders",))
    data = X if isinstance(X, Extraction) else as_source(X)
    detector = _default_detector(data, normal) if detector is None else _readable_by_detector(detector)
    ids, errors = _names(data)
    labels = folders_of(ids) if isinstance(classes, str) else checked_classes(classes, len(ids))
    contents = _contents(data, ids)
    check_classes(labels, per_class)  # all that can be refused is refused before the expensive pass
    if normal is None:
        _check_folds(contents, folds)
        detector = _without_threshold(detector)
    else:
        detector = _fitted(detector, normal, target_fpr, store)
    samples = _measured(detector, data, store)
    errors = _names(samples)[1] if isinstance(data, Source) else errors
    readable = np.setdiff1d(np.arange(len(ids)), list(errors))
    rule: dict[str, Any] = {"keep": keep, "target_fpr": target_fpr, "per_class": per_class, "drop_copies": drop_copies}
    rule |= {"classes": labels, "contents": contents}
    scores, p_values = np.full(len(ids), np.nan), None
    if normal is not None:
        scores[readable] = detector.score_samples(samples)
        if target_fpr is not None:
            p_values = np.full(len(ids), np.nan)
            p_values[readable] = detector.p_values(samples)
        return prune_scores(ids, scores, p_values=p_values, errors=_reasons(errors, scores, data), **rule)
    among = np.ones(len(ids), dtype=bool)
    for _ in range(rounds):
        scores[readable] = _cross_scores(detector, samples, contents[readable], among[readable], folds, random_state)
        pruned = prune_scores(ids, scores, errors=_reasons(errors, scores, data), **rule)
        among = pruned.kept
    return pruned


def _check_folds(contents: NDArray[np.str_], folds: int) -> None:
    different = len(np.unique(contents))
    if different < 2 * folds:
        raise ValueError(f"folds={folds} need at least {2 * folds} different samples; got {different}")


def _default_detector(data: Source | Extraction, normal: Any) -> JEPAScoreDetector:
    if normal is not None:
        return JEPAScoreDetector(on_error="skip")
    # JEPA-SCORE takes K backward passes per image, for which larger encoders are too slow.
    is_image = isinstance(data, Source) and not data.is_vector
    return JEPAScoreDetector("bundled" if is_image else "auto", formula="jepa", on_error="skip")


def _readable_by_detector(given: Any) -> Any:
    return clone(given) if hasattr(given, "reads") else EmbeddingDetector(clone(given))


def _measured(detector: Any, data: Samples, store: str | os.PathLike | None) -> Samples:
    """One expensive pass for all folds, where what the encoder is does not depend on what is learned from."""
    if isinstance(data, Extraction):
        return data
    frozen = isinstance(detector, JEPAScoreDetector) and not data.is_vector and not _is(detector.method, "subspace")
    if frozen:
        return detector.extract(data, store=store)
    if store is not None:
        raise ValueError("a store keeps what one frozen encoder measures, and this detector has none")
    return data


def _is(value: Any, name: str) -> bool:
    return isinstance(value, str) and value == name


def _without_threshold(detector: Any) -> Any:
    """Scores are asked for, and nothing need be held out for a threshold."""
    if isinstance(detector, CalibratedDetector):
        return clone(detector).set_params(calibration=None, target_fpr=None)
    return clone(detector)


def _fitted(detector: Any, normal: Any, target_fpr: float | None, store: str | os.PathLike | None) -> Any:
    """The detector, fitted on a clean reference and calibrated where there is a rate to keep."""
    if target_fpr is None:
        detector = _without_threshold(detector)
    elif isinstance(detector, CalibratedDetector):
        share = _HELD_OUT if detector.calibration is None else detector.calibration
        detector = detector.set_params(target_fpr=target_fpr, calibration=share)
    else:
        raise ValueError(f"target_fpr needs a detector with p-values, one of skjepa's; got {type(detector).__name__}")
    return detector.fit(_measured(detector, normal if isinstance(normal, Extraction) else as_source(normal), store))


def _names(samples: Samples) -> tuple[NDArray[np.str_], dict[int, str]]:
    """Names of all samples, those skipped too; and position -> reason of these."""
    return (samples.all_ids, samples.errors) if isinstance(samples, Extraction) else (samples.ids, {})


def _contents(data: Samples, ids: NDArray[np.str_]) -> NDArray[np.str_]:
    """Equal for copies; the name where a sample cannot be read."""
    if isinstance(data, Extraction):
        contents = ids.copy()
        contents = contents.astype(f"<U{max(ids.dtype.itemsize, data.identities.dtype.itemsize) // 4}")
        contents[data.measured] = data.identities
        return contents
    known = known_by_content(data)
    return np.array([known.content(i) or name for i, name in enumerate(ids.tolist())], dtype=np.str_)


def _reasons(errors: dict[int, str], scores: NDArray[np.float64], data: Samples) -> dict[int, str]:
    """Position -> reason, of samples that were skipped before they were scored or while they were."""
    found = {}
    for i in np.flatnonzero(np.isnan(scores)).tolist():
        found[i] = errors.get(i) or _reason(data, i)
    return found


def _reason(data: Samples, i: int) -> str:
    try:
        if isinstance(data, Source):
            data.load(i)
    except ValueError as error:
        return str(error)
    return "no score"


def _cross_scores(
    detector: Any,
    samples: Samples,
    contents: NDArray[np.str_],
    among: NDArray[np.bool_],
    folds: int,
    random_state: int,
) -> NDArray[np.float64]:
    """Score of every sample by a model that has learned from `among`, but not from it or a copy of it; (n_samples,)."""
    _check_folds(contents, folds)  # once more: some may have been skipped
    different = np.unique(contents)
    order = np.lexsort((samples.ids, contents))  # whatever the order they came in
    contents, among, samples = contents[order], among[order], samples[order]
    scores = np.full(len(order), np.nan)
    for _, part in KFold(folds, shuffle=True, random_state=random_state).split(different):
        unseen = np.isin(contents, different[part])
        model = clone(detector).fit(samples[~unseen & among])
        scores[order[unseen]] = model.score_samples(samples[unseen])
    return scores
