"""Who is judged on tables: the default detector, what it is made of, and PyOD's detectors at their defaults.

A rival is a function of (parts, seed) that returns outlier scores of the judged rows and the seconds that fitting and
scoring took, by name; one more line in `RIVALS` is one more rival.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.ecod import ECOD
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.lof import LOF
from pyod.models.mcd import MCD
from pyod.models.ocsvm import OCSVM
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler

from benchmarks.common.table_sets import Parts
from skjepa import EmbeddingDetector, JEPAScoreDetector, MahalanobisDetector, VectorJEPA

Judged = dict[str, tuple[NDArray[np.float64], float]]
DEFAULT = "skjepa"
FORMULAS = {DEFAULT: "joint", "skjepa density": "density", "skjepa jepa": "jepa"}
TRIM = 0.25
ON_LAYERS = {
    "Mahalanobis, sum over layers": MahalanobisDetector(layer="sum"),
    "KNN on layers": EmbeddingDetector(KNN(), layer="concatenated"),
}


def ours(parts: Parts, seed: int) -> Judged:
    """The default detector, and on the same network, which has seen the fitted rows only, other formulas and rivals."""
    return _by_formula(VectorJEPA(random_state=seed), FORMULAS, ON_LAYERS, parts, seed)


def without_network(parts: Parts, seed: int) -> Judged:
    """The default score of the compressed features alone."""
    return _by_formula(VectorJEPA(n_steps=0, random_state=seed), {"skjepa, no network": "joint"}, {}, parts, seed)


def trimmed(parts: Parts, seed: int) -> Judged:
    """The default, which leaves out the quarter of the fitted rows that looks least like the others."""
    started = time.perf_counter()
    detector = JEPAScoreDetector(trim=TRIM, random_state=seed).fit(parts.fit)
    return {f"skjepa, trim={TRIM}": (-detector.score_samples(parts.test), time.perf_counter() - started)}


def _by_formula(
    network: VectorJEPA, formulas: dict[str, str], on_layers: dict[str, Any], parts: Parts, seed: int
) -> Judged:
    """As `JEPAScoreDetector(network, formula=formula).fit(fit).score_samples(test)`, with one training for all."""
    started = time.perf_counter()
    encoder = network.fit(parts.fit).encoder_
    training = time.perf_counter() - started
    judged = {}
    detectors = {name: JEPAScoreDetector(formula=formula) for name, formula in formulas.items()} | on_layers
    for name, detector in detectors.items():
        started = time.perf_counter()
        detector = clone(detector).set_params(random_state=seed)
        how = {"formula": detector.formula} if isinstance(detector, JEPAScoreDetector) else {}
        passed = JEPAScoreDetector(encoder, random_state=seed, **how)
        known = passed.extract(parts.fit)
        new = known if parts.same else passed.extract(parts.test)
        judged[name] = (-detector.fit(known).score_samples(new), training + time.perf_counter() - started)
    return judged


def of_pyod(name: str, make: Callable[[int], Any], *, scaled: bool = True) -> Callable[[Parts, int], Judged]:
    """One of PyOD's on rows standardised by the fitted ones.

    Of the rows it was fitted on it gives the scores it kept, in which no row is its own neighbour.
    """

    def judge(parts: Parts, seed: int) -> Judged:
        started = time.perf_counter()
        scale = StandardScaler().fit(parts.fit).transform if scaled else np.asarray
        model = make(seed).fit(scale(parts.fit))
        scores = model.decision_scores_ if parts.same else model.decision_function(scale(parts.test))
        return {name: (np.asarray(scores, dtype=np.float64), time.perf_counter() - started)}

    return judge


PYOD: dict[str, Callable[[int], Any]] = {
    "KNN": lambda seed: KNN(),
    "LOF": lambda seed: LOF(),
    "IForest": lambda seed: IForest(random_state=seed),
    "ECOD": lambda seed: ECOD(),
    "MCD": lambda seed: MCD(random_state=seed),
    "OCSVM": lambda seed: OCSVM(),
    "AutoEncoder": lambda seed: AutoEncoder(random_state=seed, verbose=0, device="cpu"),
}

LISTED = (DEFAULT, *PYOD)
"""Who is ranked. The others are parts of the default, or a rival in another form, and would crowd the ranks."""

RIVALS: dict[str, Callable[[Parts, int], Judged]] = {
    DEFAULT: ours,
    "skjepa, no network": without_network,
    f"skjepa, trim={TRIM}": trimmed,
    **{name: of_pyod(name, make) for name, make in PYOD.items()},
    "KNN, unscaled": of_pyod("KNN, unscaled", PYOD["KNN"], scaled=False),
}

NAMES = {DEFAULT: (*FORMULAS, *ON_LAYERS)}
"""What a rival's scores are called, where not like the rival."""
