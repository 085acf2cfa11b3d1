"""Vision models of `transformers` from local folders: the numbers of their own code, and of timm's on these weights."""

import json
import pickle
import re
import shutil
import sys

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image

from skjepa import JEPAScoreDetector
from skjepa.encoders.encoder import load_encoder
from skjepa.encoders.timm_models import WeightsNotFoundError
from skjepa.extraction.encoder_pass import extract
from skjepa.jacobian.rows import jacobian
from skjepa.persistence.folder import NotHereError

transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
CLIP_SIZES = {**SIZES, "intermediate_size": 64, "projection_dim": 16}
BIT = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "resample": 3}
STATISTICS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def make(kind: str):
    """A model with random weights and the image processor of its family."""
    t = transformers
    clip = t.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    bit = t.BitImageProcessor(**BIT, **STATISTICS)
    if kind == "ijepa":
        config = t.IJepaConfig(**SIZES, intermediate_size=64, layer_norm_eps=1e-6)
        return t.IJepaModel(config), t.ViTImageProcessor(size={"height": 28, "width": 28}, **STATISTICS)
    if kind == "dinov2":
        return t.Dinov2Model(t.Dinov2Config(**SIZES, layerscale_value=0.5)), bit
    if kind == "dinov2_with_registers":
        return t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2)), bit
    if kind == "dinov3_vit":
        config = t.DINOv3ViTConfig(**SIZES, intermediate_size=64, num_register_tokens=2)
        return t.DINOv3ViTModel(config), t.ViTImageProcessor(size={"height": 28, "width": 28}, **STATISTICS)
    if kind == "clip_vision_model":
        return t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**CLIP_SIZES)), clip
    if kind == "metaclip_2":
        return t.MetaClip2VisionModelWithProjection(t.MetaClip2VisionConfig(**CLIP_SIZES)), clip
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = t.CLIPConfig(text_config=text | {"vocab_size": 99}, vision_config=CLIP_SIZES, projection_dim=16)
    return t.CLIPModel(config), clip


