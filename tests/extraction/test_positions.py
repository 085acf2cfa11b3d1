import numpy as np
import pytest
import torch
from torch import nn

from skjepa import extract, load_encoder
from skjepa.data.sources import as_source
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.positions import chosen_grid, token_grid
from skjepa.extraction.position_pass import position_pass


class Tokens(nn.Module):
    """A transformer's shape: a class token before 4 x 4 patches."""

    def __init__(self, n_prefix=1):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.first = nn.Parameter(torch.randn(1, n_prefix, 8))
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(4)])

    def forward(self, x):
        tokens = torch.cat([self.first.expand(len(x), -1, -1), self.patches(x).flatten(2).transpose(1, 2)], dim=1)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        return tokens.mean(1)


def batches_of(encoder, X, layers):
    seen = []
    position_pass(encoder, as_source(X), layers, seen.append, RunOptions())
    return seen


def images(n=3, side=32):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["bundled", "tokens"])
def test_the_statistics_of_positions_are_those_that_extract_pools(kind):
    torch.manual_seed(0)
    encoder = load_encoder("bundled") if kind == "bundled" else load_encoder(Tokens(), image_size=32)
    pooled = extract(encoder, images(), method="forward")
    (batch,) = batches_of(encoder, images(), "auto")

    assert list(batch.layers) == list(pooled.layers)
    for name, values in pooled.layers.items():
        np.testing.assert_allclose(batch.statistics[name], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.embeddings, pooled.embeddings, rtol=1e-5, atol=1e-6)


def test_a_class_token_has_no_place():
    torch.manual_seed(0)
    (batch,) = batches_of(load_encoder(Tokens(), image_size=32), images(), "auto")

    for layer in batch.layers.values():
        assert layer.grid == (4, 4)
        assert layer.n_outside == 1
        assert layer.maps().shape == (3, 8, 4, 4)


@pytest.mark.parametrize(
    ("n", "size", "grid"),
    [
        (197, (224, 224), (14, 14)),
        (196, (224, 224), (14, 14)),
        (261, (224, 224), (16, 16)),
        (129, (128, 256), (8, 16)),
        (50, (224, 224), (7, 7)),
        (30, (224, 224), (5, 5)),
        (13, (224, 224), (3, 3)),
    ],
)
def test_tokens_of_a_picture_form_a_grid(n, size, grid):
    assert token_grid(n, nn.Identity(), size) == grid


def test_a_module_that_says_how_many_tokens_come_first_is_believed():
    module = nn.Identity()
    module.num_prefix_tokens = 5
    assert token_grid(5 + 144, module, (192, 192)) == (12, 12)


def test_the_grid_is_the_finest_of_few_cells():
    grids = {"a": (112, 112), "b": (56, 56), "c": (28, 28), "d": (14, 14), "e": (7, 7)}
    assert chosen_grid(grids) == ((14, 14), ["b", "c", "d", "e"])
    assert chosen_grid({"a": (37, 37)}) == ((19, 19), ["a"])
    assert chosen_grid({"a": None, "b": (1, 1)}) == (None, [])


def test_positions_are_a_layer_of_an_extraction_and_are_asked_for_again_by_its_name():
    found = extract("bundled", images(), method="forward", layers=["auto", "positions"])
    assert list(found.layers)[-1] == "positions 16x16"
    again = extract("bundled", images(), method="forward", layers=list(found.layers))
    np.testing.assert_array_equal(again.layers["positions 16x16"], found.layers["positions 16x16"])

    alone = extract("bundled", images(), method="forward", layers="auto")
    assert list(alone.layers) == list(found.layers)[:-1]


def test_a_network_of_vectors_has_no_positions():
    encoder = load_encoder(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="no feature maps or tokens on a grid"):
        extract(encoder, np.eye(4), method="forward", layers=["auto", "positions"])
