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
from sklearn.preprocessing import StandardScaler

from benchmarks.common.table_sets import Parts
from skjepa import JEPAScoreDetector, VectorJEPA

Judged = dict[str, tuple[NDArray[np.float64], float]]
DEFAULT = "skjepa"
FORMULAS = {DEFAULT: "joint", "skjepa density": "density", "skjepa jepa": "jepa"}


def ours(parts: Parts, seed: int) -> Judged:
    """The default detector, and the other formulas on the same network, which has seen the fitted rows only."""
    return _by_formula(VectorJEPA(random_state=seed), FORMULAS, parts, seed)


def without_network(parts: Parts, seed: int) -> Judged:
    """The default score of the compressed features alone."""
    return _by_formula(VectorJEPA(n_steps=0, random_state=seed), {"skjepa, no network": "joint"}, parts, seed)


def _by_formula(network: VectorJEPA, formulas: dict[str, str], parts: Parts, seed: int) -> Judged:
    """As `JEPAScoreDetector(network, formula=formula).fit(fit).score_samples(test)`, from one pass for all formulas."""
    started = time.perf_counter()
    encoder = network.fit(parts.fit).encoder_
    passed = JEPAScoreDetector(encoder, random_state=seed)
    known = passed.extract(parts.fit)
    new = known if parts.same else passed.extract(parts.test)
    shared = time.perf_counter() - started
    judged = {}
    for name, formula in formulas.items():
        started = time.perf_counter()
        detector = JEPAScoreDetector(encoder, formula=formula, random_state=seed).fit(known)
        judged[name] = (-detector.score_samples(new), shared + time.perf_counter() - started)
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
    **{name: of_pyod(name, make) for name, make in PYOD.items()},
    "KNN, unscaled": of_pyod("KNN, unscaled", PYOD["KNN"], scaled=False),
}

NAMES = {DEFAULT: tuple(FORMULAS)}
"""What a rival's scores are called, where not like the rival."""