FIRST_OF_MLP = ("1.mlp.fc1.weight", "1.mlp.up_proj.weight", "1.intermediate.dense.weight")
KINDS = ["ijepa", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model", "metaclip_2", "clip"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    transformers.logging.disable_progress_bar()
    for kind in KINDS:
        torch.manual_seed(0)
        model, processor = make(kind)
        with torch.no_grad():  # as initialised, attention and biases are next to nothing
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(root / kind)
        processor.save_pretrained(root / kind)
    transformers.logging.enable_progress_bar()
    return root


@pytest.fixture(scope="module")
def china() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


def pixels(n: int = 2, size: int = 28) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def embed(encoder, x: torch.Tensor) -> torch.Tensor:
    with encoder.scoring("cpu") as function, torch.no_grad():
        return function(x.to(encoder.dtype))


def spectra(encoder, x: torch.Tensor) -> torch.Tensor:
    with encoder.scoring("cpu") as function:
        return torch.linalg.svdvals(jacobian(function, x.to(encoder.dtype))[1].flatten(2))


def reference(kind: str, folder, x: torch.Tensor) -> torch.Tensor:
    """The read-out by hand, of the model as `transformers` loads it, with its plain attention (softmax in float32)."""
    name = {"clip": "CLIPModel", "clip_vision_model": "CLIPVisionModelWithProjection"}.get(kind)
    model = getattr(transformers, name or type(make(kind)[0]).__name__)
    model = model.from_pretrained(folder / kind, attn_implementation="eager", dtype=torch.float64).eval()
    with torch.no_grad():
        if kind == "clip":
            return model.get_image_features(pixel_values=x).pooler_output
        output = model(pixel_values=x)
        if kind in ("clip_vision_model", "metaclip_2"):
            return output.image_embeds
        return output.last_hidden_state.mean(1) if kind == "ijepa" else output.last_hidden_state[:, 0]


@pytest.mark.parametrize("kind", KINDS)
class TestFamilies:
    def test_embedding_is_the_models(self, folders, kind):
        encoder = load_encoder(f"transformers:{folders / kind}", precision="float64")
        torch.testing.assert_close(embed(encoder, pixels()), reference(kind, folders, pixels()), rtol=0, atol=1e-6)

    def test_preprocessing_is_the_image_processors(self, folders, kind, china):
        preprocessing = load_encoder(f"transformers:{folders / kind}").preprocessing
        processor = transformers.AutoImageProcessor.from_pretrained(folders / kind, backend="pil")
        expected = processor(china, return_tensors="pt")["pixel_values"][0]
        found = preprocessing.normalise(preprocessing.load(china, torch.float32)[None])[0]
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_all_paths_of_the_engine(self, folders, kind):
        """Many passes prepared, float32, batches: within rounding of the plain float64 Jacobian."""
        images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
        encoder = load_encoder(f"transformers:{folders / kind}")
        exact = load_encoder(f"transformers:{folders / kind}", precision="float64")
        x = torch.stack([exact.preprocessing.load(image, torch.float64) for image in images])
        x = exact.preprocessing.normalise(x)
        with exact.scoring("cpu") as function:
            dense = torch.autograd.functional.jacobian(lambda x: function(x).sum(0), x).movedim(0, 1).flatten(2)
        expected = torch.linalg.svdvals(dense).numpy()
        found = extract(encoder, images).singular_values[:, 0]
        assert found.shape == expected.shape
        # The last singular value behind a LayerNorm is zero.
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4 * expected.max())

    def test_other_size(self, folders, kind):
        encoder = load_encoder(f"transformers:{folders / kind}", image_size=42)
        assert encoder.input_shape == (3, 42, 42)
        assert torch.isfinite(embed(encoder, pixels(size=42))).all()
        with pytest.raises(ValueError, match=r"image_size=30 must be a multiple of .* patch size 7"):
            load_encoder(f"transformers:{folders / kind}", image_size=30)

    def test_fingerprint_knows_weights_not_places(self, folders, kind, tmp_path):
        first = load_encoder(f"transformers:{folders / kind}")
        shutil.copytree(folders / kind, tmp_path / "elsewhere")
        assert load_encoder(f"transformers:{tmp_path / 'elsewhere'}").fingerprint == first.fingerprint
        file = tmp_path / "elsewhere" / "model.safetensors"
        weights = load_file(file)
        name = next(key for key in weights if key.endswith(FIRST_OF_MLP))
        weights[name][0, 0] += 1
        save_file(weights, file, metadata={"format": "pt"})
        assert load_encoder(f"transformers:{tmp_path / 'elsewhere'}").fingerprint != first.fingerprint


TO_TIMM = [  # names of transformers -> names of timm, in this order
    (r"^(vision_model|vit|model)\.", ""),
    (r"^embeddings\.mask_token$", None),
    (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"^embeddings\.(patch_embeddings\.projection|patch_embedding)\.", "patch_embed.proj."),
    (r"^(encoder\.)?layers?\.", "blocks."),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"\.layer_norm([12])\.|\.layernorm_(before|after)\.", r".norm\1\2."),
    ("normbefore", "norm1"),
    ("normafter", "norm2"),
    (r"attention\.attention\.(query|key|value)|self_attn\.([qkv])_proj|attention\.([qkv])_proj", r"attn.\1\2\3"),
    (r"attention\.output\.dense|self_attn\.out_proj|attention\.o_proj", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"\.output\.dense", ".mlp.fc2"),
    (r"^(post_)?layernorm\.", "norm."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^visual_projection\.", "head."),
]
TIMM = {
    "ijepa": "vit_huge_patch14_gap_224.in1k_ijepa",
    "dinov2": "vit_small_patch14_dinov2.lvd142m",
    "clip_vision_model": "vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b",
}


