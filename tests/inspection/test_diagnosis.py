import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import conv_net, mlp, random_images
from scipy.stats import spearmanr
from torch import nn

from skjepa import Extraction, JEPAScoreDetector, extract, load_encoder
from skjepa.extraction.store.settings import SettingsMismatchError
from skjepa.inspection.diagnosis import diagnose, intraclass_correlation
from skjepa.inspection.seeds import seed_agreement
from skjepa.scores.model import fit_score_model

N, K = 300, 8
RNG = np.random.default_rng(0)


def made(embeddings=None, spectrum=None, n=N, views=1, **meta) -> Extraction:
    """Isotropic embeddings and healthy spectra, unless others are given."""
    rng = np.random.default_rng(1)
    embeddings = rng.normal(size=(n, K)) if embeddings is None else embeddings
    if spectrum is None:
        spectrum = np.geomspace(3.0, 0.5, K) * np.exp(0.3 * rng.normal(size=(n, 1, 1)))
        spectrum = np.repeat(spectrum, views, axis=1)
    return Extraction(np.asarray(embeddings), spectrum, np.arange(n).astype(str), meta)


def diagnosed(extraction: Extraction, score="joint", floor="auto", rank=None):
    return diagnose(fit_score_model(extraction, formula=score, reference="knn", floor=floor, rank=rank), extraction)


def names(diagnosis) -> list[str]:
    return [finding.name for finding in diagnosis.findings]


class TestHealthy:
    @pytest.mark.parametrize("score", ["jepa", "density", "joint"])
    def test_raises_no_alarm(self, score):
        diagnosis = diagnosed(made(), score)
        assert diagnosis.healthy
        assert str(diagnosis).startswith("nothing wrong in 300 samples")

    def test_known_values(self):
        diagnosis = diagnosed(made(), "density")
        assert (diagnosis.n_samples, diagnosis.n_components, diagnosis.n_singular_values, diagnosis.n_views) == (
            *(N, K, K),
            1,
        )
        assert (diagnosis.numerical_rank, diagnosis.short_of_rank, diagnosis.at_floor) == (K, 0, 0)
        assert diagnosis.participation_ratio == pytest.approx(K, rel=0.1)
        assert diagnosis.normality < 0.01
        assert diagnosis.intrinsic_dim == pytest.approx(K, rel=0.25)
        assert diagnosis.tied == 0
        assert diagnosis.view_icc is None

    def test_bundled_spectra_of_foundation_models(self, shared_data):
        """Real singular values of DINOv2 and MetaCLIP on CIFAR-10, with the floor and rank that a detector learns."""
        with np.load(shared_data / "spectra.npz") as file:
            for name in (name for name in file if "CIFAR10_" in name):
                spectrum = file[name].astype(np.float64)[:, None]
                z = np.random.default_rng(0).normal(size=(len(spectrum), 16))
                assert diagnosed(made(z, spectrum, len(spectrum), precision="float32"), "jepa").healthy, name

    def test_dict_is_json(self):
        diagnosis = diagnosed(made(views=2))
        again = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
        assert again["participation_ratio"] == diagnosis.participation_ratio
        assert again["terms"]["volume"] == list(diagnosis.terms["volume"])


