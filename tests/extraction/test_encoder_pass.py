import math
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from oracles import (
    IMAGE_MODELS,
    VECTOR_MODELS,
    FlowEncoder,
    conv_net,
    linear,
    listing_one,
    listing_one_spectrum,
    matrix_of_spectrum,
    mlp,
    random_images,
)
from PIL import Image
from torch import nn

import skjepa._utils.hardware
import skjepa.data.sources
import skjepa.extraction.batches.measurement
import skjepa.extraction.batches.ready
import skjepa.extraction.batches.sizing
import skjepa.extraction.encoder_pass
from skjepa import Extraction, embed, extract, jepa_score, load_encoder
from skjepa.data.images import ImageReadError
from skjepa.data.sources import Source, as_source
from skjepa.encoders.probe import EncoderError
from skjepa.extraction import loop
from skjepa.extraction.store.settings import SettingsMismatchError
from skjepa.extraction.store.store import Store
from skjepa.jacobian.rows import jacobian

N_COMPONENTS = 12


@pytest.fixture(params=[*VECTOR_MODELS, *IMAGE_MODELS])
def case(request):
    """A module and its data, as a user has them and as Listing 1 takes them."""
    if request.param in VECTOR_MODELS:
        X = np.random.default_rng(0).normal(size=(5, 12))
        return VECTOR_MODELS[request.param](), None, X, torch.from_numpy(X)
    X = random_images(5)
    return IMAGE_MODELS[request.param](N_COMPONENTS), 32, X, torch.from_numpy(X).permute(0, 3, 1, 2).double() / 255


@pytest.mark.parametrize("batch", [1, 5])
def test_float64_agrees_with_listing_one(case, batch, device):
    module, image_size, X, x = case
    encoder = load_encoder(module, image_size=image_size, precision="float64")
    budget = None if batch > 1 else 1
    ours = jepa_score(encoder, X, memory_budget=budget, device=device)
    paper = listing_one(module.double().eval(), x)
    rank = extract(encoder, X, device=device).singular_values.shape[-1]
    np.testing.assert_allclose(ours, paper.numpy(), rtol=0, atol=1e-9 * rank)


@pytest.mark.parametrize("batch", [1, 5])
def test_float32_agrees_with_listing_one_above_the_noise(case, batch, device):
    module, image_size, X, x = case
    encoder = load_encoder(module, image_size=image_size)
    budget = None if batch > 1 else 1
    ours = extract(encoder, X, memory_budget=budget, device=device).singular_values[:, 0]
    paper = listing_one_spectrum(module.eval(), x.float()).double().numpy()
    counted = paper > 10 * np.finfo(np.float32).eps * paper[:, :1]
    log = [np.log(np.where(counted, sigma, 1)).sum(axis=1) for sigma in (ours, paper)]
    np.testing.assert_array_less(np.abs(log[0] - log[1]), 1e-4 * counted.sum(axis=1))


