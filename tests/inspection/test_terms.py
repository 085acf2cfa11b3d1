import numpy as np
import pytest
from oracles import linear, matrix_of_spectrum, mlp, random_images
from PIL import Image

from skjepa import JEPAScoreDetector, load_encoder
from skjepa.inspection.terms import MEANING, Explanation, explain_terms, meaning
from skjepa.scores.model import FORMULAS, JOINT_WEIGHTS


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(120, 12))


@pytest.fixture(scope="module")
def encoder():
    return load_encoder(mlp())


@pytest.mark.parametrize("formula", FORMULAS)
def test_parts_sum_to_the_score(formula, encoder, X):
    detector = JEPAScoreDetector(encoder, formula=formula).fit(X[:80])
    new = np.concatenate([X[80:], X[:5] + 4])
    explained = detector.explain(new)
    np.testing.assert_allclose(np.sum(list(explained.parts.values()), axis=0), detector.score_samples(new), rtol=1e-12)
    np.testing.assert_allclose(explained.score, detector.score_samples(new), rtol=1e-12)
    np.testing.assert_allclose(explained.decision, detector.decision_function(new), rtol=1e-12, atol=1e-12)
    assert len(explained) == 45
    assert list(explained.parts) == list(detector.model_.terms(detector.extract(new)))


def test_deviations_and_p_values_are_against_the_fit_samples(encoder, X):
    detector = JEPAScoreDetector(encoder, formula="jepa").fit(X[:80])
    fit, new = detector.score_samples(X[:80]), detector.score_samples(X[80:])
    explained = detector.explain(X[80:])
    np.testing.assert_allclose(explained.deviations["volume"], (new - fit.mean()) / fit.std(), rtol=1e-6, atol=1e-6)
    expected = (1 + (fit[None] <= new[:, None]).sum(axis=1)) / 81
    np.testing.assert_allclose(explained.p_values["volume"], expected)


@pytest.mark.parametrize(
    ("options", "terms"),
    [({}, ["layer input", "layer 3", "neighbours"]), ({"method": "exact", "layers": None}, ["density"])],
)
def test_a_far_sample_is_odd_and_the_words_say_so(options, terms, encoder, X):
    detector = JEPAScoreDetector(encoder, **options).fit(X[:80])
    explained = detector.explain(X[:1] + 6)
    words = explained.words(0)
    assert ", flagged; " in words
    for term in terms:
        assert explained.p_values[term][0] == pytest.approx(1 / 81)
        assert explained.deviations[term][0] < -3
        assert meaning(term) in words
    assert str(detector.explain(X[80:83])).count("\n") == 2


def test_fit_samples_have_p_values_of_every_size(encoder, X):
    """They are judged as if they had not been seen: their ranks are 1 to n, and nothing else."""
    explained = JEPAScoreDetector(encoder).fit(X[:80]).explain(X[:80])
    for name, p in explained.p_values.items():
        np.testing.assert_allclose(np.sort(p), np.arange(2, 82) / 81, err_msg=name)


def test_every_term_has_a_meaning():
    layered = JEPAScoreDetector(local=True).fit(random_images(20)).model_.term_names
    layers = {f"layer {name}" for name in ("stage 1", "stage 2", "stage 3", "stage 4", "output")}
    assert layered > layers
    assert set(MEANING) == set(JOINT_WEIGHTS) | (layered - layers)
    for name in layers:
        assert meaning(name).endswith("unlike normal samples, given the layer before")
    assert "the embedding is" in meaning("layer output")
    assert "layer 'stage 2' is" in meaning("layer stage 2")


def test_a_term_without_a_meaning_is_told_by_its_name():
    explained = explain_terms(
        np.array(["a"]), np.array([-1.0]), [{"new": np.array([-9.0])}], [{"new": np.arange(40.0)}]
    )
    assert explained.words(0).endswith("new is low")


def test_nothing_unusual_is_said_so():
    explained = explain_terms(np.array(["a"]), np.array([1.0]), [{"new": np.array([30.0])}], [{"new": np.arange(40.0)}])
    assert (
        "not flagged; no term is unusual, least normal new +30.00 (0.9 sd over the mean, p = 0.78)"
        in explained.words(0)
    )


def test_of_a_constant_term_nothing_deviates(X):
    encoder = load_encoder(linear(matrix_of_spectrum([3.0, 1.0, 0.2], 12)).float())
    for term, layers in (("volume", None), ("volume given embedding", "auto")):
        explained = JEPAScoreDetector(encoder, method="exact", layers=layers).fit(X[:80]).explain(X[80:])
        np.testing.assert_allclose(explained.deviations[term], 0, atol=5)
        assert np.isfinite(explained.deviations[term]).all()


def test_folds_and_extractions(encoder, X):
    detector = JEPAScoreDetector(encoder, calibration=3, target_fpr=0.2).fit(X[:80])
    explained = detector.explain(X[80:])
    np.testing.assert_allclose(np.sum(list(explained.parts.values()), axis=0), explained.score, rtol=1e-12)
    np.testing.assert_allclose(explained.decision, detector.decision_function(X[80:]))
    again = detector.explain(detector.extract(X[80:]))
    np.testing.assert_allclose(again.score, explained.score)
    assert again.ids.tolist() == explained.ids.tolist()


def test_saved_detectors_explain(encoder, X, tmp_path):
    detector = JEPAScoreDetector("bundled", random_state=0).fit(random_images(20))
    new = random_images(4, seed=1)
    detector.save(tmp_path / "detector")
    loaded = JEPAScoreDetector.load(tmp_path / "detector")
    np.testing.assert_allclose(loaded.explain(new).score, detector.explain(new).score, rtol=1e-6)


def test_images_that_cannot_be_read_stay_in_their_places(tmp_path):
    for i, image in enumerate(random_images(3)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    detector = JEPAScoreDetector(on_error="skip").fit(random_images(20, seed=1))
    with pytest.warns(UserWarning, match="skipped"):
        explained = detector.explain(tmp_path)
    assert explained.ids.tolist() == ["0.png", "1.png", "2.png"]
    assert np.isnan(explained.score).tolist() == [False, True, False]
    assert all(np.isnan(p).tolist() == [False, True, False] for p in explained.p_values.values())
    assert explained.words(1) == "1.png: could not be read"


def test_an_explanation_is_no_promise_without_samples():
    assert len(Explanation(np.array([]), *[np.array([])] * 2, {}, {}, {})) == 0
