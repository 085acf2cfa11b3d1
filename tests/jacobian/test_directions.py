"""Identities between exact, subspace and sketch; what is refused; what a correction is worth."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import conv_net, dense_jacobian, linear, matrix_of_spectrum, mlp, random_images
from PIL import Image
from scipy.stats import spearmanr

import skjepa.extraction.learned_directions
import skjepa.jacobian.direction_search
from skjepa import Directions, Extraction, extract, jepa_score, learn_directions, load_encoder
from skjepa.encoders.encoder import FingerprintError
from skjepa.extraction.store.settings import SettingsMismatchError
from skjepa.jacobian.directions import exact_samples_needed, principal_directions, random_directions
from skjepa.jacobian.rows import jacobian
from skjepa.jacobian.volume import log_volume
from skjepa.persistence.folder import read_folder, write_folder
from skjepa.scores.model import fit_score_model

DENSE = mlp(12, 8).double()  # of its own: to convert a module changes the encoder made from it
ENCODER = load_encoder(mlp(12, 8), precision="float64")
X = np.random.default_rng(0).normal(size=(150, 12))
FRESH = np.random.default_rng(1).normal(size=(100, 12))
SETTINGS = {"formula": "joint", "reference": "knn", "floor": "auto", "rank": None}


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """What is tested here holds for any directions: tests/test_stiefel.py asks for good ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skjepa.jacobian.direction_search, "N_STEPS", 10)
        yield


@pytest.fixture(scope="module")
def learned(few_steps):
    return learn_directions(ENCODER, X, 3)


def random_gram(k: int, seed: int) -> np.ndarray:
    A = np.random.default_rng(seed).normal(size=(k, 2 * k))
    return A @ A.T


