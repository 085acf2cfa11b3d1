"""Every rule against the dense Jacobian of the untouched function, and that the rules are really taken."""

import pytest
import timm
import torch
import torch.nn.functional as F
from oracles import IMAGE_MODELS, conv_net, dense_jacobian
from torch import nn

from skjepa.jacobian.repeated_backward import prepared
from skjepa.jacobian.rows import jacobian


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "silu in place": lambda x: F.silu(x * 1, inplace=True),
    "mish": F.mish,
    "hardswish": F.hardswish,
    "softplus": lambda x: F.softplus(x, beta=3),
    "elu": lambda x: F.elu(x, 0.5),
    "celu": F.celu,
    "selu": F.selu,
}
CONVOLUTIONS = {
    "patches": {"kernel_size": 4, "stride": 4},
    "overlapping": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (4, 3), "stride": (2, 1), "padding": (1, 0), "bias": False},
    "uncovered rim": {"kernel_size": 3, "stride": 3},
    "dilated": {"kernel_size": 3, "dilation": 2},
    "padded as 'same'": {"kernel_size": 3, "padding": "same"},
}


class Tokens(nn.Module):
    """A small transformer of class token and patches; `read` says which tokens the output sees."""

    def __init__(self, read):
        super().__init__()
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=12, depth=2, num_heads=2, num_classes=0
        )
        self.read = read

    def forward(self, x):
        return self.read(self.vit.forward_features(x))


READ = {"class token": lambda t: t[:, 0], "mean": lambda t: t.mean(1), "patches": lambda t: t[:, 3:9].flatten(1)}


def names_in_graph(output):
    """Names of the nodes behind an output."""
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return {type(node).__name__ for node in seen}


def assert_same(function, x, taken, dense=None):
    """The forward values untouched, the Jacobian that of the function, and the rule in the graph."""
    leaf = x.clone().requires_grad_(True)
    output = prepared(function)(leaf)
    assert {"_ScaledBackward", "_ConvolutionBackward", "_TokensBackward"} & names_in_graph(output) == set(taken)
    torch.testing.assert_close(output, function(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(jacobian(function, x)[1], dense_jacobian(dense or function, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    activation = ACTIVATIONS[name]
    taken = [] if name == "silu in place" else ["_ScaledBackward"]
    assert_same(lambda x: activation(3 * x) @ randn(7, 4, seed=1), randn(3, 7), taken)


def test_batch_norm_in_eval_mode():
    net = conv_net().double().eval().requires_grad_(False)
    assert_same(net, randn(2, 3, 32, 32), ["_ScaledBackward", "_ConvolutionBackward"])
    assert "NativeBatchNormBackward0" not in names_in_graph(prepared(net)(randn(1, 3, 32, 32).requires_grad_(True)))
    plain = nn.BatchNorm1d(4, affine=False).double()
    plain(randn(9, 4))
    assert_same(plain.eval(), randn(3, 4), ["_ScaledBackward"])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_few_channels(name, channels_last):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, **CONVOLUTIONS[name]).double().requires_grad_(False)
    if channels_last:
        layer = layer.to(memory_format=torch.channels_last)
    taken = [] if name == "padded as 'same'" else ["_ConvolutionBackward"]
    assert_same(lambda x: layer(x).flatten(1), randn(2, 3, 13, 11), taken)


def test_batch_norm_of_a_convolution_that_was_changed_in_place():
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(5, 4, 3, groups=1).double(), nn.BatchNorm2d(4).double()
    norm(randn(2, 4, 3, 3))
    for module in (convolution, norm.eval()):
        module.requires_grad_(False)
    for between, taken in ((nn.Identity(), "_ConvolutionBackward"), (nn.ReLU(inplace=True), "_ScaledBackward")):
        assert_same(lambda x, f=between: norm(f(convolution(x))).flatten(1), randn(2, 5, 6, 6), [taken])


def test_batch_norm_of_a_convolution_whose_input_was_changed_in_place():
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(5, 4, 3).double().requires_grad_(False), nn.BatchNorm2d(4).double()
    norm(randn(2, 4, 3, 3))
    norm.eval().requires_grad_(False)

    def function(x):
        x = 2 * x
        output = convolution(x)
        x.exp_()
        return norm(output).flatten(1)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # as torch has it without the rules
        jacobian(function, randn(2, 5, 6, 6))


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_batch_norm_of_a_convolution(groups, bias):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 12, 3, 2, 1, groups=groups, bias=bias), nn.BatchNorm2d(12), nn.Flatten()).double()
    net(randn(4, 6, 5, 5))
    assert_same(net.eval().requires_grad_(False), randn(2, 6, 5, 5), ["_ConvolutionBackward"])


@pytest.mark.parametrize("read", READ)
def test_tokens(read):
    torch.manual_seed(0)
    net = Tokens(READ[read]).double().eval().requires_grad_(False)
    assert_same(net, randn(2, 3, 16, 16), ["_ScaledBackward", "_ConvolutionBackward", "_TokensBackward"])


def test_tokens_that_a_later_pass_reaches():
    # The first cotangent reaches the first token alone, later ones others: what was seen first must not decide.
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double().requires_grad_(False)
    assert_same(lambda x: layer(x.view(-1, 10, 3)).flatten(1), randn(2, 30), ["_TokensBackward"])


ATTENTION = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": torch.eye(4).bool()},
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name):
    def function(x):
        tokens = x.view(-1, 1, 4, 3)
        return F.scaled_dot_product_attention(tokens, tokens.flip(2), tokens**2, **ATTENTION[name]).flatten(1)

    assert_same(function, randn(2, 12), [])
    kept = "SoftmaxBackward0" in names_in_graph(prepared(function)(randn(1, 12).requires_grad_(True)))
    assert kept == (name in ("plain", "scale"))


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_nothing_changes_where_no_gradient_is_asked(name):
    model, x = IMAGE_MODELS[name](4).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(prepared(model)(x), model(x))


def test_a_weight_that_depends_on_the_input_is_left_alone():
    A = randn(20, 60, seed=2)

    def function(x):
        return F.linear(randn(1, 10, 5).expand(len(x), -1, -1) + x[:, :1, None], (A @ x[0]).view(4, 5)).flatten(1)

    assert_same(function, randn(1, 60), [])


def test_derivatives_inside_the_function():
    # The gradient of a potential, as energy-based and score models have it: it needs second derivatives.
    torch.manual_seed(0)
    potential = nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 1)).double().requires_grad_(False)

    def force(x):
        with torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().requires_grad_(True)
            return torch.autograd.grad(potential(leaf).sum(), leaf, create_graph=True)[0]

    x = randn(3, 5)
    J = jacobian(force, x, mode="reverse")[1]
    torch.testing.assert_close(J, J.mT)  # a Hessian
    torch.testing.assert_close(J, dense_jacobian(force, x))


@pytest.mark.parametrize("copies", [1, 2, 3, 16, 40])
@pytest.mark.parametrize("n_directions", [None, 5])
def test_copies_side_by_side_change_nothing(copies, n_directions):
    net, x = conv_net().double().eval(), randn(2, 3, 32, 32)
    directions = None if n_directions is None else randn(16, n_directions, seed=3)
    alone, together = (jacobian(net, x, directions=directions, copies=n) for n in (1, copies))
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
