"""Which hidden layers "auto" reads, of every kind of encoder."""

import itertools

import pytest
import timm
import torch
from torch import nn

from skjepa import VectorJEPA, load_encoder
from skjepa.encoders.stages import INPUT, MAX_STAGES, stages
from skjepa.extraction.batches.pooling import chosen_layers

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


class Shared(nn.Module):
    """One activation after every convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, 2), nn.Conv2d(8, 16, 3, 2)
        self.act, self.head = nn.ReLU(), nn.Linear(16, 2)

    def forward(self, x):
        for layer in (self.a, self.b, self.c):
            x = self.act(layer(x))
        return self.head(x.mean((2, 3)))


def test_a_layer_that_is_called_again_stands_where_it_is_called_last():
    assert paths(Shared()) == ["a", "b", "act"]


class Named(nn.Module):
    """Modules with the names that scores have for the rows and the embedding."""

    def __init__(self):
        super().__init__()
        self.input, self.output, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.output(self.input(x).tanh()).tanh())


def test_modules_named_like_rows_and_embedding_are_told_apart():
    encoder = load_encoder(Named())
    found = chosen_layers(encoder, "auto", (6,))
    assert [(layer.name, layer.path, layer.width) for layer in found] == [
        ("input", "", 6),
        ("input (module)", "input", 5),
        ("output (module)", "output", 4),
    ]
    again = chosen_layers(load_encoder(Named()), [layer.name for layer in found], (6,))
    assert again == found  # as a saved detector asks for them
    with pytest.raises(ValueError, match=r"'output' is the embedding.*give 'output \(module\)'"):
        chosen_layers(encoder, ["output"], (6,))


@pytest.mark.parametrize("stages", [{"a": 2}, {"a": nn.ReLU()}, {"a": "nowhere"}, {1: "0"}, ["0"]])
def test_stages_that_mean_something_else(stages):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 31 * 31, 4))
    net.stages = stages
    assert paths(net) == ["1", "2"]


def test_tokens_that_come_first_are_not_samples():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.LSTM(8, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.body(x.unflatten(1, (2, 8)).transpose(0, 1))[0][-1])

    assert [layer.width for layer in chosen_layers(load_encoder(Sequence()), "auto", (16,))] == [16]


def test_series_are_pooled_over_time_whatever_their_length():
    for k in (4, 16, 32):  # 32 is the length after the first convolution, too
        net = nn.Sequential(
            nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 8, 5, 2, 2), nn.SiLU(), nn.Flatten(), nn.Linear(256, k)
        )
        found = chosen_layers(load_encoder(net), ["1"], (64,))
        assert found[0].width == 16
