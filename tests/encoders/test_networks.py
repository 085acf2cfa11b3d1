"""Networks and their file format."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import skjepa
from skjepa.encoders.networks import ConvNet, build_network, read_network, save_network

TINY = {"widths": [8, 16], "depths": [1, 1], "n_components": 5}
INPUT = {"image_size": 16, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

ROOT = Path(__file__).parents[2]


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network("convnet", **TINY).eval()


def test_shapes_and_features(network):
    x = torch.randn(3, 3, 16, 16)
    features = network.features(x)
    assert features.shape == (3, 16)
    torch.testing.assert_close(network(x), network.head(features))
    assert network(x).shape == (3, 5)


def test_pooled_stages_are_concatenated():
    torch.manual_seed(0)
    network = build_network("convnet", **TINY, n_pooled=2).eval()
    x = torch.randn(3, 3, 16, 16)
    features = network.features(x)
    assert features.shape == (3, 24)
    last = build_network("convnet", **TINY).eval()
    last.features.load_state_dict(network.features.state_dict())
    torch.testing.assert_close(features[:, 8:], last.features(x))
    with pytest.raises(ValueError, match="n_pooled must be between 1 and 2"):
        build_network("convnet", **TINY, n_pooled=3)


def test_vit_takes_other_sizes_and_comes_back(tmp_path):
    torch.manual_seed(0)
    network = build_network("vit", image_size=16, patch_size=4, width=16, depth=1, n_heads=2, n_components=5).eval()
    assert network.features(torch.randn(2, 3, 12, 12)).shape == (2, 16)
    save_network(network, tmp_path / "vit.safetensors", metadata=INPUT)
    again, _ = read_network(tmp_path / "vit.safetensors")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), network(x))
    assert network(x).shape == (2, 5)


def test_mlp_volume_differs_from_sample_to_sample():
    torch.manual_seed(0)
    network = build_network("mlp", n_features=3, widths=[16], n_components=4).double()
    assert network.features(torch.zeros(2, 3, dtype=torch.float64)).shape == (2, 16)
    rows = torch.randn(20, 3, dtype=torch.float64)
    jacobians = torch.func.vmap(torch.func.jacrev(network))(rows)
    assert len(torch.linalg.svdvals(jacobians).log().sum(1).unique()) == 20


@pytest.mark.parametrize("size", [9, 16, 31])
def test_any_image_size(network, size):
    assert network(torch.randn(2, 3, size, size)).shape == (2, 5)


def test_float64_and_channels_last_agree(network):
    x = torch.randn(2, 3, 16, 16)
    plain = network(x)
    last = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, atol=1e-5, rtol=1e-4)
    double = network.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), plain, atol=1e-5, rtol=1e-4)


def test_jacobian_has_full_rank(network):
    """Nothing after the head: no singular value of the Jacobian is zero."""
    x = torch.randn(3, 16, 16, dtype=torch.float64)
    network.double()
    jacobian = torch.autograd.functional.jacobian(lambda v: network(v[None])[0], x).flatten(1)
    values = torch.linalg.svdvals(jacobian)
    assert values[-1] > 1e-6 * values[0]


def test_unknown_network_and_bad_widths():
    with pytest.raises(ValueError, match=r"unknown network 'resnet'.*convnet"):
        build_network("resnet")
    with pytest.raises(ValueError, match="the same positive length"):
        build_network("convnet", widths=[8], depths=[1, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(network, tmp_path, dtype):
    network.to(dtype)
    path = tmp_path / "net.safetensors"
    save_network(network, path, metadata={**INPUT, "training": {"epochs": 3}})
    again, metadata = read_network(path)
    assert metadata == {"format": 1, "network": "convnet", "kwargs": TINY, **INPUT, "training": {"epochs": 3}}
    assert not again.training
    x = torch.randn(2, 3, 16, 16, dtype=dtype)
    assert torch.equal(again(x), network(x))
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_saving_needs_a_recipe_and_leaves_nothing_half_written(network, tmp_path):
    with pytest.raises(ValueError, match="no recipe"):
        save_network(ConvNet(), tmp_path / "net.safetensors", metadata=INPUT)
    with pytest.raises(TypeError):
        save_network(network, tmp_path / "net.safetensors", metadata={"mean": torch.ones(3)})
    assert not list(tmp_path.iterdir())


def _write(path, header=None, tensors=None):
    save_file(tensors or {"a": torch.zeros(1)}, path, metadata=header)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "no 'skjepa' metadata"),
        ({"skjepa": "{not json"}, "not JSON"),
        ({"skjepa": json.dumps({"format": 2, "network": "convnet", "kwargs": TINY})}, "format 2"),
        ({"skjepa": json.dumps({"format": 1, "network": "mystery", "kwargs": {}})}, "unknown network 'mystery'"),
        ({"skjepa": json.dumps({"format": 1, "network": "convnet", "kwargs": {"depth": 3}})}, "depth"),
        ({"skjepa": json.dumps({"format": 1, "network": "convnet", "kwargs": TINY})}, "head.weight"),
        ({"skjepa": "[1]"}, "metadata is a list"),
        ({"skjepa": json.dumps({"format": 1, "network": "convnet", "kwargs": [1]})}, "does not fit"),
        ({"skjepa": json.dumps({"format": 1, "network": "mlp", "kwargs": {"n_features": 10**12}})}, "head.weight"),
        ({"skjepa": json.dumps({"format": 1, "network": "mlp", "kwargs": {"widths": [1] * 10**5}})}, "100000 layers"),
    ],
)
def test_foreign_files_are_refused_by_name(tmp_path, header, message):
    path = tmp_path / "foreign.safetensors"
    _write(path, header)
    with pytest.raises(ValueError, match=message) as caught:
        read_network(path)
    assert str(path) in str(caught.value)


def test_truncated_and_missing_files(network, tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(network, path, metadata=INPUT)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"net\.safetensors is not a readable safetensors file"):
        read_network(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        read_network(tmp_path / "missing.safetensors")


def test_bundled_weights_are_those_measured():
    folder = Path(skjepa.__file__).parent / "encoders" / "bundled"
    path = folder / "encoder.safetensors"
    network, metadata = read_network(path)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    assert metadata["image_size"] == 32
    assert len(metadata["mean"]) == len(metadata["std"]) == 3
    assert path.stat().st_size < 8e6
    report = json.loads((ROOT / "benchmarks" / "results" / "bundled_encoder.json").read_text())
    assert report["stamp"]["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    card = (folder / "MODEL_CARD.md").read_text()
    for part in ("features", "head"):
        for figure in ("linear_probe", "knn_20"):
            assert f"{report[part][figure]:.3f}" in card
