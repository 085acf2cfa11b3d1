"""A collection is scored by who has not seen it, whatever its order."""

import numpy as np
import pytest
from oracles import conv_net, random_images
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

import skjepa
from skjepa import JEPAScoreDetector, KNNDetector, VectorJEPA, extract, load_encoder
from skjepa.curation.collection import prune
from skjepa.data.sample_images import demo_images
from skjepa.data.sources import as_source
from skjepa.extraction.extraction import Extraction


class Seen(BaseEstimator):
    """Scores 1 what it has been fitted on, 0 what not; and remembers what its fits were given."""

    reads = "samples"
    fits: list = []  # noqa: RUF012 (a clone keeps no attributes)

    def fit(self, X, y=None):
        self.rows_ = {row.tobytes() for row in X.rows()}
        Seen.fits.append(X.rows())
        return self

    def score_samples(self, X):
        return np.array([float(row.tobytes() in self.rows_) for row in X.rows()])


def test_no_sample_is_scored_by_who_has_seen_it_or_a_copy():
    X = np.random.default_rng(0).normal(size=(30, 2))
    X = np.concatenate([X, X[:12]])
    Seen.fits.clear()
    pruned = prune(X, keep=0.5, detector=Seen(), folds=3)
    assert (pruned.scores == 0).all()
    assert len(pruned.copy_of) == 12
    assert len(Seen.fits) == 3
    assert len({row.tobytes() for rows in Seen.fits for row in rows}) == 30


def test_a_further_round_learns_from_what_was_kept():
    rng = np.random.default_rng(0)
    # Junk so dense that it vouches for itself, until most of it is out.
    X = np.concatenate([rng.normal(size=(100, 2)), rng.normal([7, 0], 1.0, size=(30, 2))])
    first, second = (prune(X, keep=0.7, detector=KNNDetector(), rounds=rounds) for rounds in (1, 2))
    kept = {X[i].tobytes() for i in np.flatnonzero(first.kept)}
    Seen.fits.clear()
    prune(X, keep=0.7, detector=Seen(), rounds=2)
    assert all(len(rows) < 104 for rows in Seen.fits[5:])
    assert first.kept[100:].sum() > second.kept[100:].sum()
    assert len(kept) == second.kept.sum() == 91


@pytest.mark.parametrize(
    "detector", [KNNDetector(), IsolationForest(random_state=0), JEPAScoreDetector(formula="jepa")]
)
def test_the_order_does_not_matter(detector):
    rng = np.random.default_rng(0)
    rows, sigma = rng.normal(size=(40, 3)), np.sort(rng.lognormal(size=(40, 1, 3)))[..., ::-1]
    whole = Extraction(rows, sigma, np.array([f"{i:02d}" for i in range(40)]), {})
    order = rng.permutation(40)
    one, other = prune(whole, keep=0.6, detector=detector), prune(whole[order], keep=0.6, detector=detector)
    assert set(one.kept_ids) == set(other.kept_ids)
    np.testing.assert_array_equal(one.scores[order], other.scores)


