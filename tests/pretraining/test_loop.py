"""The training loop on networks that train in a second."""

import contextlib
import dataclasses

import pytest
import torch

import skjepa.pretraining.loop
from skjepa.encoders.networks import build_network
from skjepa.pretraining.augmentations import VectorViewOptions
from skjepa.pretraining.config import OBJECTIVES, PretrainConfig
from skjepa.pretraining.loop import CollapseWarning, _is_collapsed, embed, pretrain

CONFIG = PretrainConfig(epochs=4, batch_size=16, n_directions=16, projector_width=16, precision="float32", seed=1)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Coarse random colour patches: content that survives crops and jitter."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (72, 3, 4, 4), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear").to(torch.uint8)


def tiny(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_network("convnet", widths=[8, 16], depths=[1, 1], n_components=8)


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([t.flatten().double() for t in network.state_dict().values()])


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("projector", [None, "info_nce"])
@pytest.mark.filterwarnings("ignore::skjepa.pretraining.loop.CollapseWarning")
def test_resumed_equals_uninterrupted(images, tmp_path, projector):
    config = dataclasses.replace(CONFIG, projector_objective=projector)
    whole = tiny()
    history = pretrain(whole, images, config)

    def stop_after_two(_, record):
        if record["epoch"] == 2:
            raise Interrupted

    path = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        pretrain(tiny(), images, config, checkpoint=path, on_epoch=stop_after_two)
    resumed = tiny(seed=99)  # the checkpoint alone decides, not the fresh weights
    again = pretrain(resumed, images, config, checkpoint=path, resume=True)
    assert torch.equal(weights(whole), weights(resumed))
    for a, b in zip(history, again, strict=True):
        assert {**a, "samples_per_second": 0} == {**b, "samples_per_second": 0}


@pytest.mark.filterwarnings("ignore::skjepa.pretraining.loop.CollapseWarning")
def test_a_run_may_be_lengthened_until_its_decay_begins(images, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=5, decay=0.4, warmup=0.5, view_size=8, full_size_share=0.2)
    whole = tiny()
    pretrain(whole, images, config)

    def stop_after_one(*_):
        raise Interrupted

    path = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        pretrain(tiny(), images, dataclasses.replace(config, epochs=2), checkpoint=path, on_epoch=stop_after_one)
    longer = tiny()
    pretrain(longer, images, config, checkpoint=path, resume=True)
    assert torch.equal(weights(whole), weights(longer))
    with pytest.raises(ValueError, match="other settings of epochs: "):
        pretrain(tiny(), images, dataclasses.replace(config, epochs=9), checkpoint=path, resume=True)


@pytest.mark.filterwarnings("ignore::skjepa.pretraining.loop.CollapseWarning")
@pytest.mark.filterwarnings("ignore::skjepa.pretraining.loop.CollapseWarning")
def test_a_second_stage_starts_from_the_first_ones_weights(images, tmp_path):
    config = dataclasses.replace(CONFIG, projector_objective="info_nce")
    first, path = tiny(), tmp_path / "run.pt"
    pretrain(first, images, config, checkpoint=path)
    still = dataclasses.replace(config, epochs=1, seed=2, learning_rate=0.0)
    second = tiny(seed=99)
    history = pretrain(second, images, still, initial_checkpoint=path)
    trained = [(a - b).abs().max().item() for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert (max(trained), len(history)) == (0.0, 1)
    with pytest.raises(ValueError, match="holds the weights of another network"):
        pretrain(tiny(), images, CONFIG, initial_checkpoint=path)


def test_a_checkpoint_of_other_settings_is_refused(images, tmp_path):
    path = tmp_path / "run.pt"
    pretrain(tiny(), images, dataclasses.replace(CONFIG, epochs=1), checkpoint=path)
    with pytest.raises(ValueError, match="other settings of seed: "):
        pretrain(tiny(), images, dataclasses.replace(CONFIG, epochs=1, seed=5), checkpoint=path, resume=True)


@pytest.mark.parametrize("objective", ["sigreg", "vicreg", "info_nce"])
@pytest.mark.filterwarnings("ignore::skjepa.pretraining.loop.CollapseWarning")
def test_every_objective_lowers_its_loss(images, objective):
    network = tiny()
    history = pretrain(network, images, dataclasses.replace(CONFIG, objective=objective, epochs=6))
    assert history[-1]["loss"] < history[0]["loss"]
    assert not network.training


def test_bfloat16_keeps_float32_weights(images):
    network = tiny()
    pretrain(network, images, dataclasses.replace(CONFIG, epochs=1, precision="bfloat16", warmup=1.0))
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_collapse_is_reported(images):
    config = dataclasses.replace(CONFIG, epochs=8, sigreg_weight=0.0, learning_rate=0.02, weight_decay=0.0)
    network = build_network("convnet", widths=[8, 16], depths=[1, 1], n_components=32)
    with pytest.warns(CollapseWarning, match="of 32 components") as told:
        pretrain(network, images, config)
    assert len(told) == 1


def test_a_collapse_is_reported_once_and_only_a_collapse():
    def record(epoch, ratio):
        return {"epoch": epoch, "participation_ratio": ratio, "n_components": 32.0}

    config = dataclasses.replace(CONFIG, epochs=4)
    rising = [record(1, 1.0), record(2, 2.0), record(3, 9.0), record(4, 12.0)]
    assert not any(_is_collapsed(rising[:n], config) for n in range(1, 5))
    falling = [record(1, 9.0), record(2, 8.0), record(3, 2.0), record(4, 1.0)]
    assert [_is_collapsed(falling[:n], config) for n in range(1, 5)] == [False, False, True, True]
    wavering = [record(1, 1.0), record(2, 3.3), record(3, 3.1), record(4, 4.0)]
    assert not any(_is_collapsed(wavering[:n], config) for n in range(1, 5))
    flat = [record(epoch, 1.5) for epoch in range(1, 5)]
    assert [_is_collapsed(flat[:n], config) for n in range(1, 5)] == [False, False, False, True]
    without_guard = dataclasses.replace(config, objective="invariance")
    assert _is_collapsed(flat[:2], without_guard)


def test_non_finite_loss_stops(images):
    network = tiny()
    with torch.no_grad():
        network.head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="epoch 1, step 1"):
        pretrain(network, images, CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "magic"}, "objective must be one of .*magic"),
        ({"objective": "vicreg", "n_views": 3}, "needs n_views=2; got 3"),
        ({"n_views": 1}, "at least 2"),
        ({"batch_size": 500}, r"\[2, 72\]"),
        ({"full_size_share": 0.5}, "full_size_share"),
        ({"precision": "half"}, "precision"),
    ],
)
def test_settings_are_checked(images, changes, message):
    with pytest.raises(ValueError, match=message):
        pretrain(tiny(), images, dataclasses.replace(CONFIG, **changes))


