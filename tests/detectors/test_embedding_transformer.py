"""Images and vectors to embeddings, in scikit-learn's pipelines."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from oracles import conv_net, mlp, random_images
from PIL import Image
from pyod.models.knn import KNN
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skjepa import EmbeddingTransformer, VectorJEPA, embed, extract, load_encoder
from skjepa.data.images import ImageReadError
from skjepa.encoders.encoder import FingerprintError

VECTORS = load_encoder(mlp(), precision="float64")
IMAGES = load_encoder(conv_net(), image_size=32, precision="float64")
ROWS = np.random.default_rng(0).normal(size=(60, 12))
PICTURES = random_images(6)


@parametrize_with_checks([EmbeddingTransformer(), EmbeddingTransformer(VectorJEPA(n_components=4, widths=(8,)))])
def test_scikit_learns_contract(estimator, check):
    check(estimator)


@pytest.fixture
def files(tmp_path):
    for i, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(len(PICTURES))]


class TestWhatComesOut:
    def test_images_of_every_kind(self, files, tmp_path):
        expected = embed(IMAGES, PICTURES)
        column = pd.DataFrame({"path": files})
        kinds = (
            PICTURES,
            files,
            np.array(files),
            np.array(files, dtype=object)[:, None],
            column,
            column["path"],
            tmp_path,
        )
        for X in (*kinds, [Image.fromarray(picture) for picture in PICTURES]):
            embeddings = EmbeddingTransformer(IMAGES).fit_transform(X)
            assert embeddings.dtype == np.float64
            np.testing.assert_allclose(embeddings, expected, rtol=1e-9)

    def test_an_extraction_has_them_already(self):
        extraction = extract(VECTORS, ROWS)
        transformer = EmbeddingTransformer(VECTORS).fit(extraction)
        assert transformer.n_features_in_ == 12
        np.testing.assert_array_equal(transformer.transform(extraction), extraction.embeddings)
        np.testing.assert_allclose(transformer.transform(ROWS), extraction.embeddings, rtol=1e-9)

    def test_vectors_train_an_encoder_as_the_seed_says(self):
        jepa = VectorJEPA(n_components=4, widths=(8,), n_steps=5)
        embeddings = [EmbeddingTransformer(jepa, random_state=seed).fit_transform(ROWS) for seed in (0, 0, 1)]
        assert embeddings[0].shape == (60, 16)
        np.testing.assert_array_equal(embeddings[0], embeddings[1])
        assert not np.allclose(embeddings[0], embeddings[2])
        assert not hasattr(jepa, "encoder_")
        np.testing.assert_allclose(
            embeddings[0], embed(clone(jepa).set_params(random_state=0).fit(ROWS).encoder_, ROWS)
        )

    def test_names_and_data_frames(self):
        transformer = EmbeddingTransformer(VECTORS).set_output(transform="pandas")
        frame = transformer.fit_transform(pd.DataFrame(ROWS, index=range(100, 160)).add_prefix("x"))
        assert frame.columns.tolist() == [f"embeddingtransformer{k}" for k in range(6)]
        assert frame.columns.tolist() == transformer.get_feature_names_out().tolist()
        assert frame.index.tolist() == list(range(100, 160))
        assert transformer.feature_names_in_[0] == "x0"

    def test_clone_copy_and_pickle(self):
        transformer = EmbeddingTransformer(VECTORS).fit(ROWS)
        assert clone(transformer).encoder is VECTORS
        for other in (copy.deepcopy(transformer), pickle.loads(pickle.dumps(transformer))):
            np.testing.assert_allclose(other.transform(ROWS), transformer.transform(ROWS), rtol=1e-12)


class TestPipelines:
    @pytest.mark.parametrize("detector", [IsolationForest(n_estimators=10, random_state=0), KNN(n_neighbors=2)])
    def test_any_detector_follows(self, detector):
        scores = make_pipeline(EmbeddingTransformer(IMAGES), detector).fit(PICTURES).decision_function(PICTURES)
        assert scores.shape == (6,)
        np.testing.assert_allclose(
            scores, clone(detector).fit(embed(IMAGES, PICTURES)).decision_function(embed(IMAGES, PICTURES))
        )

    def test_a_column_of_paths(self, files):
        table = pd.DataFrame({"path": files, "weight": np.arange(6.0)})
        columns = make_column_transformer((EmbeddingTransformer(IMAGES), ["path"]), ("passthrough", ["weight"]))
        result = columns.set_output(transform="pandas").fit_transform(table)
        assert result.shape == (6, 17)
        np.testing.assert_allclose(result.to_numpy()[:, :16], embed(IMAGES, PICTURES), rtol=1e-9)
        np.testing.assert_array_equal(
            result["passthrough__weight"] if "passthrough__weight" in result else result["remainder__weight"],
            table["weight"],
        )


class TestBadInput:
    def test_unreadable_images(self, files, tmp_path):
        (tmp_path / "0.png").write_text("no picture")
        with pytest.raises(ImageReadError, match=r"0\.png: cannot be read"):
            EmbeddingTransformer(IMAGES).fit(files).transform(files)
        with pytest.warns(UserWarning, match="skipped"):
            embeddings = EmbeddingTransformer(IMAGES, on_error="skip").fit(files).transform(files)
        assert np.isnan(embeddings).all(axis=1).tolist() == [True] + 5 * [False]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"encoder": 3}, "encoder must be a name, an Encoder from load_encoder, or a VectorJEPA; got 3"),
            ({"encoder": conv_net()}, r"give encoder=load_encoder\(module\)"),
            ({"on_error": "ignore"}, "on_error must be one of"),
            ({"device": "quantum"}, "device 'quantum' is not available"),
            ({"n_jobs": 0}, "n_jobs must be at least 1"),
            ({"memory_budget": 0}, "memory_budget must be at least 1"),
            ({"random_state": -1}, "random_state must be at least 0"),
        ],
    )
    def test_parameters_are_checked_in_fit(self, options, message):
        transformer = EmbeddingTransformer(**{"encoder": IMAGES, **options})
        with pytest.raises((TypeError, ValueError), match=message):
            transformer.fit(PICTURES)
        with pytest.raises(NotFittedError):
            transformer.transform(PICTURES)

    def test_a_failed_fit_leaves_the_old_one(self):
        transformer = EmbeddingTransformer(VECTORS).fit(ROWS)
        for bad in (np.full((3, 12), np.nan), ROWS[:, :5], PICTURES):
            with pytest.raises(ValueError, match=r"NaN|fails on an input|encodes vectors"):
                transformer.fit(bad)
        assert transformer.n_features_in_ == 12
        assert transformer.transform(ROWS).shape == (60, 6)

    def test_width(self):
        with pytest.raises(ValueError, match="X has 5 features, but EmbeddingTransformer is expecting 12 features"):
            EmbeddingTransformer(VECTORS).fit(ROWS).transform(ROWS[:, :5])

    def test_another_encoder(self):
        transformer = EmbeddingTransformer(VECTORS).fit(ROWS)
        with pytest.raises(
            FingerprintError, match=r"the encoder of this Extraction has fingerprint .*, and the fit used"
        ):
            transformer.transform(extract(load_encoder(mlp(seed=1), precision="float64"), ROWS))
        module = mlp()
        changing = EmbeddingTransformer(load_encoder(module)).fit(ROWS)
        with torch.no_grad():
            module[0].weight.mul_(2)
        with pytest.raises(FingerprintError, match=r"has fingerprint .*, and the fit used"):
            changing.transform(ROWS)

    def test_an_extraction_of_a_trained_encoder_does_not_bring_it(self):
        encoder = VectorJEPA(n_components=4, widths=(8,), n_steps=5).fit(ROWS).encoder_
        with pytest.raises(ValueError, match="lacks the trained encoder"):
            EmbeddingTransformer().fit(extract(encoder, ROWS)).transform(ROWS)
