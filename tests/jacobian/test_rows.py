import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import IMAGE_MODELS, VECTOR_MODELS, dense_jacobian, linear, mlp
from torch import nn

from skjepa.jacobian.rows import jacobian


@pytest.mark.parametrize("mode", ["auto", "reverse", "forward"])
@pytest.mark.parametrize("name", VECTOR_MODELS)
def test_every_mode_gives_the_dense_jacobian(name, mode):
    model = VECTOR_MODELS[name]().double()
    x = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    outputs, J = jacobian(model, x, mode=mode)
    torch.testing.assert_close(J, dense_jacobian(model, x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outputs, model(x))
    assert not outputs.requires_grad
    assert not J.requires_grad


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_reverse_mode_of_image_models(name):
    model = IMAGE_MODELS[name](4).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(jacobian(model, x)[1], dense_jacobian(model, x), rtol=1e-9, atol=1e-12)


def test_forward_mode_passes_through_fused_attention():
    class Attention(nn.Module):
        def forward(self, x):
            tokens = x.reshape(len(x), 2, 2)[:, None]
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)

    x = torch.randn(3, 4, dtype=torch.float64)
    forward, reverse = (jacobian(Attention(), x, mode=mode)[1] for mode in ("forward", "reverse"))
    torch.testing.assert_close(forward, reverse)


class _CountedPasses(nn.Module):
    """How often the forward function ran: once more in forward mode, where directions share a pass, than in reverse."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, x):
        self.calls += 1
        return self.model(x)


@pytest.mark.parametrize(("n_inputs", "n_components", "calls"), [(3, 50, 2), (50, 3, 1)])
def test_auto_takes_the_cheaper_mode(n_inputs, n_components, calls):
    counted = _CountedPasses(mlp(n_inputs, n_components))
    jacobian(counted, torch.zeros(2, n_inputs))
    assert counted.calls == calls


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**16))
def test_linear_maps_are_their_own_jacobian(n_samples, n_components, n_inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n_components, n_inputs, dtype=torch.float64, generator=generator)
    x = torch.randn(n_samples, n_inputs, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(jacobian(linear(A), x)[1], A.expand(n_samples, -1, -1))


def test_auto_falls_back_where_an_operation_has_no_forward_rule():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(context, gradient):
            (x,) = context.saved_tensors
            return 3 * x**2 * gradient

    x = torch.tensor([[1.0, 2.0]])
    J = jacobian(lambda x: Cube.apply(x).repeat(1, 2), x)[1]
    assert J[0].tolist() == [[3.0, 0.0], [0.0, 12.0], [3.0, 0.0], [0.0, 12.0]]


def test_unknown_mode():
    with pytest.raises(ValueError, match="mode must be one of 'auto', 'reverse', 'forward'; got 'both'"):
        jacobian(mlp(), torch.zeros(1, 12), mode="both")


@pytest.mark.parametrize("rows_of_a_pass", [1, 7, 10_000])
def test_directions_that_share_a_pass_change_nothing(rows_of_a_pass, monkeypatch):
    module, x = mlp(5, 8).double(), torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("skjepa.jacobian.rows._ROWS_OF_A_PASS", rows_of_a_pass)
    outputs, jacobians = jacobian(module, x, mode="forward")
    torch.testing.assert_close(jacobians, jacobian(module, x, mode="reverse")[1])
    torch.testing.assert_close(outputs, module(x))