class TestIdentities:
    @pytest.mark.parametrize("mode", ["reverse", "forward", "auto"])
    def test_rows_are_those_of_the_dense_jacobian(self, mode, learned):
        U, x = torch.from_numpy(learned.components), torch.from_numpy(X[:4])
        outputs, rows = jacobian(DENSE, x, mode=mode, directions=U)
        torch.testing.assert_close(rows, U.T @ dense_jacobian(DENSE, x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(outputs, DENSE(x))
        assert not rows.requires_grad

    def test_singular_values_are_those_of_the_dense_product(self, learned):
        product = torch.from_numpy(learned.components).T @ dense_jacobian(DENSE, torch.from_numpy(FRESH[:5]))
        ours = extract(ENCODER, FRESH[:5], method=learned).singular_values[:, 0]
        np.testing.assert_allclose(ours, torch.linalg.svdvals(product).numpy(), rtol=1e-11)

    @pytest.mark.parametrize("choice", ["learned", "random", "principal"])
    @pytest.mark.parametrize("n_inputs", [12, 5])
    def test_all_directions_are_exact(self, n_inputs, choice):
        encoder = load_encoder(mlp(n_inputs, 8), precision="float64")
        exact = extract(encoder, X[:, :n_inputs])
        directions = learn_directions(encoder, X[:, :n_inputs], 8, choice=choice)
        for options in ({"method": directions}, {"method": "sketch", "n_directions": 8}):
            found = extract(encoder, X[:, :n_inputs], **options)
            np.testing.assert_allclose(found.singular_values, exact.singular_values, rtol=0, atol=1e-10)
            scores = jepa_score(encoder, X[:, :n_inputs], **options)
            np.testing.assert_allclose(scores, jepa_score(encoder, exact), rtol=0, atol=1e-10)

    def test_images_with_views(self):
        def noisy(x):
            return (x + 0.1 * torch.rand_like(x)).clamp(0, 1)

        encoder, images = load_encoder(conv_net(8), image_size=32, precision="float64"), random_images(52)
        options = {"views": 2, "transform": noisy, "random_state": 3}
        directions = learn_directions(encoder, images, 8, **options)
        exact, found = (extract(encoder, images[:6], method=m, **options) for m in ("exact", directions))
        np.testing.assert_allclose(found.singular_values, exact.singular_values, rtol=0, atol=1e-10)
        np.testing.assert_array_equal(found.embeddings, exact.embeddings)

    def test_a_model_with_all_directions_scores_as_the_exact_one(self):
        directions = learn_directions(ENCODER, X, 8)
        pairs = [extract(ENCODER, data, method=method) for method in ("exact", directions) for data in (X, FRESH)]
        exact = fit_score_model(pairs[0], **SETTINGS).score_samples(pairs[1])
        ours = fit_score_model(pairs[2], directions=directions, **SETTINGS).score_samples(pairs[3])
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-8)


class TestPrincipalDirections:
    @settings(max_examples=25)
    @given(st.integers(1, 7), st.data())
    def test_orthonormal_and_of_largest_trace(self, k, data):
        m, seed = data.draw(st.integers(1, k)), data.draw(st.integers(0, 99))
        gram = random_gram(k, seed)
        U = principal_directions(gram, m)
        np.testing.assert_allclose(U.T @ U, np.eye(m), atol=1e-12)
        np.testing.assert_allclose(np.trace(U.T @ gram @ U), np.sort(np.linalg.eigvalsh(gram))[-m:].sum())
        other = random_directions(k, m, seed=seed).components
        assert np.trace(other.T @ gram @ other) <= np.trace(U.T @ gram @ U) * (1 + 1e-12)

    def test_mean_gram_of_a_linear_encoder(self):
        """J is the same everywhere, so U spans its leading left singular vectors."""
        A = matrix_of_spectrum([5.0, 3.0, 1.0, 0.1], 9)
        encoder = load_encoder(linear(A), precision="float64")
        directions = learn_directions(encoder, X[:, :9], 2, choice="principal")
        left = np.linalg.svd(A.numpy())[0][:, :2]
        np.testing.assert_allclose(np.abs(directions.components.T @ left), np.eye(2), atol=1e-10)
        np.testing.assert_allclose(directions.subspace_values[:, 0], np.tile([5.0, 3.0], (150, 1)))

    def test_batches_do_not_matter(self):
        whole, one_by_one = (
            learn_directions(ENCODER, X[:60], 3, choice="principal", memory_budget=budget) for budget in (None, 1)
        )
        np.testing.assert_allclose(one_by_one.components, whole.components, atol=1e-9)


class TestLearnedDirections:
    def test_every_sample_meets_its_own_matrix(self, monkeypatch):
        """Whatever the batches and however often a view was seen: the matrices are those of the dense Jacobians."""
        given = {}
        monkeypatch.setattr(
            skjepa.extraction.learned_directions,
            "telling_directions",
            lambda grams, z, s, start, **_: given.update(G=grams, z=z, s=s) or start,
        )
        learn_directions(ENCODER, X[:60], 3, choice="learned", memory_budget=1)
        J = dense_jacobian(DENSE, torch.from_numpy(X[:60])).numpy()
        np.testing.assert_allclose(given["G"], J @ J.swapaxes(1, 2), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(given["z"], DENSE(torch.from_numpy(X[:60])).detach().numpy(), rtol=1e-10)
        assert spearmanr(given["s"], log_volume(np.linalg.svd(J)[1])).statistic > 0.9

    def test_they_follow_the_seed(self):
        one, same, other = (
            learn_directions(ENCODER, X, 3, choice="learned", random_state=seed).fingerprint for seed in (0, 0, 1)
        )
        assert one == same != other


class TestSketch:
    @settings(max_examples=25)
    @given(st.integers(1, 9), st.data())
    def test_orthonormal(self, k, data):
        m = data.draw(st.integers(1, k))
        U = random_directions(k, m, seed=data.draw(st.integers(0, 99))).components
        np.testing.assert_allclose(U.T @ U, np.eye(m), atol=1e-12)

    def test_directions_are_uniform(self):
        """E[U U^T] = m / K I, E[U] = 0: no output is preferred, and no sign."""
        many = np.stack([random_directions(4, 2, seed=seed).components for seed in range(4000)])
        np.testing.assert_allclose((many @ many.transpose(0, 2, 1)).mean(axis=0), np.eye(4) / 2, atol=0.03)
        np.testing.assert_allclose(many.mean(axis=0), 0, atol=0.04)

    def test_mean_squared_singular_values_are_unbiased(self):
        """K / m sum sigma(U^T J)^2 estimates sum sigma(J)^2 without bias over sketches."""
        A = matrix_of_spectrum([3.0, 2.0, 0.5, 0.1], 7).numpy()
        estimates = [
            2 * (np.linalg.svd(random_directions(4, 2, seed=seed).components.T @ A)[1] ** 2).sum()
            for seed in range(3000)
        ]
        error = np.mean(estimates) - (3.0**2 + 2.0**2 + 0.5**2 + 0.1**2)
        assert abs(error) < 4 * np.std(estimates) / np.sqrt(3000)

    def test_log_volume_is_biased_however_it_is_scaled(self):
        """What the docs say of a sketch: K / m times its log-volume is too large on average, by Jensen."""
        sigma = np.array([3.0, 1.0, 0.1, 0.01])
        A = matrix_of_spectrum(sigma, 7).numpy()
        values = [np.linalg.svd(random_directions(4, 2, seed=seed).components.T @ A)[1] for seed in range(500)]
        scaled = 2 * log_volume(np.array(values))
        assert scaled.mean() - np.log(sigma).sum() > 4  # nats; the standard error is below .2

    def test_seeds(self):
        one, same, other = (
            extract(ENCODER, X[:5], method="sketch", n_directions=3, random_state=seed) for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(one.singular_values, same.singular_values)
        assert np.abs(one.singular_values - other.singular_values).max() > 1e-3
        with pytest.raises(SettingsMismatchError, match="seed is 2, expected 1"):
            Extraction.concat([one, other])

    def test_default_is_a_quarter(self):
        assert extract(ENCODER, X[:3], method="sketch").singular_values.shape == (3, 1, 2)


class TestCorrection:
    def test_out_of_fold_error_is_that_on_fresh_samples(self):
        encoder = load_encoder(mlp(12, 8, seed=2), precision="float64")
        data = np.random.default_rng(3).normal(size=(900, 12))
        directions = learn_directions(encoder, data[:300], 3)
        correction = directions.correction(floor=1e-3)
        exact = jepa_score(encoder, data[300:], floor=1e-3)
        predicted = jepa_score(encoder, data[300:], floor=1e-3, method=directions)
        raw = log_volume(extract(encoder, data[300:], method=directions).singular_values, floor=1e-3)[:, 0]
        assert np.sqrt(np.mean((exact - predicted) ** 2)) == pytest.approx(correction.residual_, rel=0.25)
        assert spearmanr(exact, predicted).statistic == pytest.approx(correction.spearman_, abs=0.06)
        assert spearmanr(exact, predicted).statistic > spearmanr(exact, raw).statistic
        assert abs(np.mean(exact - predicted)) < 0.2 * np.std(exact)

    def test_floor_and_rank_are_cheap_choices(self, learned):
        one, other = learned.correction(1e-6), learned.correction(0.5, rank=4)
        assert one.residual_ != other.residual_
        assert (other.floor, other.rank) == (0.5, 4)
        assert learned.correction(1e-6).residual_ == one.residual_

    def test_none_without_exact_samples(self):
        with pytest.raises(ValueError, match="have no correction, because no samples were measured exactly"):
            random_directions(8, 2).correction()

    def test_random_directions_score_uncorrected(self):
        directions = random_directions(8, 3, seed=1)
        raw = extract(ENCODER, X, method=directions)
        model = fit_score_model(raw, directions=directions, **{**SETTINGS, "formula": "jepa", "floor": 1e-6})
        np.testing.assert_array_equal(model.score_samples(raw), log_volume(raw.singular_values, rank=3)[:, 0])


class TestRefusals:
    @pytest.mark.parametrize(("n", "m", "needed"), [(49, 3, 50), (149, 8, 50), (20, 1, 50)])
    def test_too_few_exact_samples(self, n, m, needed):
        assert exact_samples_needed(m) == needed
        if n < needed:
            with pytest.raises(ValueError, match=rf"got {n} different samples; {m} directions .* need {needed} exact"):
                learn_directions(ENCODER, X[:n], m)

    def test_copies_do_not_count(self):
        with pytest.raises(ValueError, match=r"got 10 different samples; .* need 50 exact ones"):
            learn_directions(ENCODER, np.repeat(X[:10], 10, axis=0), 2)

    def test_exact_samples_are_asked_for_beyond_the_least(self):
        assert exact_samples_needed(40) == 120
        with pytest.raises(ValueError, match=r"got 30 .* need 50 exact ones"):
            learn_directions(ENCODER, X, 2, n_exact=30)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "subspace"}, "give the Directions that learn_directions returns as method"),
            ({"method": "exact", "n_directions": 3}, "got n_directions=3 with method='exact'; .* for method='sketch'"),
            (
                {"method": "forward", "n_directions": 3},
                "got n_directions=3 with method='forward'; n_directions is",
            ),
            ({"method": "sketch", "n_directions": 9}, "n_directions must be at most K = 8; got 9"),
            ({"method": "sketch", "n_directions": 0}, "n_directions must be at least 1"),
            ({"method": random_directions(5, 2)}, "got directions of 5 outputs; the encoder has 8"),
            ({"method": random_directions(8, 2), "n_directions": 3}, "got n_directions=3 with Directions that have 2"),
            ({"method": 3}, "method must be one of 'auto', 'forward', 'exact', 'sketch'; got 3"),
        ],
    )
    def test_bad_methods(self, options, message):
        with pytest.raises(ValueError, match=message):
            extract(ENCODER, X[:3], **options)

    def test_more_than_k(self):
        with pytest.raises(ValueError, match="n_directions must be at most K = 8; got 9"):
            learn_directions(ENCODER, X, 9)
        with pytest.raises(ValueError, match="n_directions must be at most K = 8; got 9"):
            random_directions(8, 9)

    def test_another_encoder(self, learned):
        with pytest.raises(FingerprintError, match="the directions were learned with another encoder"):
            extract(load_encoder(mlp(12, 8, seed=5), precision="float64"), X[:3], method=learned)

    @pytest.mark.parametrize("name", ["method", "store", "memory", "observe"])
    def test_options_that_learning_has_no_use_for(self, name):
        with pytest.raises(TypeError, match=f"learn_directions does not take {name}"):
            learn_directions(ENCODER, X, 2, **{name: None})

    def test_unknown_choice(self):
        with pytest.raises(ValueError, match="choice must be one of 'learned', 'random', 'principal'; got 'best'"):
            learn_directions(ENCODER, X, 2, choice="best")

    def test_an_extraction(self, learned):
        with pytest.raises(TypeError, match="X is an Extraction, which keeps no Jacobians"):
            learn_directions(ENCODER, extract(ENCODER, X), 2)
        with pytest.raises(ValueError, match=r"extracted with 'subspace of 3 .*needs the correction of its Directions"):
            jepa_score(ENCODER, extract(ENCODER, X[:3], method=learned))

    def test_extractions_are_not_mixed(self, learned, tmp_path):
        exact, ours = extract(ENCODER, X, store=tmp_path / "exact"), extract(ENCODER, X, method=learned)
        with pytest.raises(SettingsMismatchError, match=r"method is 'subspace of 3 directions, .*', expected 'exact'"):
            Extraction.concat([exact, ours])
        with pytest.raises(SettingsMismatchError, match="method is 'exact', expected 'subspace of 3"):
            extract(ENCODER, X, method=learned, store=tmp_path / "exact")
        with pytest.raises(SettingsMismatchError, match="needs the correction that those Directions hold"):
            fit_score_model(ours, **SETTINGS)
        with pytest.raises(SettingsMismatchError, match="measured by method 'exact', and the directions given"):
            fit_score_model(exact, directions=learned, **SETTINGS)

    def test_views_of_another_kind(self, learned):
        views = extract(ENCODER, X, method=learned, views=2, transform=lambda x: x + 0.1 * torch.randn_like(x))
        with pytest.raises(
            SettingsMismatchError, match="learned with views=1, and the samples were measured with views=2"
        ):
            fit_score_model(views, directions=learned, **SETTINGS)

    def test_observe_beside_a_store(self, tmp_path):
        with pytest.raises(ValueError, match="observe is not called for samples read from a store or a memory"):
            extract(ENCODER, X[:3], observe=print, store=tmp_path)


