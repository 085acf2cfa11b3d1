"""`Encoder`: what it computes, what its fingerprint covers, and what it leaves untouched."""

import copy
import functools
import io
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import joblib
import numpy as np
import pytest
import timm
import torch
from oracles import random_images
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_sample_image
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from timm.models import save_for_hf
from torch import nn
from torchvision import transforms

import skjepa.encoders.encoder
from skjepa import JEPAScoreDetector, extract
from skjepa.encoders.encoder import Encoder, FingerprintError, load_encoder
from skjepa.encoders.networks import build_network, save_network

VIT = {"embed_dim": 32, "num_heads": 2, "depth": 2}


class Small(nn.Module):
    """A network with what may go wrong: BatchNorm, dropout, a frozen layer, a buffer outside the state."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, x):
        return self.scale * self.head(self.drop(self.norm(self.conv(x)).mean(dim=(2, 3))))


def embed(encoder: Encoder, x: torch.Tensor) -> torch.Tensor:
    with encoder.scoring("cpu") as function, torch.no_grad():
        return function(x.to(encoder.dtype))


def mean_and_max(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """An output of the user's; at module level, so that it can be pickled."""
    features = module.conv(x)
    return torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)


def to_bgr(image: Image.Image) -> torch.Tensor:
    """A preprocessing of the user's that timm and the plain one would not do."""
    return transforms.functional.to_tensor(transforms.functional.resize(image, [16, 16])).flip(0) * 2 - 1


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network_file(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "network.safetensors"
    metadata = {"image_size": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    save_network(build_network("convnet", widths=[4, 8], depths=[1, 1], n_components=5), path, metadata=metadata)
    return path


@pytest.fixture
def timm_folder(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit.r160_in1k", pretrained=False, **VIT)
    save_for_hf(model, tmp_path / "vit", model_args=VIT, safe_serialization=True)
    return tmp_path / "vit"


@pytest.fixture(scope="module")
def china() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


class TestPlainModule:
    def test_of_images(self, images):
        module = Small().eval()
        encoder = load_encoder(module, image_size=16, mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
        assert encoder.module is module
        assert (encoder.name, encoder.input_shape, encoder.dtype) == ("Small", (3, 16, 16), torch.float32)
        assert (encoder.preprocessing.mean, encoder.preprocessing.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
        with torch.no_grad():
            torch.testing.assert_close(embed(encoder, images), module(images), rtol=0, atol=0)

    def test_of_vectors(self):
        module = nn.Linear(4, 2)
        encoder = load_encoder(module)
        assert (encoder.input_shape, encoder.preprocessing) == (None, None)
        assert "vectors" in repr(encoder)

    def test_float64_is_the_module_in_float64(self, images):
        module = Small()
        z = embed(load_encoder(module, image_size=16, precision="float64"), images)
        with torch.no_grad():
            torch.testing.assert_close(z, Small().double().eval()(images.double()), rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"mean": (0, 0, 0)}, ValueError, "give image_size"),
            ({"image_size": 16, "mean": (0, 0)}, ValueError, "mean and std need three values"),
            ({"image_size": 16, "std": (1, 0, 1)}, ValueError, "std must be positive"),
            ({"image_size": 0}, ValueError, "image_size must be at least 1"),
            ({"image_size": 16.0}, TypeError, "image_size must be an integer"),
            ({"precision": "float16"}, ValueError, "'float32', 'float64'"),
            ({"output": "pooled"}, ValueError, "give a layer name"),
            ({"output": 3}, TypeError, "output must be a name or a callable"),
            ({"output": "hed"}, ValueError, "no layer 'hed' in Small.*head"),
            ({"weights": "file.safetensors"}, ValueError, "weights= is for timm names"),
            ({"preprocess": "torchvision"}, TypeError, "'auto' or a callable"),
        ],
    )
    def test_refusals(self, options, error, message):
        with pytest.raises(error, match=message):
            load_encoder(Small(), **options)

    @pytest.mark.parametrize("source", [None, 3, Small, ["bundled"]])
    def test_no_source(self, source):
        with pytest.raises(TypeError, match="source must be"):
            load_encoder(source)


class TestOutput:
    def test_layer_averages_positions(self, images):
        module = Small().eval()
        encoder = load_encoder(module, image_size=16, output="norm")
        with torch.no_grad():
            expected = module.norm(module.conv(images)).mean(dim=(2, 3))
        torch.testing.assert_close(embed(encoder, images), expected, rtol=0, atol=0)

    def test_layer_averages_tokens(self, timm_folder):
        encoder = load_encoder(f"local-dir:{timm_folder}", output="blocks.1")
        x = torch.rand(2, 3, 160, 160)
        model = timm.create_model(f"local-dir:{timm_folder}", pretrained=True).eval()
        with torch.no_grad():
            tokens = model.forward_intermediates(x, indices=[1], intermediates_only=True, return_prefix_tokens=True)
        patches, prefix = tokens[0]
        expected = torch.cat([prefix, patches.flatten(2).mT], dim=1).mean(dim=1)
        torch.testing.assert_close(embed(encoder, x), expected)

    def test_layer_of_channels_last_models(self):
        """Swin's blocks give (B, H, W, C): the channels stay, the positions are averaged."""
        swin = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=32, window_size=4, depths=(1,), num_heads=(3,)
        )
        encoder = load_encoder(swin, image_size=32, output="layers.0")
        assert embed(encoder, torch.rand(2, 3, 32, 32)).shape == (2, 96)

    def test_layer_leaves_no_hook(self, images):
        module = Small()
        embed(load_encoder(module, image_size=16, output="conv"), images)
        assert not module.conv._forward_hooks

    def test_layer_without_a_part(self, images):
        module = Small()
        module.idle = nn.Identity()
        with pytest.raises(ValueError, match="'idle' is not used in the forward pass"):
            embed(load_encoder(module, image_size=16, output="idle"), images)

    def test_layer_that_returns_no_tensor(self):
        module = nn.Sequential(nn.LSTM(4, 3), nn.Identity())
        with pytest.raises(TypeError, match="'0' returns tuple"):
            embed(load_encoder(module, output="0"), torch.rand(2, 5, 4))

    def test_callable(self, images):
        module = Small().eval()
        encoder = load_encoder(module, image_size=16, output=mean_and_max)
        with torch.no_grad():
            torch.testing.assert_close(embed(encoder, images), mean_and_max(module, images), rtol=0, atol=0)

    def test_callable_sees_the_parameters_of_the_pass(self, images):
        """In float64 the callable gets a module of float64."""
        encoder = load_encoder(Small(), image_size=16, output=mean_and_max, precision="float64")
        assert embed(encoder, images).dtype == torch.float64

    def test_callable_on_a_timm_model(self, timm_folder):
        encoder = load_encoder(f"local-dir:{timm_folder}", output=lambda model, x: model.forward_features(x)[:, 0])
        assert embed(encoder, torch.rand(1, 3, 160, 160)).shape == (1, 32)


class TestHandedBack:
    """Scoring leaves the module as it was, whatever happens inside."""

    @staticmethod
    def describe(module: nn.Module) -> tuple:
        tensors = [*module.named_parameters(), *module.named_buffers()]
        return (
            [m.training for m in module.modules()],
            [(name, id(t), t.dtype, t.device, t.requires_grad, t.grad is None) for name, t in tensors],
            [t.clone().tolist() for _, t in tensors],
            [len(m._forward_hooks) for m in module.modules()],
        )

    @pytest.fixture
    def module(self) -> nn.Module:
        module = Small().train()
        module.norm.eval()
        module.conv.requires_grad_(False)
        return module

    @pytest.mark.parametrize("precision", ["float32", "float64"])
    @pytest.mark.parametrize("output", ["auto", "norm", mean_and_max])
    def test_after_backward_passes(self, module, images, precision, output):
        before = self.describe(module)
        encoder = load_encoder(module, image_size=16, precision=precision, output=output)
        with encoder.scoring("cpu") as function:
            assert not any(m.training for m in module.modules())
            x = images.to(encoder.dtype).requires_grad_(True)
            function(x).sum().backward()
        assert x.grad.abs().sum() > 0
        assert self.describe(module) == before

    @pytest.mark.parametrize("output", ["auto", "norm"])
    def test_after_an_exception(self, module, output):
        before = self.describe(module)
        encoder = load_encoder(module, image_size=16, output=output)
        with pytest.raises(RuntimeError, match="channels"), encoder.scoring("cpu") as function:
            function(torch.zeros(1, 4, 16, 16))
        assert self.describe(module) == before

    def test_buffers_that_the_pass_writes(self, images):
        class Counting(Small):
            def forward(self, x):
                self.scale += 1
                return super().forward(x)

        module = Counting()
        embed(load_encoder(module, image_size=16), images)
        assert module.scale == 2

    def test_gradients_of_the_owner_stay(self, module, images):
        module(images).sum().backward()
        before = module.head.weight.grad.clone()
        with load_encoder(module, image_size=16).scoring("cpu") as function:
            function(images.clone().requires_grad_(True)).sum().backward()
        assert torch.equal(module.head.weight.grad, before)


def counted(monkeypatch, name: str) -> list[Any]:
    """The calls that a function of `skjepa.encoders.encoder` receives from now on."""
    function, calls = getattr(skjepa.encoders.encoder, name), []
    monkeypatch.setattr(skjepa.encoders.encoder, name, lambda *args: calls.append(args) or function(*args))
    return calls


class TestFingerprint:
    def test_same_for_two_loads(self, network_file, timm_folder):
        for source in (network_file, f"local-dir:{timm_folder}"):
            assert load_encoder(source).fingerprint == load_encoder(source).fingerprint
        assert load_encoder(Small(), image_size=16).fingerprint == load_encoder(Small(), image_size=16).fingerprint

    def test_every_setting_counts(self):
        variants = [
            {},
            {"image_size": 17},
            {"mean": (0.5, 0, 0)},
            {"std": (0.5, 1, 1)},
            {"precision": "float64"},
            {"output": "norm"},
            {"output": "conv"},
            {"output": mean_and_max},
            {"output": lambda module, x: module(x)},
            {"output": lambda module, x: 2 * module(x)},
            {"preprocess": to_bgr},
        ]
        prints = [load_encoder(Small(), **{"image_size": 16, **options}).fingerprint for options in variants[:-1]]
        prints.append(load_encoder(Small(), **variants[-1]).fingerprint)
        assert len(set(prints)) == len(variants)

    def change_weights(self, module):
        module.head.weight.data.add_(1e-3)  # an edit that bumps no version counter

    def change_statistics(self, module):
        module.norm.running_mean[0] += 1

    def change_unsaved_buffer(self, module):
        module.scale += 1

    def change_architecture(self, module):
        module.norm.eps = 0.1

    def change_dtype(self, module):
        module.double()

    @pytest.mark.parametrize(
        "change", [change_weights, change_statistics, change_unsaved_buffer, change_architecture, change_dtype]
    )
    def test_changes_with_the_module(self, change: Callable):
        module = Small()
        encoder = load_encoder(module, image_size=16)
        before = encoder.fingerprint
        change(self, module)
        assert encoder.fingerprint != before

    @pytest.mark.parametrize(
        "write",
        [
            lambda weight: weight.data.mul_(-1),
            lambda weight: weight.detach().numpy().__imul__(2),
            lambda weight: weight.data.copy_(weight.data.flip(0)),
        ],
        ids=["data", "NumPy", "order"],
    )
    def test_changes_that_torch_does_not_count(self, write):
        module = nn.Linear(3, 2)
        encoder = load_encoder(module)
        before, version = encoder.fingerprint, module.weight._version
        write(module.weight)
        assert module.weight._version == version
        assert encoder.fingerprint != before

    def test_unchanged_weights_are_hashed_once(self, monkeypatch):
        images = random_images(3, side=16)
        hashed, read = counted(monkeypatch, "fingerprint_of"), counted(monkeypatch, "content_of")
        module = Small()
        encoder = load_encoder(module, image_size=16)
        extract(encoder, images)
        assert (len(hashed), len(read)) == (1, 1)
        extract(encoder, images)
        assert (len(hashed), len(read)) == (1, 2)  # a call looks once, and finds them unchanged
        with torch.no_grad():
            module.conv.weight.add_(1)
        extract(encoder, images)
        assert len(hashed) == 2

    def test_a_detector_looks_once_a_call(self, monkeypatch):
        images = random_images(30, side=16)
        detector = JEPAScoreDetector(load_encoder(Small(), image_size=16)).fit(images)
        hashed, read = counted(monkeypatch, "fingerprint_of"), counted(monkeypatch, "content_of")
        detector.score_samples(images[:1])
        assert (len(hashed), len(read)) == (0, 1)
        repr(detector)
        assert (len(hashed), len(read)) == (0, 1)

    def test_ignores_mode_and_gradients(self, images):
        module = Small().eval()
        encoder = load_encoder(module, image_size=16)
        before = encoder.fingerprint
        module(images).sum().backward()
        module.train().requires_grad_(False)
        embed(encoder, images)
        assert encoder.fingerprint == before

    def test_ignores_addresses_in_reprs(self):
        class Gelu(nn.Module):
            def __init__(self):
                super().__init__()
                self.function = functools.partial(torch.nn.functional.gelu, approximate="tanh")

            def extra_repr(self):
                return f"{object()}"

            def forward(self, x):
                return self.function(x)

        assert load_encoder(Gelu()).fingerprint == load_encoder(Gelu()).fingerprint

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.bool])
    def test_tensors_of_any_kind(self, dtype):
        module = nn.Linear(2, 2)
        module.register_buffer("other", torch.ones(3).to(dtype))
        module.register_buffer("scalar", torch.ones(()).to(dtype))
        module.register_buffer("empty", torch.ones(0, 2).to(dtype))
        assert len(load_encoder(module).fingerprint) == 64