@pytest.fixture
def folder(tmp_path):
    """Two classes of smooth images, noise among them, a copy and a broken file."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    images = {"cat": random_images(25), "dog": np.concatenate([random_images(10, seed=1), noise])}
    for name, pictures in images.items():
        (tmp_path / name).mkdir()
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / name / f"{i:02d}.png")
    (tmp_path / "dog" / "copy.png").write_bytes((tmp_path / "cat" / "03.png").read_bytes())
    (tmp_path / "dog" / "broken.png").write_bytes(b"nothing")
    return tmp_path


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(conv_net(), image_size=32)


def test_a_folder(folder, encoder, tmp_path_factory):
    detector = JEPAScoreDetector(encoder, on_error="skip")
    store = tmp_path_factory.mktemp("store") / "kept"
    with pytest.warns(UserWarning, match=r"broken\.png"):
        pruned = prune(folder, keep=0.8, detector=detector, per_class=True, store=store)
    assert pruned.counts() == {
        "cat": {"images": 25, "kept": 20, "dropped": 5, "unreadable": 0},
        "dog": {"images": 17, "kept": 13, "dropped": 3, "unreadable": 1},
    }
    names = pruned.ids.tolist()
    assert pruned.errors.keys() == {names.index("dog/broken.png")}
    assert pruned.copy_of == {names.index("dog/copy.png"): "cat/03.png"}
    assert len(list(folder.rglob("*.png"))) == 42
    with pytest.warns(UserWarning, match=r"broken\.png"):
        again = prune(folder, keep=0.8, detector=detector, store=store)  # everything but the broken one is read
    np.testing.assert_array_equal(again.scores, pruned.scores)
    assert again.kept.sum() == 33


def test_a_clean_reference_and_a_rate(encoder):
    normal = random_images(120, seed=5)
    X = [*random_images(30, seed=6), *np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), np.uint8)]
    detector = JEPAScoreDetector(encoder)
    pruned = prune(X, target_fpr=0.1, normal=normal, detector=detector)
    fitted = JEPAScoreDetector(encoder, target_fpr=0.1, calibration=0.2).fit(normal)
    np.testing.assert_allclose(pruned.scores, fitted.score_samples(np.stack(X)), rtol=1e-6)
    assert pruned.kept.tolist() == (fitted.predict(np.stack(X)) == 1).tolist()
    assert pruned.kept.tolist() == (pruned.p_values > 0.1).tolist()
    assert 0 < pruned.kept.sum() < 40
    by_share = prune(X, keep=0.5, normal=normal, detector=detector)
    assert by_share.p_values is None
    assert by_share.kept.sum() == 20


def test_rows_train_an_encoder_for_each_fold():
    X = np.random.default_rng(0).normal(size=(30, 3))
    X[:2] += 30
    pruned = prune(X, keep=0.9, detector=JEPAScoreDetector(VectorJEPA(n_steps=30)), folds=2)
    assert pruned.kept.sum() == 27
    assert not pruned.kept[:2].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either keep, a share, or target_fpr"),
        (
            {"keep": 0.5, "target_fpr": 0.1},
            "give either keep, a share, or target_fpr, .*; got keep=0.5 and target_fpr=0.1",
        ),
        ({"keep": 1.0}, r"keep must lie in \(0, 1\)"),
        ({"target_fpr": 0.1}, "needs a clean reference"),
        ({"target_fpr": 0.1, "per_class": True}, "give keep= in place of target_fpr="),
        ({"target_fpr": 0.1, "normal": np.eye(9), "detector": Seen()}, "a detector with p-values"),
        ({"keep": 0.5, "per_class": True}, "per_class=True needs classes"),
        ({"keep": 0.5, "classes": ["a"]}, "classes must be one per fit sample"),
        ({"keep": 0.5, "rounds": 2, "normal": np.eye(9)}, "with normal= nothing is learned from it"),
        ({"keep": 0.5, "folds": 6}, "folds=6 need at least 12 different samples; got 9"),
        ({"keep": 0.5, "folds": 2, "store": "somewhere"}, "has no encoder: leave store out"),
    ],
)
def test_bad_rules_are_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        prune(np.eye(9), **{"detector": KNNDetector(), **options})


def test_unreadable_images_of_an_extraction_are_told(folder, encoder):
    with pytest.warns(UserWarning, match=r"broken\.png"):
        extraction = extract(encoder, folder, on_error="skip")
    pruned = prune(extraction, keep=0.5, detector=KNNDetector())
    assert [pruned.ids[i] for i in pruned.errors] == ["dog/broken.png"]
    assert len(pruned) == len(as_source(folder)) == 42
    assert pruned.kept.sum() == 21
    assert skjepa.prune is prune


def test_by_default_a_cluster_of_junk_does_not_vouch_for_itself():
    images = demo_images(0)
    X = [*images["photographs"][:30], *images["digits"][:15]]
    passed = extract("bundled", X)
    is_normal = np.repeat([True, False], [30, 15])
    asked, learned = (prune(passed, keep=0.5, detector=detector) for detector in (None, JEPAScoreDetector()))
    assert roc_auc_score(is_normal, asked.scores) > 0.75
    assert roc_auc_score(is_normal, learned.scores) < 0.5
    # With a clean reference the place of an image may count as well.
    clean = extract("bundled", images["fit"][:30])
    by_reference = prune(passed, keep=0.5, normal=clean)
    np.testing.assert_allclose(by_reference.scores, JEPAScoreDetector().fit(clean).score_samples(passed))