def test_linear_encoder_gives_the_spectrum_of_its_matrix():
    sigma = np.array([5.0, 2.0, 0.5, 1e-3])
    encoder = load_encoder(linear(matrix_of_spectrum(sigma, 9)), precision="float64")
    X = np.random.default_rng(0).normal(size=(3, 9))
    np.testing.assert_allclose(jepa_score(encoder, X), np.log(sigma).sum(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(jepa_score(encoder, X, floor=0.1), np.log([5.0, 2.0, 0.5, 0.1]).sum())
    np.testing.assert_allclose(jepa_score(encoder, X, rank=2), np.log(10.0))


def test_change_of_variables_of_a_flow_is_exact():
    """The identity that the method rests on, and its sign: density goes UP with the singular values."""
    module = FlowEncoder()
    X = np.random.default_rng(0).normal(size=(64, 4))
    extraction = extract(load_encoder(module, precision="float64"), X)
    with torch.no_grad():
        base = module.base_log_prob(torch.from_numpy(extraction.embeddings)).numpy()
        expected = module.log_prob(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(base + jepa_score(None, extraction, floor=1e-300), expected, rtol=0, atol=1e-8)


def test_rank_deficiency_is_a_diagnostic_of_every_sample():
    module = nn.Sequential(mlp(12, 6), nn.LayerNorm(6, elementwise_affine=False))
    X = np.random.default_rng(0).normal(size=(8, 12))
    for precision in ("float32", "float64"):
        extraction = extract(load_encoder(module, precision=precision), X)
        assert extraction.singular_values.shape == (8, 1, 6)
        # Centring costs one direction, normalising another (up to LayerNorm's epsilon).
        assert (extraction.numerical_rank <= 5).all()


def test_module_is_handed_back_as_it_was():
    module = conv_net()
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    extract(load_encoder(module, image_size=32, precision="float64"), random_images(3))
    assert [part.training for part in module.modules()] == modes
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_order_ids_and_duplicates():
    images = random_images(4)
    X = images[[2, 0, 2, 3]]
    encoder = load_encoder(conv_net(), image_size=32, precision="float64")
    result = extract(encoder, X)
    assert result.ids[0] == result.ids[2]
    assert len(set(result.ids)) == 3
    for i in range(4):
        single = extract(encoder, X[[i]])
        np.testing.assert_allclose(result.singular_values[i], single.singular_values[0], rtol=1e-10)
        np.testing.assert_allclose(result.embeddings[i], single.embeddings[0], rtol=1e-10)


def noting(sizes):
    """`jacobian`, which writes down the size of every batch."""
    return lambda function, x, **how: sizes.append(len(x)) or jacobian(function, x, **how)


def test_equal_samples_are_measured_once(monkeypatch):
    seen = []
    monkeypatch.setattr(skjepa.extraction.batches.measurement, "jacobian", noting(seen))
    extract(load_encoder(conv_net(), image_size=32), random_images(1).repeat(6, axis=0))
    assert sum(seen) == 1


class TestViews:
    @staticmethod
    def noisy(x):
        return (x + 0.1 * torch.rand_like(x)).clamp(0, 1)

    def test_neither_batches_nor_subsets_nor_order_change_a_score(self):
        encoder, X = load_encoder(conv_net(), image_size=32, precision="float64"), random_images(6)
        options = {"views": 3, "transform": self.noisy, "random_state": 7}
        whole = jepa_score(encoder, X, **options)
        np.testing.assert_allclose(jepa_score(encoder, X, memory_budget=1, **options), whole, rtol=1e-11)
        np.testing.assert_allclose(jepa_score(encoder, X[::-1][:4], **options), whole[::-1][:4], rtol=1e-11)
        assert not np.allclose(jepa_score(encoder, X, **{**options, "random_state": 8}), whole)

    def test_default_views_of_images(self):
        encoder = load_encoder(conv_net(), image_size=32)
        result = extract(encoder, random_images(3), views=4)
        assert result.singular_values.shape == (3, 4, 16)
        assert result.singular_values.std(axis=1).min() > 0
        np.testing.assert_array_equal(result.embeddings, extract(encoder, random_images(3)).embeddings)

    def test_combined_as_equation_four(self):
        encoder = load_encoder(conv_net(), image_size=32)
        result = extract(encoder, random_images(3), views=4)
        each = np.log(result.singular_values).sum(axis=-1)
        np.testing.assert_allclose(jepa_score(encoder, result), -np.log(np.exp(-each).mean(axis=1)))

    def test_normalised_images_need_a_transform(self):
        def own(image):
            return torch.from_numpy(np.asarray(image.resize((32, 32)), dtype=np.float32)).permute(2, 0, 1) / 64 - 2

        encoder = load_encoder(conv_net(), image_size=32, preprocess=own)
        with pytest.raises(ValueError, match="images with your own preprocess, have no default transform"):
            extract(encoder, random_images(2), views=2)

    def test_vectors_need_a_transform(self):
        encoder = load_encoder(mlp())
        with pytest.raises(ValueError, match=r"without a transform; vectors, and images .* have no default transform"):
            extract(encoder, np.zeros((2, 12)), views=2)
        assert extract(encoder, np.zeros((2, 12)), views=2, transform=lambda x: x + torch.randn_like(x)).shape == (2,)


class TestMemory:
    def test_batches_follow_the_budget(self, monkeypatch):
        sizes = []
        monkeypatch.setattr(
            skjepa.extraction.batches.measurement,
            "jacobian",
            lambda f, x, **how: sizes.append(len(x)) or jacobian(f, x, **how),
        )
        encoder, X = load_encoder(conv_net(), image_size=32), random_images(20)
        extract(encoder, X, memory_budget=10**12)
        extract(encoder, X, memory_budget=3 * 2**20)
        assert sizes[0] == 20
        assert 1 <= max(sizes[1:]) < 20

    def test_a_batch_that_runs_out_is_halved_and_retried(self, monkeypatch):
        tried = []

        def scarce(function, x, *, copies, **how):
            tried.append((len(x), copies))
            if len(x) * copies > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return jacobian(function, x, copies=copies, **how)

        encoder, X = load_encoder(conv_net(), image_size=32, precision="float64"), random_images(14)
        plenty = extract(encoder, X)
        monkeypatch.setattr(skjepa.extraction.batches.sizing, "MAX_BATCH", 8)
        monkeypatch.setattr(skjepa.extraction.batches.measurement, "jacobian", scarce)
        result = extract(encoder, X)
        np.testing.assert_allclose(result.singular_values, plenty.singular_values, rtol=1e-10)
        halved = [8, 4, 2, 2, 4, 2, 2, 2, 2, 2]
        assert tried == [(n_samples, 1) for n_samples in halved]

    def test_a_small_batch_goes_side_by_side_where_there_is_room(self, monkeypatch):
        tried = []

        def scarce(function, x, *, copies, **how):
            tried.append((len(x), copies))
            if copies > 1 and len(tried) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return jacobian(function, x, copies=copies, **how)

        encoder, X = load_encoder(conv_net(), image_size=32, precision="float64"), random_images(3)
        alone = np.concatenate([extract(encoder, X[[i]], memory_budget=1).singular_values for i in range(3)])
        monkeypatch.setattr(skjepa.extraction.batches.measurement, "jacobian", scarce)
        for _ in range(2):  # the second time without the room: one copy alone is tried before the batch is halved
            np.testing.assert_allclose(extract(encoder, X).singular_values, alone, rtol=1e-10)
        assert tried == [(3, 2), (3, 2), (3, 1)]

    def test_one_sample_too_large_is_named(self, monkeypatch):
        def full(function, x, **how):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr(skjepa.extraction.batches.measurement, "jacobian", full)
        with pytest.raises(MemoryError, match=r"one sample of shape \(3, 32, 32\) does not fit"):
            extract(load_encoder(conv_net(), image_size=32), random_images(4))

    def test_other_errors_are_not_retried(self, monkeypatch):
        def broken(function, x, **how):
            raise RuntimeError("a bug")

        monkeypatch.setattr(skjepa.extraction.batches.measurement, "jacobian", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            extract(load_encoder(conv_net(), image_size=32), random_images(4))


class TestStore:
    def test_resumed_equals_uninterrupted(self, tmp_path, monkeypatch):
        encoder, X = load_encoder(conv_net(), image_size=32), random_images(12)
        monkeypatch.setattr(skjepa.extraction.batches.sizing, "MAX_BATCH", 4)
        whole = extract(encoder, X, views=2)
        measured = []

        def interrupted(function, x, **how):
            if len(measured) == 3:
                raise KeyboardInterrupt
            measured.append(len(x))
            return jacobian(function, x, **how)

        monkeypatch.setattr(skjepa.extraction.batches.measurement, "jacobian", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(encoder, X, views=2, store=tmp_path / "run")
        again = []
        monkeypatch.setattr(
            skjepa.extraction.batches.measurement,
            "jacobian",
            lambda f, x, **how: again.append(len(x)) or jacobian(f, x, **how),
        )
        resumed = extract(encoder, X, views=2, store=tmp_path / "run")
        assert sum(again) == 2 * 8  # the first batch of four, both views, was kept
        np.testing.assert_array_equal(resumed.singular_values, whole.singular_values)
        np.testing.assert_array_equal(resumed.embeddings, whole.embeddings)
        np.testing.assert_array_equal(resumed.ids, whole.ids)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"encoder": "other"}, "fingerprint"),
            ({"precision": "float64"}, "precision is 'float32', expected 'float64'"),
            ({"image_size": 16}, r"input_shape is \[3, 32, 32\], expected \[3, 16, 16\]"),
            ({"views": 2}, "views is 1, expected 2"),
        ],
    )
    def test_another_setting_is_refused_by_name(self, tmp_path, change, named):
        pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        X = random_images(2)
        extract(load_encoder(pooled, image_size=32), X, store=tmp_path / "run")
        options = {"views": change.pop("views", 1)}
        module = conv_net() if change.pop("encoder", None) else pooled
        with pytest.raises(SettingsMismatchError, match=named):
            extract(load_encoder(module, **{"image_size": 32, **change}), X, store=tmp_path / "run", **options)

    def test_another_file_of_the_same_name_is_not_taken_for_it(self, tmp_path):
        encoder = load_encoder(conv_net(), image_size=32)
        for folder, seed in (("a", 1), ("b", 2)):
            (tmp_path / folder).mkdir()
            Image.fromarray(random_images(1, seed=seed)[0]).save(tmp_path / folder / "0.png")
        fresh = {folder: extract(encoder, tmp_path / folder).singular_values for folder in "ab"}
        for folder in "abab":
            kept = extract(encoder, tmp_path / folder, store=tmp_path / "run")
            np.testing.assert_array_equal(kept.singular_values, fresh[folder])
            assert kept.ids.tolist() == ["0.png"]
        (tmp_path / "b" / "0.png").replace(tmp_path / "a" / "0.png")
        changed = extract(encoder, tmp_path / "a", store=tmp_path / "run")
        np.testing.assert_array_equal(changed.singular_values, fresh["b"])

    def test_a_transform_is_known_again_by_what_it_does(self, tmp_path):
        encoder, X = load_encoder(conv_net(), image_size=32), random_images(2)

        def transform(strength):
            def noisy(x):
                return (x + strength * torch.rand_like(x)).clamp(0, 1)

            return noisy

        extract(encoder, X, transform=transform(0.1), store=tmp_path / "run")
        extract(encoder, X, transform=transform(0.1), store=tmp_path / "run")
        for other in (transform(0.2), None):
            with pytest.raises(SettingsMismatchError, match="transform is"):
                extract(encoder, X, transform=other, store=tmp_path / "run")

    def test_a_dataset_needs_names(self, tmp_path):
        data = torch.utils.data.TensorDataset(torch.rand(3, 3, 32, 32))
        encoder = load_encoder(conv_net(), image_size=32)
        with pytest.raises(ValueError, match="pass ids= with a torch Dataset"):
            extract(encoder, data, store=tmp_path / "run")
        assert extract(encoder, data, store=tmp_path / "run", ids=["a", "b", "c"]).ids.tolist() == ["a", "b", "c"]


@pytest.fixture
def measured(monkeypatch):
    """How many samples went through the Jacobian, batch by batch."""
    sizes = []
    monkeypatch.setattr(skjepa.extraction.batches.measurement, "jacobian", noting(sizes))
    return sizes


class TestCache:
    def test_only_what_is_missing_is_measured(self, tmp_path, measured):
        encoder, X = load_encoder(mlp(), precision="float64"), np.random.default_rng(0).normal(size=(30, 12))
        fresh = extract(encoder, X)
        measured.clear()
        for part in (slice(0, 20), slice(10, 30), slice(None), [3, 3, 29]):
            result = extract(encoder, X[part], memory=tmp_path)
            np.testing.assert_allclose(result.singular_values, fresh[part].singular_values, rtol=1e-10)
            np.testing.assert_allclose(result.embeddings, fresh[part].embeddings, rtol=1e-10)
            assert result.ids.tolist() == fresh.ids[part].tolist()
        assert measured == [20, 10]

    def test_encoders_and_settings_have_folders_of_their_own(self, tmp_path, measured):
        X = np.random.default_rng(0).normal(size=(5, 12))
        encoders = [load_encoder(mlp(seed=0)), load_encoder(mlp(seed=1)), load_encoder(mlp(), precision="float64")]
        for _ in range(2):
            for encoder in encoders:
                np.testing.assert_array_equal(jepa_score(encoder, X, memory=tmp_path), jepa_score(encoder, X))
            for seed in range(2):
                extract(encoders[0], X, transform=torch.round, random_state=seed, memory=str(tmp_path))
        assert len(list(tmp_path.iterdir())) == 5
        assert sum(measured) == 5 * (5 + 2 * 3)

    def test_content_counts_not_the_name(self, tmp_path, measured):
        encoder, (picture, other) = load_encoder(conv_net(), image_size=32), random_images(2)
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
        Image.fromarray(picture).save(tmp_path / "a" / "0.png")
        Image.fromarray(picture).save(tmp_path / "b" / "1.png")
        memory = tmp_path / "cache"
        first, second = (extract(encoder, tmp_path / folder, memory=memory) for folder in "ab")
        assert measured == [1]
        assert (*first.ids, *second.ids) == ("0.png", "1.png")
        Image.fromarray(other).save(tmp_path / "b" / "1.png")
        changed = extract(encoder, tmp_path / "b", memory=memory)
        np.testing.assert_array_equal(changed.embeddings, extract(encoder, other[None]).embeddings)

    def test_random_views_belong_to_the_name_too(self, tmp_path):
        encoder, X = load_encoder(conv_net(), image_size=32), random_images(1)
        for names in (["a"], ["b"], ["a"]):
            kept = extract(encoder, X, views=2, ids=names, memory=tmp_path)
            fresh = extract(encoder, X, views=2, ids=names)
            np.testing.assert_array_equal(kept.singular_values, fresh.singular_values)

    def test_a_dataset_is_known_by_what_it_loads(self, tmp_path, measured):
        pictures = torch.rand(4, 3, 32, 32)
        data = torch.utils.data.TensorDataset(pictures)
        encoder = load_encoder(conv_net(), image_size=32, precision="float64")
        extract(encoder, data, memory=tmp_path)
        again = extract(encoder, torch.utils.data.Subset(data, [3, 1]), memory=tmp_path)
        assert measured == [4]
        np.testing.assert_allclose(again.embeddings, extract(encoder, pictures[[3, 1]]).embeddings, rtol=1e-10)

    def test_data_that_change_at_each_load_are_refused(self, tmp_path):
        class Noisy(torch.utils.data.Dataset):
            def __len__(self):
                return 2

            def __getitem__(self, i):
                return torch.rand(3, 32, 32)

        with pytest.raises(ValueError, match="sample 0 changed between two loads"):
            extract(load_encoder(conv_net(), image_size=32), Noisy(), memory=tmp_path)

    def test_unreadable_samples_stay_out_of_it(self, tmp_path):
        encoder = load_encoder(conv_net(), image_size=32)
        (tmp_path / "images").mkdir()
        Image.fromarray(random_images(1)[0]).save(tmp_path / "images" / "good.png")
        (tmp_path / "images" / "bad.png").write_text("no picture")
        for X in (tmp_path / "images", [str(tmp_path / "images" / name) for name in ("good.png", "gone.png")]):
            for _ in range(2):
                with pytest.warns(UserWarning, match="skipped"):
                    result = extract(encoder, X, on_error="skip", memory=tmp_path / "cache")
                assert len(result) == 1

    def test_joblib_memory_gives_its_place(self, tmp_path, measured):
        encoder, X = load_encoder(mlp()), np.zeros((1, 12))
        for memory in (joblib.Memory(tmp_path, verbose=0), tmp_path, joblib.Memory(None), joblib.Memory(None), None):
            extract(encoder, X, memory=memory)
        assert len(measured) == 1 + 3

    def test_store_and_memory_together(self, tmp_path):
        with pytest.raises(ValueError, match="got both store and memory"):
            extract(load_encoder(mlp()), np.zeros((2, 12)), store=tmp_path / "a", memory=tmp_path / "b")

    def test_not_a_folder(self):
        with pytest.raises(TypeError, match=r"memory must be a folder or a joblib\.Memory; got True"):
            extract(load_encoder(mlp()), np.zeros((2, 12)), memory=True)

    def test_several_at_once(self, tmp_path):
        encoder, X = load_encoder(mlp(), precision="float64"), np.random.default_rng(0).normal(size=(40, 12))
        expected = jepa_score(encoder, X)
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(jepa_score, encoder, X[i % 4 :: 2], memory=tmp_path) for i in range(8)]
        for i, run in enumerate(runs):
            np.testing.assert_allclose(run.result(), expected[i % 4 :: 2], rtol=1e-10)