class TestSharing:
    @pytest.fixture
    def encoder(self):
        return load_encoder(Small(), image_size=16)

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, clone, load_encoder])
    def test_shared(self, encoder, copied):
        assert copied(encoder) is encoder

    def test_shared_inside_a_pipeline(self, encoder):
        pipeline = make_pipeline(FunctionTransformer(kw_args={"encoder": encoder}))
        pipeline[0].kw_args = encoder
        assert clone(pipeline)[0].kw_args is encoder

    @pytest.mark.parametrize(
        ("option", "value"),
        [("image_size", 32), ("precision", "float64"), ("output", "head"), ("mean", np.zeros(3)), ("weights", "file")],
    )
    def test_settings_beside_an_encoder_are_refused(self, encoder, option, value):
        with pytest.raises(ValueError, match=f"got {option} together with an Encoder, which keeps"):
            load_encoder(encoder, **{option: value})

    def test_defaults_beside_an_encoder_are_not(self, encoder):
        assert load_encoder(encoder, image_size=None, output="auto", precision="float32") is encoder


def through_pickle(value):
    return pickle.loads(pickle.dumps(value))


def through_joblib(value):
    file = io.BytesIO()
    joblib.dump(value, file)
    file.seek(0)
    return joblib.load(file)


class TestPickle:
    @pytest.mark.parametrize("through", [through_pickle, through_joblib])
    def test_module_travels_along(self, images, through):
        encoder = load_encoder(Small(), image_size=16, output=mean_and_max, precision="float64")
        again = through(encoder)
        assert again.fingerprint == encoder.fingerprint
        assert again.name == "Small"
        torch.testing.assert_close(embed(again, images), embed(encoder, images), rtol=0, atol=0)
        assert through(again).fingerprint == encoder.fingerprint

    @pytest.mark.parametrize("through", [through_pickle, through_joblib])
    @pytest.mark.parametrize("kind", ["file", "timm", "bundled"])
    def test_weights_stay_where_they_are(self, network_file, timm_folder, through, kind):
        source = {"file": network_file, "timm": f"local-dir:{timm_folder}", "bundled": "bundled"}[kind]
        encoder = load_encoder(source, image_size=32, mean=(0.1, 0.2, 0.3), precision="float64")
        assert len(pickle.dumps(encoder)) < 1500
        again = through(encoder)
        assert (again.fingerprint, again.name) == (encoder.fingerprint, encoder.name)
        assert again.preprocessing == encoder.preprocessing
        assert through(again).fingerprint == encoder.fingerprint

    def test_weights_argument(self, timm_folder):
        torch.manual_seed(9)
        other = timm.create_model("test_vit.r160_in1k", pretrained=False, **VIT)
        torch.save(other.state_dict(), timm_folder.parent / "other.pth")
        encoder = load_encoder(f"local-dir:{timm_folder}", weights=timm_folder.parent / "other.pth")
        assert torch.equal(through_pickle(encoder).module.patch_embed.proj.weight, other.patch_embed.proj.weight)

    @pytest.mark.parametrize("kind", ["file", "timm"])
    def test_from_another_working_directory(self, network_file, timm_folder, monkeypatch, tmp_path, kind):
        monkeypatch.chdir(tmp_path)
        encoder = load_encoder(network_file.name if kind == "file" else f"local-dir:{timm_folder.name}")
        pickled = pickle.dumps(encoder)
        monkeypatch.chdir("/")
        assert pickle.loads(pickled).fingerprint == encoder.fingerprint

    def test_changed_weights(self, network_file):
        pickled = pickle.dumps(load_encoder(network_file))
        torch.manual_seed(1)
        other = build_network("convnet", widths=[4, 8], depths=[1, 1], n_components=5)
        metadata = {"image_size": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
        save_network(other, network_file, metadata=metadata)
        with pytest.raises(FingerprintError, match=r"network\.safetensors.* has changed"):
            pickle.loads(pickled)

    def test_missing_weights(self, network_file):
        pickled = pickle.dumps(load_encoder(network_file))
        network_file.unlink()
        with pytest.raises(FileNotFoundError, match="network"):
            pickle.loads(pickled)


class TestOwnFormat:
    def test_bundled(self):
        encoder = load_encoder("bundled")
        assert (encoder.name, encoder.input_shape) == ("bundled", (3, 32, 32))
        assert embed(encoder, torch.zeros(2, 3, 32, 32)).shape == (2, 64)

    def test_file_brings_its_preprocessing(self, network_file):
        encoder = load_encoder(network_file)
        assert encoder.input_shape == (3, 16, 16)
        assert encoder.preprocessing.mean == (0.5, 0.4, 0.3)
        assert load_encoder(network_file, std=(1, 1, 1)).preprocessing.std == (1.0, 1.0, 1.0)
        assert load_encoder(network_file, image_size=24).input_shape == (3, 24, 24)

    def test_layer(self, network_file):
        x = torch.rand(1, 3, 16, 16)
        assert embed(load_encoder(network_file, output="head"), x).shape == (1, 5)

    def test_refusals(self, network_file, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            load_encoder(tmp_path / "nowhere.safetensors")
        with pytest.raises(ValueError, match="weights= is for timm names"):
            load_encoder("bundled", weights=network_file)
        with pytest.raises(ValueError, match="is for models of timm and transformers"):
            load_encoder(network_file, output="projected")


class TestOwnPreprocessing:
    def test_is_what_the_module_receives(self, china):
        encoder = load_encoder(Small(), preprocess=to_bgr)
        assert encoder.input_shape == (3, 16, 16)
        batch = encoder.preprocessing.load(china, torch.float64)[None]
        torch.testing.assert_close(encoder.preprocessing.normalise(batch)[0], to_bgr(china).double(), rtol=0, atol=0)

    def test_every_kind_of_picture(self, china):
        """uint8 arrays bit for bit, float ones rounded to 8 bits."""
        load = functools.partial(load_encoder(Small(), preprocess=to_bgr).preprocessing.load, dtype=torch.float32)
        pixels = np.asarray(china)
        expected = to_bgr(china)
        for picture in (
            pixels,
            pixels / 255,
            (pixels / 255).astype(np.float32),
            torch.tensor(pixels / 255).permute(2, 0, 1),
        ):
            torch.testing.assert_close(load(picture), expected, rtol=0, atol=0)

    def test_equals_timms_where_it_is_timms(self, timm_folder, china):
        model = timm.create_model(f"local-dir:{timm_folder}", pretrained=True)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        own = load_encoder(f"local-dir:{timm_folder}", preprocess=transform)
        auto = load_encoder(f"local-dir:{timm_folder}")
        a, b = (e.preprocessing.normalise(e.preprocessing.load(china, torch.float32)[None]) for e in (own, auto))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)

    def test_gives_a_timm_model_its_size(self, timm_folder):
        transform = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()])
        encoder = load_encoder(f"local-dir:{timm_folder}", preprocess=transform)
        assert encoder.input_shape == (3, 64, 64)
        assert embed(encoder, torch.rand(1, 3, 64, 64)).shape == (1, 32)

    def test_parameters_are_in_the_fingerprint(self):
        def at(size, interpolation=transforms.InterpolationMode.BILINEAR):
            steps = [
                transforms.Resize(size, interpolation=interpolation),
                transforms.CenterCrop(16),
                transforms.ToTensor(),
            ]
            return load_encoder(Small(), preprocess=transforms.Compose(steps)).fingerprint

        assert at(20) == at(20)
        assert len({at(20), at(24), at(20, transforms.InterpolationMode.BICUBIC)}) == 3

    def test_pickle(self):
        encoder = load_encoder("bundled", preprocess=functools.partial(resized, side=32))
        again = through_pickle(encoder)
        assert again.fingerprint == encoder.fingerprint
        assert again.fingerprint != load_encoder("bundled").fingerprint

    @pytest.mark.parametrize(
        ("preprocess", "options", "message"),
        [
            (transforms.PILToTensor(), {}, "normalised float tensor"),
            (lambda image: image, {}, "normalised float tensor.*got Image"),
            (lambda image: 1 / 0, {}, "preprocess fails.*division"),
            (to_bgr, {"mean": (0, 0, 0)}, "leave mean and std out"),
            (to_bgr, {"image_size": 32}, "returns 16x16 images, image_size is 32"),
        ],
    )
    def test_refusals(self, preprocess, options, message):
        with pytest.raises(ValueError, match=message):
            load_encoder(Small(), preprocess=preprocess, **options)

    def test_sizes_that_vary(self, china):
        """Without a crop the shape follows the picture."""
        encoder = load_encoder(Small(), preprocess=transforms.Compose([transforms.Resize(16), transforms.ToTensor()]))
        with pytest.raises(ValueError, match="must return one size"):
            encoder.preprocessing.load(china.crop((0, 0, 50, 400)), torch.float32)

    def test_rectangles(self, network_file):
        transform = transforms.Compose([transforms.Resize((16, 24)), transforms.ToTensor()])
        assert load_encoder(Small(), preprocess=transform).input_shape == (3, 16, 24)
        with pytest.raises(ValueError, match="preprocess returns 16x24 images; named models take squares"):
            load_encoder(network_file, preprocess=transform)