def to_timm(weights: dict[str, torch.Tensor], model: torch.nn.Module) -> None:
    """Load weights of transformers into a model of timm's: query, key and value are one matrix there."""
    state = {}
    for name, tensor in weights.items():
        for pattern, new in TO_TIMM:
            if new is None and re.search(pattern, name):
                break
            name = re.sub(pattern, new or "", name)
        else:
            state[name] = tensor
    for name in [name for name in state if re.search(r"attn\.q(uery)?\.", name)]:
        parts = [[key, key[0]][bool(re.search(r"attn\.q\.", name))] for key in ("query", "key", "value")]
        whole = [state.pop(re.sub(r"attn\.q(uery)?\.", f"attn.{part}.", name)) for part in parts]
        state[re.sub(r"attn\.q(uery)?\.", "attn.qkv.", name)] = torch.cat(whole)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if "head.bias" in shapes:
        state["head.bias"] = torch.zeros(shapes["head.bias"])  # CLIP's projection has none
    model.load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in state.items()})


@pytest.mark.parametrize("kind", TIMM)
def test_agrees_with_timm(folders, kind):
    """Embeddings and singular values of the same weights, in float64."""
    width = {"mlp_ratio": 4 if kind == "dinov2" else 2, "num_classes": 16 if kind == "clip_vision_model" else 0}
    sizes = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = timm.create_model(TIMM[kind], pretrained=False, **sizes, **width)
    to_timm(load_file(folders / kind / "model.safetensors"), model)
    ours = load_encoder(f"transformers:{folders / kind}", precision="float64")
    theirs = load_encoder(model, image_size=28, precision="float64")
    torch.testing.assert_close(embed(ours, pixels()), embed(theirs, pixels()), rtol=0, atol=1e-9)
    torch.testing.assert_close(spectra(ours, pixels()), spectra(theirs, pixels()), rtol=0, atol=1e-9)


class TestOutput:
    def test_pooled_and_projected(self, folders):
        name = f"transformers:{folders / 'clip'}"
        x = pixels()
        model = transformers.CLIPVisionModel.from_pretrained(folders / "clip", dtype=torch.float64).eval()
        with torch.no_grad():
            expected = model(pixel_values=x).pooler_output
        pooled = load_encoder(name, output="pooled", precision="float64")
        torch.testing.assert_close(embed(pooled, x), expected, rtol=0, atol=1e-10)
        projected = load_encoder(name, output="projected", precision="float64")
        torch.testing.assert_close(embed(projected, x), reference("clip", folders, x), rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match="no projection"):
            load_encoder(f"transformers:{folders / 'dinov2'}", output="projected")

    def test_mean_of_tokens_and_a_layer(self, folders):
        name = f"transformers:{folders / 'dinov2'}"
        tokens = load_encoder(
            name, output=lambda model, x: model.forward_features(x)[:, 1:].mean(1), precision="float64"
        )
        model = transformers.Dinov2Model.from_pretrained(folders / "dinov2", dtype=torch.float64).eval()
        with torch.no_grad():
            hidden = model(pixel_values=pixels()).last_hidden_state
        torch.testing.assert_close(embed(tokens, pixels()), hidden[:, 1:].mean(1), rtol=0, atol=1e-10)
        layer = load_encoder(name, output="model.layernorm", precision="float64")
        torch.testing.assert_close(embed(layer, pixels()), hidden.mean(1), rtol=0, atol=1e-10)
        with pytest.raises(ValueError, match=r"no layer 'model.layrnorm'.*model.layernorm"):
            load_encoder(name, output="model.layrnorm")