class TestEmbed:
    def test_equals_the_extraction(self, case, measured):
        module, image_size, X, _ = case
        encoder = load_encoder(module, image_size=image_size, precision="float64")
        expected = extract(encoder, X).embeddings
        measured.clear()
        for options in ({}, {"memory_budget": 1}):
            embeddings = embed(encoder, X, **options)
            assert embeddings.dtype == np.float64
            np.testing.assert_allclose(embeddings, expected, rtol=1e-9, atol=1e-12)
        assert measured == []

    def test_order_and_duplicates(self):
        encoder, X = load_encoder(conv_net(), image_size=32, precision="float64"), random_images(4)
        np.testing.assert_allclose(embed(encoder, X[[2, 0, 2]]), embed(encoder, X)[[2, 0, 2]], rtol=1e-9)

    def test_a_batch_that_runs_out_is_halved(self, monkeypatch):
        class Scarce(nn.Module):
            def forward(self, x):
                if len(x) > 3:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return x.tanh()

        X = np.random.default_rng(0).normal(size=(10, 2))
        np.testing.assert_allclose(embed(load_encoder(Scarce(), precision="float64"), X), np.tanh(X))

    def test_unreadable_samples_are_nan_or_raised(self):
        encoder = load_encoder(conv_net(), image_size=32)
        with pytest.raises(ImageReadError, match=r"c\.jpg"):
            embed(encoder, broken_at(2))
        with pytest.warns(UserWarning, match="skipped"):
            embeddings = embed(encoder, broken_at(2), on_error="skip")
        assert np.isnan(embeddings).all(axis=1).tolist() == [False, False, True, False, False]
        assert not np.isnan(embeddings).any(axis=1)[[0, 1, 3, 4]].any()

    def test_bad_input_is_named(self):
        encoder, X = load_encoder(mlp()), np.zeros((2, 12))
        with pytest.raises(TypeError, match=r"X is already an Extraction: take X\.embeddings"):
            embed(encoder, extract(encoder, X))
        with pytest.raises(ValueError, match="on_error must be one of"):
            embed(encoder, X, on_error="ignore")
        with pytest.raises(ValueError, match=r"X holds images, but .* encodes vectors"):
            embed(encoder, random_images(2))