def resized(image: Image.Image, side: int) -> torch.Tensor:
    return transforms.functional.to_tensor(image.resize((side, side)))


class Power(torch.nn.Module):
    """Its exponent is neither weight nor buffer."""

    def __init__(self, exponent):
        super().__init__()
        self.exponent, self.calls = exponent, 0

    def forward(self, x):
        self.calls += 1
        return x**self.exponent


def test_plain_attributes_are_in_the_fingerprint_and_counters_do_not_move_it():
    encoder = load_encoder(Power(2))
    before = encoder.fingerprint
    assert before == load_encoder(Power(2)).fingerprint
    assert before != load_encoder(Power(3)).fingerprint
    with encoder.scoring() as function:
        function(torch.ones(1, 2))
    assert encoder.fingerprint == before


def test_threads_do_not_see_each_others_parameters():
    class Slow(nn.Linear):
        def forward(self, x):
            before = self.weight
            time.sleep(0.02)  # another thread's turn
            assert self.weight is before
            return super().forward(x)

    encoder = load_encoder(Slow(3, 2), precision="float64")
    fingerprint = encoder.fingerprint

    def score(_):
        with encoder.scoring() as function:
            return function(torch.ones(1, 3, dtype=torch.float64)), encoder.fingerprint

    with ThreadPoolExecutor(4) as pool:
        for output, seen in pool.map(score, range(8)):
            assert output.dtype == torch.float64
            assert seen == fingerprint
    assert encoder.module.weight.dtype == torch.float32
