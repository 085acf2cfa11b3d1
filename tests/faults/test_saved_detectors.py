"""Folders of saved detectors, damaged and forged: refused with a sentence that names the folder, or of use as they are.

A forger can recompute the checksum, so the forged folders here have a right one. What is legal in itself is not
refused: a threshold of another size is another threshold (docs/guide/safety.md).
"""

import copy
import json
import os
import random
import time
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from oracles import random_images
from safetensors.numpy import load, save

from skjepa import (
    ComplexityDetector,
    EmbeddingDetector,
    JEPAScoreDetector,
    KNNDetector,
    MahalanobisDetector,
    VectorJEPA,
    learn_directions,
    learn_volume_explainer,
    load_encoder,
)
from skjepa.extraction.store.settings import SettingsMismatchError
from skjepa.inspection.volume_maps import VolumeExplainer
from skjepa.persistence.folder import ARRAY_FILE, OBJECT_FILE, NotHereError, _digest
from skjepa.scores.densities import GaussianDensity, KNNDensity

RNG = np.random.default_rng(0)
ROWS, FRESH, CLASSES = RNG.normal(size=(60, 5)), RNG.normal(size=(4, 5)), np.repeat([0, 1], 30)
IMAGES = random_images(12)
JEPA = VectorJEPA(n_components=4, widths=(8,), n_steps=5)
SECONDS = float(os.environ.get("FUZZ_SECONDS", "20"))


def own_encoder():
    torch.manual_seed(0)
    return load_encoder(torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6)))


ENCODER = own_encoder()
KINDS = {
    "default": lambda: JEPAScoreDetector().fit(ROWS),
    "folds": lambda: JEPAScoreDetector(JEPA, calibration=3, target_fpr=0.1).fit(ROWS),
    "calibrated": lambda: JEPAScoreDetector(ENCODER, calibration=0.3).fit(ROWS),
    "no network": lambda: JEPAScoreDetector(VectorJEPA(n_steps=0), reference=KNNDensity(9)).fit(ROWS),
    "density": lambda: JEPAScoreDetector(JEPA, formula="density", reference="gaussian").fit(ROWS),
    "gaussian": lambda: JEPAScoreDetector(ENCODER, reference="gaussian", rank=1).fit(ROWS),
    "jepa": lambda: JEPAScoreDetector(JEPA.set_params(n_steps=4).fit(ROWS), formula="jepa").fit(ROWS),
    "subspace": lambda: JEPAScoreDetector(ENCODER, method="subspace", n_directions=2).fit(ROWS),
    "directions": lambda: JEPAScoreDetector(ENCODER, method=learn_directions(ENCODER, ROWS, 2)).fit(ROWS),
    "extraction": lambda: JEPAScoreDetector(ENCODER).fit(JEPAScoreDetector(ENCODER).extract(ROWS)),
    "images": lambda: JEPAScoreDetector().fit(IMAGES),
    "mahalanobis": lambda: MahalanobisDetector(normalize=True, calibration=4, target_fpr=0.1).fit(ROWS),
    "relative": lambda: MahalanobisDetector(relative=True).fit(ROWS, CLASSES),
    "knn": lambda: KNNDetector(n_neighbors=3, metric="manhattan", calibration=0.3).fit(ROWS),
    "embedding": lambda: EmbeddingDetector(GaussianDensity()).fit(ROWS),
    "complexity": lambda: ComplexityDetector().fit(IMAGES),
    "explainer": lambda: learn_volume_explainer(ENCODER, ROWS),
}
JUNK = [None, True, -1, 0, 10**30, 1.5, -0.5, 1e308, "", "x", "../../x", [], {}, [[1]], {"a": 1}, {"$float": "nan"}]
JUNK += [{"$float": "9" * 99}, {"$tuple": 3}, {"$tuple": []}, {"$names": 5}, {"$names": ["a"]}, {"$array": "no"}]
JUNK += [{"$class": "Nope", "state": {}}, {"$class": ["a"], "state": 3}, {"$class": "Finding", "state": {}}]
RESHAPED = {
    "one row less": lambda a: a[:-1] if a.ndim else a.reshape(1),
    "another axis": lambda a: a[None],
    "flat": lambda a: a.reshape(-1, *([1] * (a.ndim == 1))),
    "turned": lambda a: np.ascontiguousarray(a.T) if a.ndim > 1 else a[::-1].copy(),
    "empty": lambda a: a[:0] if a.ndim else a.reshape(1)[:0],
    "integers": lambda a: a.astype(np.int64),
    "single": lambda a: a.astype(np.float32),
    "NaN": lambda a: np.full_like(a, np.nan, dtype=np.float64),
    "infinite": lambda a: np.full_like(a, np.inf, dtype=np.float64),
    "zero": np.zeros_like,
    "negative": lambda a: -np.abs(a) - 1,
    "huge": lambda a: np.full_like(a, 1e308, dtype=np.float64),
}


