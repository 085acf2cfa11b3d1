import pytest
import torch
from oracles import conv_net
from torch import nn

from skjepa.encoders.probe import EncoderError, probe


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def probed(module, shape=(6,)):
    return probe(module, shape, dtype=torch.float32, device="cpu")


def test_what_it_learns():
    result = probed(conv_net(16).eval(), (3, 32, 32))
    assert (result.n_components, result.n_inputs) == (16, 3 * 32 * 32)
    # At least the two activations of 8 x 16 x 16 and 16 x 8 x 8 floats are kept for the backward pass.
    assert result.graph_bytes > 4 * (8 * 16 * 16 + 16 * 8 * 8)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x + torch.randn_like(x), "stochastic"),
        (lambda x: nn.functional.dropout(x, 0.5, training=True), "stochastic"),
        (lambda x: x - x.mean(dim=0), "mixes the samples"),
        (lambda x: nn.functional.batch_norm(x, None, None, training=True), "mixes the samples"),
        (lambda x: x.cumsum(0), "mixes the samples"),
        (lambda x: x / len(x), "changes with the batch size"),
        (lambda x: x.squeeze(), r"returned shape \(6,\) for a batch of 1"),
        (lambda x: x * (1 + 1e-3 * torch.rand(1)), "stochastic"),
        (lambda x: x[:, :, None], r"returned shape \(2, 6, 1\)"),
        (lambda x: x.sum(dim=1), r"returned shape \(2,\)"),
        (lambda x: x[:1], r"returned shape \(1, 6\)"),
        (lambda x: (x, x), "returned a tuple; it must return a tensor"),
        (lambda x: x.detach(), "does not depend differentiably"),
        (lambda x: torch.zeros_like(x, requires_grad=True), "does not depend differentiably"),
        (lambda x: x / 0, "not finite"),
        (lambda x: x.argmax(1, keepdim=True), "floating point"),
        (lambda x: x @ torch.zeros(7, 2), r"fails on an input of shape \(2, 6\)"),
    ],
)
def test_refusals_name_the_reason(function, message):
    with pytest.raises(EncoderError, match=message):
        probed(Lambda(function))


def test_batch_norm_without_running_statistics_is_refused():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False)).eval()
    with pytest.raises(EncoderError, match="mixes the samples"):
        probed(net)


def test_inside_no_grad():
    with torch.no_grad():
        assert probed(conv_net(16).eval(), (3, 32, 32)).n_components == 16


def test_running_out_of_memory_is_not_the_encoders_fault():
    def full(x):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(RuntimeError, match="allocate memory") as caught:
        probed(Lambda(full))
    assert not isinstance(caught.value, EncoderError)


def test_the_callers_randomness_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(2).tolist()
    torch.manual_seed(0)
    first = torch.rand(1).item()
    probed(Lambda(lambda x: x * 2))
    assert [first, torch.rand(1).item()] == expected


def test_memory_of_the_graph_is_the_same_at_every_look():
    """Batches follow from it, and sums from batches: what small graphs inside the forward pass saved is not counted."""
    module = conv_net().eval()  # its SiLU layers differentiate inside themselves
    found = {probe(module, (3, 32, 32), dtype=torch.float32, device="cpu").graph_bytes for _ in range(20)}
    assert len(found) == 1
