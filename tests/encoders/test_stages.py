"""Which hidden layers "auto" reads, of every kind of encoder."""

import itertools

import pytest
import timm
import torch
from torch import nn

from skjepa import VectorJEPA, load_encoder
from skjepa.encoders.stages import INPUT, MAX_STAGES, stages

SIDE = 64
IMAGE = (3, SIDE, SIDE)


def paths(module, shape=IMAGE, **options):
    size = {} if len(shape) == 1 else {"image_size": shape[1]}
    return list(stages(load_encoder(module.eval(), **size, **options), shape).values())


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet18", {}, ["act1", "layer1", "layer2", "layer3", "layer4"]),
        ("tf_efficientnet_lite0", {}, ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"]),
        ("convnext_atto", {}, ["stages.0", "stages.1", "stages.2", "stages.3"]),
        ("swin_tiny_patch4_window7_224", {"img_size": SIDE}, ["layers.0", "layers.1", "layers.2", "layers.3"]),
    ],
)
def test_stages_of_timm(name, options, expected):
    assert paths(timm.create_model(name, num_classes=0, **options)) == expected


def test_blocks_of_a_transformer_at_even_distances():
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=SIDE)
    found = [int(path.removeprefix("blocks.")) for path in paths(vit)]
    assert len(found) == MAX_STAGES
    assert found[-1] == 11
    assert max(b - a for a, b in itertools.pairwise(found)) <= 2


def test_a_list_of_blocks_in_a_module_of_ones_own():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 16, 16)
            self.body = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3))
            self.norm = nn.LayerNorm(16)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            for block in self.body:
                x = block(x)
            return self.norm(x).mean(1)

    assert paths(Tokens()) == ["body.0", "body.1", "body.2"]


def test_the_last_of_each_shape_in_a_plain_network():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    assert paths(net) == ["1", "2", "5"]


def test_of_an_encoder_that_ends_at_a_layer():
    net = timm.create_model("resnet18", num_classes=0)
    assert paths(net, output="layer3") == [
        f"module.{name}" for name in ("act1", "layer1", "layer2", "layer3", "layer4")
    ]


def test_the_bundled_encoder_names_its_stages():
    found = stages(load_encoder("bundled"), (3, 32, 32))
    assert list(found) == ["stage 1", "stage 2", "stage 3", "stage 4"]


def test_rows_and_hidden_layers_of_vectors():
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3))
    assert stages(load_encoder(net), (6,)) == {INPUT: "", "1": "1", "3": "3"}


def test_of_a_trained_table():
    rows = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)).numpy()
    encoder = VectorJEPA(n_steps=5, widths=(8, 8)).fit(rows).encoder_
    assert list(stages(encoder, (4,))) == ["rows", "hidden 1", "hidden 2"]
    alone = VectorJEPA(n_steps=0).fit(rows).encoder_
    assert stages(alone, (4,)) == {}  # its embedding is the rows


def test_a_function_alone_has_none():
    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :5]

    assert paths(Flat()) == []
