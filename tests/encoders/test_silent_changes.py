"""Whether a change of weights is seen by a look that does not read them all."""

import numpy as np
import pytest
import torch
from torch import nn

import skjepa.encoders.encoder
import skjepa.encoders.silent_changes
from skjepa import JEPAScoreDetector, extract, load_encoder
from skjepa.encoders import FingerprintError
from skjepa.encoders.silent_changes import WeightsWatch, bytes_of, can_be_watched

IMAGES = np.random.default_rng(0).integers(0, 256, size=(30, 8, 8, 3), dtype=np.uint8)


class Wide(nn.Module):
    """Weights of 1 MB that matter, and a buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(192, 1000), nn.Linear(1000, 8)
        self.register_buffer("shift", torch.zeros(8))
        self.power = 1.0

    def forward(self, x):
        return torch.tanh(self.last(torch.tanh(self.first(x.flatten(1))))) * self.power + self.shift


@pytest.fixture(autouse=True)
def large_from_64_kib(monkeypatch):
    for module in (skjepa.encoders.encoder, skjepa.encoders.silent_changes):
        monkeypatch.setattr(module, "READ_AT_ONCE", 1 << 16)


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Wide()


@pytest.fixture
def detector(module):
    detector = JEPAScoreDetector(load_encoder(module, image_size=8), method="forward").fit(IMAGES)
    detector.predict(IMAGES[:1])  # from here on at a glance
    return detector


@pytest.fixture
def fully_read(monkeypatch):
    function, calls = skjepa.encoders.encoder.content_of, []
    monkeypatch.setattr(skjepa.encoders.encoder, "content_of", lambda *args: calls.append(args) or function(*args))
    return calls


CHANGES = {
    "in place": lambda module: module.last.weight.mul_(1.5),
    "one entry": lambda module: module.first.weight[3, 5].add_(1.0),
    "a buffer": lambda module: module.shift.add_(1),
    "loaded": lambda module: module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()}),
    "another tensor": lambda module: setattr(module.first, "weight", nn.Parameter(module.first.weight + 1)),
    "another .data": lambda module: setattr(module.first.weight, "data", module.first.weight.data + 1),
    "through .data": lambda module: module.first.weight.data.mul_(-1),
    "through NumPy": lambda module: module.first.weight.detach().numpy().__imul__(2),
    "another layer": lambda module: setattr(module, "last", nn.Linear(1000, 8)),
    "an attribute": lambda module: setattr(module, "power", 2.0),
    "a hook": lambda module: module.last.register_forward_hook(lambda part, inputs, output: output + 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen_at_once(detector, module, change):
    with torch.no_grad():
        change(module)
    with pytest.raises(FingerprintError, match=r"has fingerprint .*, and the fit used"):
        detector.predict(IMAGES[:1])


def test_one_entry_that_torch_does_not_count_is_found_when_its_turn_comes(detector, module):
    n_looks = bytes_of(module) // (1 << 16) + 2
    module.first.weight.data[501, 77] += 1  # none of those that every look reads
    with pytest.raises(FingerprintError):  # noqa: PT012 (one of these calls)
        for _ in range(n_looks):
            detector.predict(IMAGES[:1])


def test_many_samples_and_extract_read_all_weights(detector, module):
    module.first.weight.data[501, 77] += 1
    with pytest.raises(FingerprintError):
        detector.predict(IMAGES)
    extraction = extract(detector.encoder, IMAGES[:1], method="forward")
    assert extraction.meta["fingerprint"] != detector.models_[0].settings["fingerprint"]


def test_unchanged_weights_are_not_read_again(detector, module, fully_read):
    for image in IMAGES[:20]:
        detector.predict(image[None])
    assert not fully_read
    module.eval()
    module.requires_grad_(False)  # neither decides an embedding
    detector.predict(IMAGES[:1])
    assert not fully_read


def test_the_fingerprint_is_of_all_weights_as_they_are(detector, module):
    before = detector.encoder.fingerprint
    module.first.weight.data[501, 77] += 1
    assert detector.encoder.fingerprint != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.bool])
def test_tensors_of_any_kind(dtype):
    module = nn.Conv2d(3, 200, 3).to(memory_format=torch.channels_last)
    for name, size in (("other", (3, 4)), ("scalar", ()), ("empty", (0, 2))):
        module.register_buffer(name, torch.ones(size).to(dtype))
    assert can_be_watched(module)
    watch = WeightsWatch(module, "")
    assert watch.sees_no_change(module, "")
    assert not watch.sees_no_change(module, "other words")
    module.other.data[2, 1] = 0
    assert not watch.sees_no_change(module, "")


def test_what_cannot_be_watched_is_read_whole(fully_read):
    module = Wide()
    module.register_buffer("gaps", torch.zeros(20, 20)[:, ::2])
    with torch.inference_mode():
        module.register_buffer("uncounted", torch.zeros(3))
    assert not can_be_watched(module)
    detector = JEPAScoreDetector(load_encoder(module, image_size=8), method="forward").fit(IMAGES)
    before = len(fully_read)
    detector.predict(IMAGES[:1])
    assert len(fully_read) == before + 1