def broken_at(position):
    source = as_source(random_images(5), ids=list("abcde"))

    def load(i):
        if i == position:
            raise ImageReadError("c.jpg: cannot be read as an image (truncated)")
        return source.load(i)

    return Source(source.ids, load)


def test_unreadable_samples_are_raised_or_skipped_by_name():
    encoder = load_encoder(conv_net(), image_size=32)
    with pytest.raises(ImageReadError, match=r"c\.jpg"):
        extract(encoder, broken_at(2))
    for n_jobs in (None, 2):
        with pytest.warns(UserWarning, match=r"skipped c\.jpg: cannot be read"):
            result = extract(encoder, broken_at(2), on_error="skip", n_jobs=n_jobs)
        assert result.ids.tolist() == list("abde")
        assert result.meta["skipped"] == [[2, "c", "c.jpg: cannot be read as an image (truncated)"]]


def test_scores_of_skipped_samples_are_nan():
    encoder = load_encoder(conv_net(), image_size=32)
    with pytest.warns(UserWarning, match="skipped"):
        scores = jepa_score(encoder, broken_at(2), on_error="skip")
    assert np.isnan(scores).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_callers_gradient_mode_does_not_matter(mode):
    encoder, X = load_encoder(conv_net(), image_size=32), random_images(2)
    with mode():
        inside = jepa_score(encoder, X)
    np.testing.assert_array_equal(inside, jepa_score(encoder, X))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"floor": 0}, ValueError),
        ({"floor": "auto"}, TypeError),
        ({"floor": float("nan")}, ValueError),
        ({"rank": 0}, ValueError),
        ({"rank": -1}, ValueError),
        ({"rank": 7}, ValueError),
    ],
)
def test_floor_and_rank_of_the_papers_score_are_checked(options, error):
    with pytest.raises(error, match=next(iter(options))):
        jepa_score(load_encoder(mlp()), np.zeros((2, 12)), **options)