class TestFindings:
    def test_complete_collapse(self):
        z = 5 + 1e-3 * RNG.normal(size=(N, K))
        diagnosis = diagnosed(made(z))
        assert names(diagnosis) == ["complete collapse"]
        assert diagnosis.findings[0].severity == "failure"
        assert diagnosis.relative_spread == pytest.approx(2e-4, rel=0.1)

    def test_scale_is_no_collapse(self):
        assert diagnosed(made(1e-9 * RNG.normal(size=(N, K)))).healthy

    def test_dimensional_collapse(self):
        z = RNG.normal(size=(N, 1)) * np.linspace(1, 2, K) + 0.01 * RNG.normal(size=(N, K))
        diagnosis = diagnosed(made(z))
        assert names(diagnosis) == ["dimensional collapse"]
        assert "1.0 of 8 directions" in diagnosis.findings[0].message

    def test_a_constant_encoder_has_both_and_tied_scores(self):
        extraction = made(np.ones((N, K)), np.zeros((N, 1, K)))
        found = names(diagnosed(extraction))
        assert {"complete collapse", "dimensional collapse", "tied scores"} <= set(found)

    def test_tied_scores_of_a_linear_encoder(self):
        diagnosis = diagnosed(made(spectrum=np.ones((N, 1, K))), "jepa", floor=1e-6)
        assert diagnosis.tied == 1
        assert "tied scores" in names(diagnosis)

    def test_copies_of_a_sample_tie_rightly(self):
        assert diagnosed(made()[np.repeat(np.arange(N), 2)]).tied == 0

    def test_rank_deficiency_goes_with_the_rank_advised(self):
        spectrum = made().singular_values.copy()
        spectrum[: N // 10, :, -3:] = 1e-9
        extraction = made(spectrum=spectrum, precision="float32")
        diagnosis = diagnosed(extraction)
        assert diagnosis.short_of_rank == 0.1
        assert (diagnosis.numerical_rank_lowest, diagnosis.numerical_rank_highest) == (K - 3, K)
        assert names(diagnosis) == ["rank deficiency"]
        assert "rank=5" in diagnosis.findings[0].advice
        assert diagnosed(extraction, rank=5).healthy

    def test_values_at_the_floor(self):
        diagnosis = diagnosed(made(), floor=1.0, rank=K)
        assert diagnosis.at_floor == pytest.approx((made().singular_values <= 1.0).mean())
        assert names(diagnosis) == ["values at the floor"]

    def test_unfaithful_volume(self):
        """Volume high where embeddings are sparse: then the volume alone orders samples against their density."""
        z = RNG.normal(size=(N, K))
        spectrum = np.ones((N, 1, K)) * np.exp(0.02 * (z**2).sum(axis=1))[:, None, None]
        extraction = made(z, spectrum)
        diagnosis = diagnosed(extraction, "jepa", floor=1e-6)
        assert diagnosis.fidelity < 0.5
        assert names(diagnosis) == ["unfaithful volume"]
        joint = diagnosed(extraction, floor=1e-6)
        assert joint.term_correlation["volume ~ density"] < -0.7
        assert names(joint) == []  # its weights heed that

    def test_drowned_term(self):
        spectrum = np.ones((N, 1, K)) * np.exp(5 * RNG.normal(size=(N, 1, 1)))
        assert names(diagnosed(made(spectrum=spectrum), "density", floor=1e-12)) == ["drowned term"]

    def test_disagreement_of_views(self):
        spectrum = np.ones((N, 4, K)) * np.exp(0.3 * RNG.normal(size=(N, 4, 1)))
        diagnosis = diagnosed(made(spectrum=spectrum))
        assert abs(diagnosis.view_icc) < 0.1
        assert abs(diagnosis.view_spearman) < 0.1
        assert "disagreement of views" in names(diagnosis)
        assert diagnosed(made(views=4)).view_icc == pytest.approx(1)

    def test_too_few(self):
        extraction = made()
        model = fit_score_model(extraction, formula="jepa", reference="knn", floor="auto", rank=None)
        with pytest.raises(ValueError, match="a diagnosis needs at least 2 samples; got 1"):
            diagnose(model, extraction[0])


@pytest.fixture(scope="module")
def fitted():
    """A detector, and new samples of the distribution that it was fitted on."""
    X = np.random.default_rng(0).normal(size=(250, 12))
    return JEPAScoreDetector(load_encoder(mlp(), precision="float64")).fit(X[:200]), X[200:]


class TestDetector:
    def test_of_the_fit(self, fitted):
        diagnosis = fitted[0].diagnose()
        assert diagnosis.n_samples == 200
        assert "dimensional collapse" not in names(diagnosis)

    def test_new_samples_like_those_of_the_fit_raise_no_alarm(self, fitted):
        assert fitted[0].diagnose(fitted[1]).healthy

    @pytest.mark.parametrize("score", ["jepa", "density", "joint"])
    def test_nor_do_they_after_a_fit_on_few(self, score):
        """Models flatter the few samples that they have seen, and a few new ones are unlike them by chance."""
        everything = extract(load_encoder(mlp(), precision="float64"), np.random.default_rng(2).normal(size=(400, 12)))
        alarms = [
            "shifted scores"
            in names(JEPAScoreDetector(formula=score).fit(everything[i : i + 20]).diagnose(everything[200:]))
            for i in range(0, 200, 20)
        ]
        assert sum(alarms) <= 1

    def test_foreign_samples_are_told(self, fitted):
        detector, X = fitted
        assert names(detector.diagnose(extract(detector.encoder, X + 5))) == ["shifted scores"]

    def test_of_another_encoder(self, fitted):
        detector, X = fitted
        other = extract(load_encoder(mlp(seed=1), precision="float64"), X)
        with pytest.raises(SettingsMismatchError, match="fingerprint"):
            detector.diagnose(other)

    @pytest.mark.parametrize("layers", ["auto", None])
    def test_relu_at_the_output(self, layers):
        X = np.random.default_rng(0).normal(size=(200, 12))
        encoder = load_encoder(nn.Sequential(mlp(), nn.ReLU()))
        detector = JEPAScoreDetector(encoder, method="exact", layers=layers).fit(X)
        assert "rank deficiency" in names(detector.diagnose())

    def test_without_singular_values_nothing_is_said_of_them(self):
        X = np.random.default_rng(0).normal(size=(200, 12))
        encoder = load_encoder(nn.Sequential(mlp(), nn.ReLU()))
        diagnosis = JEPAScoreDetector(encoder).fit(X).diagnose()
        assert (diagnosis.n_singular_values, diagnosis.n_views) == (0, 0)
        assert (diagnosis.rank, diagnosis.floor, diagnosis.numerical_rank) == (0, 0, 0)
        assert (diagnosis.at_floor, diagnosis.short_of_rank, diagnosis.fidelity) == (0, 0, 0)
        assert names(diagnosis) == []
        assert "singular values" not in str(diagnosis)
        assert "fidelity" not in str(diagnosis)
        json.dumps(diagnosis.to_dict(), allow_nan=False)

    def test_held_out_samples_are_left_out(self):
        X = np.random.default_rng(0).normal(size=(100, 12))
        detector = JEPAScoreDetector(load_encoder(mlp()), calibration=0.4).fit(X)
        assert detector.diagnose().n_samples == 60

    def test_views(self):
        detector = JEPAScoreDetector(load_encoder(conv_net(), image_size=32), views=3).fit(random_images(12))
        diagnosis = detector.diagnose()
        volumes = np.log(
            np.maximum(detector.extract(random_images(12)).singular_values, detector.floor_)[..., : detector.rank_]
        ).sum(axis=-1)
        assert diagnosis.view_icc == pytest.approx(intraclass_correlation(volumes))
        assert "views            3" in str(diagnosis)


class TestIntraclassCorrelation:
    def test_known_share_of_variance(self):
        rng = np.random.default_rng(0)
        values = rng.normal(size=(20_000, 1)) * np.sqrt(0.7) + rng.normal(size=(20_000, 3)) * np.sqrt(0.3)
        assert intraclass_correlation(values) == pytest.approx(0.7, abs=0.01)

    def test_nothing_varies(self):
        assert intraclass_correlation(np.ones((5, 2))) == 0

    @given(arrays(np.float64, (6, 3), elements=st.integers(-50, 50).map(float)), st.floats(0.1, 10), st.floats(-5, 5))
    def test_unit_and_origin_do_not_matter(self, values, scale, shift):
        value = intraclass_correlation(values)
        assert -0.5 - 1e-9 <= value <= 1 + 1e-9
        assert intraclass_correlation(scale * values + shift) == pytest.approx(value, abs=1e-6)


class TestSeedAgreement:
    def test_of_known_correlation(self):
        scores = RNG.normal(size=(3, 50))
        agreement = seed_agreement(scores)
        expected = spearmanr(scores.T).statistic
        np.testing.assert_allclose(agreement.correlation, expected, atol=1e-12)
        assert agreement.lowest == pytest.approx(expected.min())
        assert [finding.name for finding in agreement.findings] == ["seed disagreement"]
        json.dumps(agreement.to_dict(), allow_nan=False)

    def test_agreeing_seeds(self):
        agreement = seed_agreement({"a": [1.0, 2.0, np.nan, 3.0], "b": [1.0, 4.0, 0.0, 9.0]})
        assert (agreement.n_samples, agreement.mean, agreement.findings) == (3, 1.0, ())

    @pytest.mark.parametrize(
        ("scores", "message"),
        [
            ({0: [1.0, 2.0, 3.0]}, "at least 2 seeds; got 1 seeds with 3 samples"),
            ({0: [1.0, 2.0, 3.0], 1: [1.0]}, "2 seeds with 1, 3 samples"),
            (np.full((2, 5), np.nan), "at least 3 samples with a score under every seed; got 0"),
        ],
    )
    def test_bad_input(self, scores, message):
        with pytest.raises(ValueError, match=message):
            seed_agreement(scores)


def test_statistics_of_many_samples_stay_cheap():
    """More rows than are looked at: the embedding statistics are those of a subsample, the shares those of all."""
    z = torch.randn(2500, K, generator=torch.Generator().manual_seed(0)).numpy().astype(float)
    spectrum = np.ones((2500, 1, K)) * np.exp(RNG.normal(size=(2500, 1, 1)))
    diagnosis = diagnosed(made(z, spectrum, 2500))
    assert diagnosis.n_samples == 2500
    assert diagnosis.participation_ratio == pytest.approx(K, rel=0.05)


class TestAnomaliesAmongTheFitSamples:
    NAME = "anomalies among the fit samples"

    def extraction(self, n_junk):
        rng = np.random.default_rng(0)
        hidden = 3 + rng.normal(size=(400, 60))
        hidden[:n_junk] = 3 + 6 * np.array([1, -1] * 30) + 0.05 * rng.normal(size=(n_junk, 60))
        meta = {"input_shape": [3, 8, 8], "method": "forward"}
        ids = np.array([str(i) for i in range(400)])
        z = np.tanh((hidden - 3) @ rng.normal(size=(60, 5)) / 8) + 0.1 * rng.normal(size=(400, 5))
        return Extraction(z, None, ids, meta, layers={"one": hidden})

    def names(self, n_junk, **options):
        detector = JEPAScoreDetector(method="forward", **options).fit(self.extraction(n_junk))
        return [finding.name for finding in detector.diagnose().findings]

    @pytest.mark.filterwarnings("ignore:.*near copies")
    def test_a_tenth_is_said(self):
        assert self.NAME in self.names(60)

    def test_none_are_not(self):
        assert self.NAME not in self.names(0)

    @pytest.mark.filterwarnings("ignore:.*near copies")
    def test_where_they_were_left_out_it_is_no_news(self):
        assert self.NAME not in self.names(60, trim=0.2)