class Saved:
    """A saved detector, the folder that is forged of it, and what it does."""

    def __init__(self, name, home):
        self.detector, self.folder = KINDS[name](), home / name
        self.images = name in ("images", "complexity")
        self.detector.save(self.folder)
        self.document = json.loads((self.folder / OBJECT_FILE).read_text())
        self.packed = (self.folder / ARRAY_FILE).read_bytes()
        self.arrays = load(self.packed)
        self.places = list(places(self.document["object"]))
        self.expected = self.used(self.detector)

    def forge(self, rng):
        """Change one thing, with a right checksum; what was changed, in words."""
        document, arrays = copy.deepcopy(self.document), dict(self.arrays)
        if arrays and rng.random() < 0.3:
            name, how = rng.choice(sorted(arrays)), rng.choice(sorted(RESHAPED))
            arrays[name] = RESHAPED[how](arrays[name])
            what = f"{name}: {how}"
        else:
            place = rng.choice(self.places)
            node = document["object"]
            for key in place[:-1]:
                node = node[key]
            junk = rng.choice([*JUNK, "$delete", "$elsewhere", "$elsewhere"])
            what = f"{place}: {junk!r}"
            if junk == "$delete":
                del node[place[-1]]
            elif junk == "$elsewhere":
                other = rng.choice(self.places)
                what = f"{place}: {other}"
                node[place[-1]] = at(self.document["object"], other)
            else:
                node[place[-1]] = junk
        self.write(document, save(arrays))
        return what

    def scribble(self, rng):
        """Change bytes of a file, with a right checksum where the rest can be read."""
        packed, text = bytearray(self.packed), bytearray(json.dumps(self.document["object"]).encode())
        target = rng.choice([packed, text])
        for _ in range(rng.choice([1, 1, 3, 30])):
            target[rng.randrange(min(len(target), rng.choice([60, 10**9])))] = rng.randrange(256)
        if rng.random() < 0.2:
            del target[rng.randrange(len(target)) :]
        try:
            document = {**self.document, "object": json.loads(text)}
        except ValueError:
            (self.folder / OBJECT_FILE).write_bytes(text)
        else:
            self.write(document, bytes(packed))
        return "bytes"

    def write(self, document, packed):
        document["sha256"] = _digest(document["object"], packed)
        (self.folder / OBJECT_FILE).write_text(json.dumps(document))
        (self.folder / ARRAY_FILE).write_bytes(packed)

    def outcome(self):
        """What comes of loading the folder and using what it holds."""
        own = ENCODER if getattr(self.detector, "encoder", None) is ENCODER else None
        try:
            made = type(self.detector).load(self.folder, encoder=own)
        except NotHereError:
            return "refused: its encoder"
        except ValueError as error:
            return "refused" if str(self.folder) in str(error) else f"refused, but without the folder: {error}"
        try:
            same = np.array_equal(self.used(made), self.expected, equal_nan=True)
        except (SettingsMismatchError, NotHereError):
            return "refused in use"
        except Exception as error:
            return f"loads, then {type(error).__name__}: {error}"
        return "the same scores" if same else "other scores"

    def used(self, detector):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(detector, VolumeExplainer):
                return detector.explain(FRESH).shares
            X = IMAGES[:3] if self.images else FRESH
            detector.predict(X)
            if isinstance(detector, JEPAScoreDetector):
                str(detector.explain(X)), str(detector.diagnose())
            if detector.calibration_scores_ is not None:
                detector.p_values(X)
            return detector.score_samples(X)


def places(tree, place=()):
    """Where something is in a tree, but its root."""
    if place:
        yield place
    for key, item in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(item, (*place, key))


def at(tree, place):
    for key in place:
        tree = tree[key]
    return copy.deepcopy(tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made, home = {}, tmp_path_factory.mktemp("saved")
    return lambda name: made.get(name) or made.setdefault(name, Saved(name, home))


def tally(saved, rng, seconds=float("inf"), times=10**9):
    """Forge and load; how often each thing came of it, and examples of what must not."""
    counts, bad, end = Counter(), [], time.monotonic() + seconds
    while time.monotonic() < end and counts.total() < times:
        what = saved.scribble(rng) if rng.random() < 0.15 else saved.forge(rng)
        outcome = saved.outcome()
        counts[outcome.partition(",")[0]] += 1
        if "," in outcome:
            bad.append((what, outcome))
    return counts, bad


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("images", "folds")])
def test_forged_folders_are_refused_or_of_use(name, saved):
    counts, bad = tally(saved(name), random.Random(0), times=25)
    assert not bad
    assert counts["refused"] > 5


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.slow
def test_fuzz_of_saved_detectors(name, saved):
    counts, bad = tally(saved(name), random.Random(int(time.time())), seconds=SECONDS / len(KINDS))
    print(f"\n{name}: {dict(counts)}")
    assert not bad