def test_an_extraction_takes_no_settings():
    encoder = load_encoder(mlp())
    extraction = extract(encoder, np.zeros((2, 12)))
    with pytest.raises(TypeError, match="got views together with an Extraction, which keeps the settings"):
        jepa_score(encoder, extraction, views=3)
    with pytest.raises(TypeError, match="is already an Extraction"):
        extract(encoder, extraction)


def test_threads_share_an_encoder():
    """With dropout in train mode outside, a thread that leaves early must not wake it under the other."""
    module = nn.Sequential(mlp(12, 6), nn.Dropout(0.5)).train()
    encoder, X = load_encoder(module), np.random.default_rng(0).normal(size=(40, 12))
    expected = jepa_score(encoder, X)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(jepa_score, encoder, X[: 5 + 35 * (i % 2)], memory_budget=1) for i in range(6)]
    for i, run in enumerate(runs):
        np.testing.assert_allclose(run.result(), expected[: 5 + 35 * (i % 2)], rtol=1e-4)
    assert all(part.training for part in module.modules())


def test_nothing_readable_is_an_error():
    source = broken_at(2)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ImageReadError, match="none of 1 samples"):
        extract(
            load_encoder(conv_net(), image_size=32), Source(source.ids[2:3], lambda i: source.load(2)), on_error="skip"
        )