class TestPersistence:
    def test_pickle_loads_by_name(self, folders, monkeypatch, tmp_path):
        monkeypatch.chdir(folders)
        encoder = load_encoder("transformers:dinov2")
        text = pickle.dumps(encoder)
        assert len(text) < 5000
        monkeypatch.chdir(tmp_path)
        assert pickle.loads(text).fingerprint == encoder.fingerprint

    def test_saved_detector(self, folders, tmp_path):
        """The path is not followed, for the writer of a detector chose it: the encoder is given again."""
        images = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 3), dtype=np.uint8)
        encoder = load_encoder(f"transformers:{folders / 'ijepa'}")
        detector = JEPAScoreDetector(encoder, contamination=0.1).fit(images)
        detector.save(tmp_path / "detector")
        with pytest.raises(NotHereError, match="give it as encoder="):
            JEPAScoreDetector.load(tmp_path / "detector")
        again = JEPAScoreDetector.load(tmp_path / "detector", encoder=encoder)
        np.testing.assert_array_equal(again.score_samples(images[:3]), detector.score_samples(images[:3]))


class TestRefused:
    @pytest.fixture
    def copy(self, folders, tmp_path):
        return shutil.copytree(folders / "dinov2", tmp_path / "model")

    def test_extra_missing(self, copy, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'skjepa\[transformers\]'"):
            load_encoder(f"transformers:{copy}")

    def test_unknown_architecture(self, copy):
        (copy / "config.json").write_text(json.dumps({"model_type": "bert"}))
        with pytest.raises(ValueError, match=r"model_type 'bert'; supported are 'ijepa', 'dinov2'"):
            load_encoder(f"transformers:{copy}")

    def test_code_of_the_folder_is_not_run(self, copy):
        config = json.loads((copy / "config.json").read_text())
        config |= {"model_type": "mine", "auto_map": {"AutoModel": "code.Mine"}}
        (copy / "config.json").write_text(json.dumps(config))
        (copy / "code.py").write_text("raise SystemExit('run')")
        with pytest.raises(ValueError, match="model_type 'mine'"):
            load_encoder(f"transformers:{copy}")

    def test_pickled_weights(self, copy):
        torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
        (copy / "model.safetensors").unlink()
        with pytest.raises(ValueError, match=r"cannot load .*safetensors"):
            load_encoder(f"transformers:{copy}")

    def test_weights_missing(self, copy):
        """transformers would draw them at random."""
        weights = load_file(copy / "model.safetensors")
        del weights["layernorm.weight"]
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"weights missing, layernorm\.weight"):
            load_encoder(f"transformers:{copy}")

    def test_no_folder(self, tmp_path):
        with pytest.raises(WeightsNotFoundError, match="names neither a folder nor a model"):
            load_encoder(f"transformers:{tmp_path / 'nowhere'}")

    def test_no_network(self, monkeypatch, tmp_path):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(WeightsNotFoundError, match=r"facebook/ijepa_vith14_1k on the .* cannot be reached"):
            load_encoder("transformers:facebook/ijepa_vith14_1k")

    def test_weights_beside(self, copy):
        with pytest.raises(ValueError, match="weights= is for timm names"):
            load_encoder(f"transformers:{copy}", weights=copy)

    def test_no_image_processor(self, copy):
        (copy / "preprocessor_config.json").unlink()
        with pytest.raises(ValueError, match=r"no preprocessor_config\.json or .*: give preprocess="):
            load_encoder(f"transformers:{copy}")
        encoder = load_encoder(f"transformers:{copy}", preprocess=lambda image: torch.zeros(3, 28, 28))
        assert encoder.input_shape == (3, 28, 28)

    @pytest.mark.parametrize("change", [{"do_center_crop": False}, {"do_rescale": False}, {"rescale_factor": 1.0}])
    def test_processor_that_does_other_things(self, copy, change):
        path = copy / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ValueError, match="does not only resize, crop and normalise"):
            load_encoder(f"transformers:{copy}")

    def test_bare_folder_and_name(self, copy):
        with pytest.raises(ValueError, match=f"'transformers:{copy}'"):
            load_encoder(copy)
