"""Score a collection and choose the samples to keep; nothing is moved or deleted."""

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.model_selection import KFold

from skjepa._utils.validation import check_choice, check_integer
from skjepa.curation.rules import Pruned, check_classes, check_rule, prune_scores
from skjepa.data.source import Source, known_by_content
from skjepa.data.sources import as_source
from skjepa.data.splits import checked_classes, folders_of
from skjepa.detectors.adapter import EmbeddingDetector
from skjepa.detectors.base import CalibratedDetector, Samples
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.detectors.on_embeddings import OnEmbeddings
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
    """Score a collection that contains junk, and choose the samples to keep.

    Nothing is moved or deleted. Without a clean reference the detector learns from the collection itself, including the
    junk. The collection is then split into `folds`, and each fold is scored by a model that was fitted on the others,
    because a model scores the samples of its fit, and their copies, too high.

    Parameters
    ----------
    X : images, vectors or Extraction
        See `skjepa.data.as_source`.
    keep : float in (0, 1)
        Share of the readable samples to keep, those with the highest scores, rounded up.
    target_fpr : float in (0, 1)
        Give it in place of `keep` to drop samples that are unlike `normal`. At most this share of the samples that are
        like `normal` is dropped, in expectation.
    normal : images, vectors or Extraction, optional
        A clean reference to learn from in place of X. X should not contain samples of it, which would score too high.
    detector : estimator, optional
        It is cloned. A scikit-learn or PyOD detector gets the vectors, or the embeddings of the images. By default a
        `JEPAScoreDetector` that skips unreadable images, with formula "joint" where `normal` is given, else "jepa" on
        the bundled encoder. A detector that learns where the samples of X lie takes a cluster of junk for normal,
        because the cluster is dense. JEPA-SCORE depends on the encoder alone (docs/guide/curation.md compares both).
    classes : "folders", array with one class per sample, or None
        Classes for `per_class` and for the counts in the result; "folders": the sub-folders of X.
        per_class : bool
        Keep the share `keep` of every class, and at least one sample of each, so that rare classes survive.
    drop_copies : bool
        Keep at most one of several identical samples, the first by name. Files count as identical byte by byte.
    folds : int
        Number of parts into which the collection is split.
    rounds : int
        Number of rounds. From the second on, models learn from the samples alone that the round before would keep.
    store : path, optional
        Folder that keeps finished samples, and from which the run resumes.
    random_state : int
        Seeds the folds. The order of X has no effect.

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
        raise ValueError(
            f"target_fpr={target_fpr:g} needs a clean reference to calibrate on: give normal=, or keep= in place of it"
        )
    if rounds > 1 and normal is not None:
        raise ValueError(
            f"rounds={rounds} learn from the collection, and with normal= nothing is learned from it: give rounds=1 or "
            "leave normal out"
        )
    if isinstance(classes, str):
        check_choice("classes", classes, ("folders",))
    data = X if isinstance(X, Extraction) else as_source(X)
    detector = _default_detector(data, normal) if detector is None else _readable_by_detector(detector)
    ids, errors = _names(data)
    labels = folders_of(ids) if isinstance(classes, str) else checked_classes(classes, len(ids))
    contents = _contents(data, ids)
    check_classes(labels, per_class)  # refuse bad parameters before the expensive pass
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
        raise ValueError(
            f"folds={folds} need at least {2 * folds} different samples; got {different}: give fewer folds"
        )


def _default_detector(data: Source | Extraction, normal: Any) -> JEPAScoreDetector:
    if normal is not None:
        return JEPAScoreDetector(on_error="skip")
    # JEPA-SCORE takes K backward passes per image, for which larger encoders are too slow.
    is_image = isinstance(data, Source) and not data.is_vector
    return JEPAScoreDetector("bundled" if is_image else "auto", formula="jepa", on_error="skip")


def _readable_by_detector(given: Any) -> Any:
    return clone(given) if hasattr(given, "reads") else EmbeddingDetector(clone(given))


def _measured(detector: Any, data: Samples, store: str | os.PathLike | None) -> Samples:
    """Run one expensive pass for all folds, where the encoder does not depend on the samples learned from."""
    if isinstance(data, Extraction):
        return data
    is_detector = isinstance(detector, JEPAScoreDetector) and detector.tiles is None
    if is_detector and not data.is_vector and not _is(detector.method, "subspace"):
        return detector.extract(data, store=store)
    if isinstance(detector, OnEmbeddings) and not data.is_vector:
        return detector.embed_images(data, store=store)
    if store is not None:
        raise ValueError(
            "store= works with a frozen encoder, and this detector trains one, learns directions or has no encoder: "
            "leave store out"
        )
    return data


def _is(value: Any, name: str) -> bool:
    return isinstance(value, str) and value == name


def _without_threshold(detector: Any) -> Any:
    """Return a clone that holds nothing out for a threshold, because only its scores are used."""
    if isinstance(detector, CalibratedDetector):
        return clone(detector).set_params(calibration=None, target_fpr=None)
    return clone(detector)


def _fitted(detector: Any, normal: Any, target_fpr: float | None, store: str | os.PathLike | None) -> Any:
    """Fit the detector on a clean reference, and calibrate it where a rate is given."""
    if target_fpr is None:
        detector = _without_threshold(detector)
    elif isinstance(detector, CalibratedDetector):
        share = _HELD_OUT if detector.calibration is None else detector.calibration
        detector = detector.set_params(target_fpr=target_fpr, calibration=share)
    else:
        raise ValueError(
            f"target_fpr needs a detector with p-values; got {type(detector).__name__}: give one of skjepa, such "
            "as EmbeddingDetector(...) around this one, or keep="
        )
    return detector.fit(_measured(detector, normal if isinstance(normal, Extraction) else as_source(normal), store))


def _names(samples: Samples) -> tuple[NDArray[np.str_], dict[int, str]]:
    """Return the names of all samples, and the reason by position for the skipped ones."""
    return (samples.all_ids, samples.errors) if isinstance(samples, Extraction) else (samples.ids, {})


def _contents(data: Samples, ids: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return an identity per sample that is equal for copies; the name where a sample cannot be read."""
    if isinstance(data, Extraction):
        contents = ids.copy()
        contents = contents.astype(f"<U{max(ids.dtype.itemsize, data.identities.dtype.itemsize) // 4}")
        contents[data.measured] = data.identities
        return contents
    known = known_by_content(data)
    return np.array([known.content(i) or name for i, name in enumerate(ids.tolist())], dtype=np.str_)


def _reasons(errors: dict[int, str], scores: NDArray[np.float64], data: Samples) -> dict[int, str]:
    """Return the reason by position for samples that were skipped before or during scoring."""
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
    """Return the score of every sample, (n_samples,), by a model fitted on `among` without its copies."""
    _check_folds(contents, folds)  # again, because some samples may have been skipped
    different = np.unique(contents)
    order = np.lexsort((samples.ids, contents))  # sorted, so that the order of X has no effect
    contents, among, samples = contents[order], among[order], samples[order]
    scores = np.full(len(order), np.nan)
    for _, part in KFold(folds, shuffle=True, random_state=random_state).split(different):
        unseen = np.isin(contents, different[part])
        model = clone(detector).fit(samples[~unseen & among])
        scores[order[unseen]] = model.score_samples(samples[unseen])
    return scores