def test_a_jacobian_that_is_not_finite_is_named():
    class Root(nn.Module):
        def forward(self, x):
            return (x - x.detach().round() + 0).abs().sqrt()

    with pytest.raises(EncoderError, match="not finite at sample b"):
        extract(load_encoder(Root()), [[0.5, 0.25], [0.0, 1.0]], ids=["a", "b"])


def test_stochastic_modules_are_refused_before_any_work():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    with pytest.raises(EncoderError, match="stochastic"):
        extract(load_encoder(Noisy()), np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fast"}, "method must be one of 'auto', 'forward', 'exact', 'sketch'; got 'fast'"),
        ({"views": 0}, "views must be at least 1; got 0"),
        ({"on_error": "ignore"}, "on_error must be one of 'raise', 'skip'"),
        ({"memory_budget": 0}, "memory_budget must be at least 1"),
        ({"device": "quantum"}, "device 'quantum' is not available here"),
        ({"n_jobs": 0}, "n_jobs must be at least 1"),
        ({"random_state": -1}, "random_state must be at least 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        extract(load_encoder(mlp()), np.zeros((2, 12)), **options)


def test_images_and_vectors_are_not_confused():
    with pytest.raises(ValueError, match=r"X holds vectors, but .* encodes images"):
        extract(load_encoder(conv_net(), image_size=32), np.zeros((4, 7)))
    with pytest.raises(ValueError, match=r"X holds images, but .* encodes vectors"):
        extract(load_encoder(mlp()), random_images(2))


@pytest.mark.parametrize("layers", ["auto", ["1"], None])
def test_inputs_that_do_not_fit_are_the_encoders_error(layers):
    with pytest.raises(EncoderError, match=r"fails on an input of shape \(\d, 5\)"):
        extract(load_encoder(mlp(6, 4)), np.zeros((2, 5)), layers=layers)


def test_progress_goes_to_stderr(capsys):
    extract(load_encoder(mlp()), np.zeros((2, 12)), progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "row/s" in shown.err or "1/1" in shown.err


def test_score_of_a_constant_volume_is_its_logarithm():
    encoder = load_encoder(linear(2 * torch.eye(3).double()), precision="float64")
    assert jepa_score(encoder, [[1.0, 2.0, 3.0]])[0] == pytest.approx(3 * math.log(2))


def test_extraction_in_the_place_of_data():
    encoder = load_encoder(mlp())
    X = np.random.default_rng(0).normal(size=(4, 12))
    extraction = extract(encoder, X)
    assert isinstance(extraction, Extraction)
    np.testing.assert_array_equal(jepa_score(encoder, extraction), jepa_score(encoder, X))


@pytest.mark.parametrize("keeps", ["store", "memory"])
class TestNothingLeftToDo:
    """What is finished is read; the encoder is not looked at, and no process is asked for anything."""

    @pytest.fixture
    def looks(self, monkeypatch):
        looks = []
        rooms = {"probe": skjepa.extraction.batches.ready, "Here": loop, "Spread": loop}
        for name, module in rooms.items():
            known = getattr(module, name)
            monkeypatch.setattr(
                module, name, lambda *a, _known=known, _name=name, **k: looks.append(_name) or _known(*a, **k)
            )
        return looks

    @pytest.mark.parametrize("options", [{}, {"method": "sketch"}, {"views": 2, "random_state": 3}])
    def test_is_read(self, keeps, looks, tmp_path, options):
        images = random_images(5, side=32)
        encoder = load_encoder(conv_net(), image_size=32)
        first = extract(encoder, images, **{keeps: tmp_path / "kept"}, **options)
        assert looks == ["probe", "Here"]
        again = extract(encoder, images, **{keeps: tmp_path / "kept"}, **options)
        assert looks == ["probe", "Here"]
        assert np.array_equal(again.singular_values, first.singular_values)
        assert np.array_equal(again.embeddings, first.embeddings)
        assert (again.ids.tolist(), again.meta) == (first.ids.tolist(), first.meta)
        with joblib.parallel_config(backend="loky", n_jobs=2):
            extract(encoder, images, **{keeps: tmp_path / "kept"}, **options)
        assert looks == ["probe", "Here"]

    def test_one_more_sample_is_measured(self, keeps, looks, tmp_path):
        images = random_images(5, side=32)
        encoder = load_encoder(conv_net(), image_size=32)
        extract(encoder, images[:4], **{keeps: tmp_path / "kept"})
        assert len(extract(encoder, images, **{keeps: tmp_path / "kept"})) == 5
        assert looks == ["probe", "Here", "Here"]  # an encoder as it was is looked at once

    def test_another_encoder_is_looked_at(self, keeps, looks, tmp_path):
        images = random_images(5, side=32)
        torch.manual_seed(1)
        for encoder in (load_encoder(conv_net(), image_size=32), load_encoder(torch.nn.Flatten(), image_size=32)):
            kept = tmp_path / (encoder.fingerprint if keeps == "store" else "kept")
            extract(encoder, images, method="sketch", n_directions=2, **{keeps: kept})
        assert looks == ["probe", "Here"] * 2

    def test_what_is_kept_is_read_once(self, keeps, tmp_path, monkeypatch):
        """Also where samples are left to measure: files are long to hash, and stores long to read."""
        images = random_images(5, side=32)
        paths = [tmp_path / f"{i}.png" for i in range(5)]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image).save(path)
        encoder = load_encoder(conv_net(), image_size=32)
        extract(encoder, paths[:4], **{keeps: tmp_path / "kept"})
        read, hashed = [], []
        read_all, file_hash = Store.read_all, skjepa.data.sources.file_hash
        monkeypatch.setattr(Store, "read_all", lambda *a: read.append(a) or read_all(*a))
        monkeypatch.setattr(skjepa.data.sources, "file_hash", lambda path: hashed.append(path) or file_hash(path))
        extract(encoder, paths, **{keeps: tmp_path / "kept"})
        assert (len(read), len(hashed)) == (1, 5)
