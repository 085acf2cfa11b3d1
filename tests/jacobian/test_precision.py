import threading

import numpy as np
import pytest
import torch
from oracles import conv_net, mlp, random_images
from scipy.stats import spearmanr

from skjepa import embed, extract, jepa_score, load_encoder
from skjepa.jacobian.precision import PRECISIONS, arithmetic

SWITCHES = [
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,
    torch.backends.mkldnn.matmul,
    torch.backends.mkldnn.conv,
]


def switched():
    return [switch.fp32_precision for switch in SWITCHES]


@pytest.fixture
def careless():
    """A script that lets torch round float32 products as far as it likes."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def test_switches_return_to_where_they_were(careless):
    before = switched()
    with arithmetic("tf32"):
        assert switched() == ["tf32"] * 4
        with arithmetic("float32"):
            assert switched() == ["ieee"] * 4
    assert switched() == before
    with pytest.raises(KeyError), arithmetic("float32"):
        raise KeyError
    assert switched() == before


def test_switches_of_threads_that_overlap():
    before, entered, leave = switched(), threading.Event(), threading.Event()

    def hold():
        with arithmetic("float32"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    with arithmetic("tf32"):
        thread.start()
        entered.wait(10)
    leave.set()
    thread.join()
    assert switched() == before


def test_float32_is_float32_whatever_torch_is_told(careless):
    encoder, images = load_encoder(conv_net(), image_size=32), random_images(4)
    rounded = extract(encoder, images)
    torch.set_float32_matmul_precision("highest")
    np.testing.assert_array_equal(extract(encoder, images).singular_values, rounded.singular_values)


def test_bfloat16_narrows_the_jacobian_and_not_the_embeddings():
    images = random_images(40)
    narrow, whole = (load_encoder(conv_net(), image_size=32, precision=name) for name in ("bfloat16", "float32"))
    assert narrow.fingerprint != whole.fingerprint
    np.testing.assert_array_equal(embed(narrow, images), embed(whole, images))
    measured, exact = extract(narrow, images), extract(whole, images)
    np.testing.assert_array_equal(measured.embeddings, exact.embeddings)
    error = np.abs(measured.singular_values / exact.singular_values - 1)
    assert 1e-4 < error.max() < 3e-2  # bfloat16 has 8 bits
    assert spearmanr(jepa_score(narrow, measured), jepa_score(whole, exact)).statistic > 0.99


def test_bfloat16_of_vectors():
    rows = np.random.default_rng(0).normal(size=(6, 12))
    narrow, whole = (extract(load_encoder(mlp(), precision=name), rows) for name in ("bfloat16", "float64"))
    np.testing.assert_allclose(narrow.singular_values, whole.singular_values, rtol=0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_zeros_read_below_the_noise_level(precision):
    # The null direction of a LayerNorm, which every arithmetic sees as something else than zero.
    torch.manual_seed(0)
    module = torch.nn.Sequential(conv_net(), torch.nn.LayerNorm(16))
    extraction = extract(load_encoder(module, image_size=32, precision=precision), random_images(8))
    assert extraction.eps == PRECISIONS[precision].eps
    assert (extraction.numerical_rank <= 15).all()