def test_embed_normalises_and_batches(images):
    config = dataclasses.replace(CONFIG, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    flat = torch.nn.Flatten()
    out = embed(flat, images[:5], config, batch_size=2).view(5, 3, 16, 16)
    expected = (images[:5].double() / 255 - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(
        3, 1, 1
    )
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_vectors_train_too(objective):
    rows = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    options = {"objective": objective, "views": VectorViewOptions(mask=0.2), "n_watched": 0}
    config = dataclasses.replace(CONFIG, epochs=12, learning_rate=1e-2, **options)
    torch.manual_seed(0)
    network = build_network("mlp", n_features=3, widths=[16], n_components=4)
    history = pretrain(network, rows, config)
    assert history[-1]["loss"] < history[0]["loss"]
    assert "participation_ratio" not in history[-1]  # nothing was watched
    assert torch.equal(embed(network, rows, config), network(rows).detach())


def test_samples_and_views_must_be_of_one_kind(images):
    with pytest.raises(ValueError, match="VectorViewOptions needs vectors"):
        pretrain(tiny(), images, dataclasses.replace(CONFIG, views=VectorViewOptions()))
    with pytest.raises(ValueError, match="ViewOptions needs images"):
        pretrain(build_network("mlp", n_features=3), torch.zeros(20, 3), CONFIG)


@pytest.mark.filterwarnings("ignore::skjepa.pretraining.loop.CollapseWarning")
def test_spectral_norm_bounds_every_layer_and_leaves_plain_weights(images, tmp_path):
    network = tiny()
    names = set(network.state_dict())
    pretrain(network, images, dataclasses.replace(CONFIG, objective="invariance", spectral_norm=True))
    assert set(network.state_dict()) == names
    for parameter in network.parameters():
        if parameter.ndim > 1:  # power iteration comes near the largest singular value, not to it
            assert 0.8 < torch.linalg.matrix_norm(parameter.detach().flatten(1), 2) < 1.2


def test_the_callers_random_numbers_are_left_alone(images):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    config = dataclasses.replace(CONFIG, epochs=1, warmup=1.0, projector_objective="info_nce")
    pretrain(build_and_keep_state(), images, config)
    assert torch.equal(torch.rand(3), expected)


def build_and_keep_state() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        return tiny()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_tensor_is_left_behind_on_the_cpu(objective, monkeypatch):
    """The meta device stands in for a GPU: an operation that mixes devices fails on it, too."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no meta device
    config = dataclasses.replace(CONFIG, objective=objective, projector_objective="info_nce")
    images = torch.empty(8, 3, 16, 16, dtype=torch.uint8)
    model = skjepa.pretraining.loop._model(tiny(), images, config).to("meta")
    loss = skjepa.pretraining.loop._losses(model, images.to("meta"), torch.Generator(), 12, config)["loss"]
    loss.backward()
    assert loss.device.type == "meta"