class TestFrozen:
    def test_learning_twice_gives_the_same(self, learned):
        again = learn_directions(ENCODER, X, 3)
        assert again.fingerprint == learned.fingerprint
        np.testing.assert_array_equal(again.subspace_values, learned.subspace_values)
        principal = [learn_directions(ENCODER, X[:n], 3, choice="principal").fingerprint for n in (150, 100, 100)]
        assert learned.fingerprint != principal[0] != principal[1] == principal[2]

    def test_a_draw_is_seeded(self):
        drawn = [learn_directions(ENCODER, X, 2, n_exact=60, random_state=seed) for seed in (0, 0, 1)]
        assert [directions.n_exact for directions in drawn] == [60, 60, 60]
        assert drawn[0].fingerprint == drawn[1].fingerprint != drawn[2].fingerprint

    def test_unreadable_images_are_left_out(self, tmp_path):
        for i, image in enumerate(random_images(52)):
            Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        (tmp_path / "05.png").write_bytes(b"")
        with pytest.warns(UserWarning, match=r"skipped .*05\.png"):
            directions = learn_directions(load_encoder(conv_net(8), image_size=32), tmp_path, 2, on_error="skip")
        assert directions.n_exact == 51
        assert directions.subspace_values.shape == (51, 1, 2)

    def test_copies_share_the_arrays(self, learned):
        assert copy.deepcopy(learned) is copy.copy(learned) is learned
        assert repr(learned).startswith("Directions(3 of 8, 150 exact samples, ")

    def test_disk(self, learned, tmp_path):
        write_folder(learned, tmp_path / "directions", versions={})
        for again in (read_folder(tmp_path / "directions"), pickle.loads(pickle.dumps(learned))):
            assert isinstance(again, Directions)
            assert again.fingerprint == learned.fingerprint
            assert again.correction().residual_ == learned.correction().residual_

    def test_a_run_resumes(self, learned, tmp_path):
        first = extract(ENCODER, X[:40], method=learned, store=tmp_path / "run")
        seen = []
        whole = extract(ENCODER, X[:60], method=learned, store=tmp_path / "run")
        extract(ENCODER, X[40:60], method=learned, observe=lambda rows: seen.append(rows.shape))
        np.testing.assert_array_equal(whole.singular_values[:40], first.singular_values)
        assert sum(shape[0] for shape in seen) == 20
        assert {shape[1] for shape in seen} == {3}

    def test_a_cache_keeps_methods_apart(self, learned, tmp_path):
        for method, width in ((learned, 3), ("exact", 8), (learned, 3)):
            assert extract(ENCODER, X[:5], method=method, memory=tmp_path).singular_values.shape == (5, 1, width)
        assert len(list(tmp_path.iterdir())) == 2
