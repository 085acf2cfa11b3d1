"""Rows and spectra as the chosen device computes them, against dense float64 on the CPU; see `--device`."""

import copy

import numpy as np
import pytest
import torch
from oracles import conv_net, dense_jacobian, timm_resnet, timm_vit
from torch import nn

from skjepa import load_encoder
from skjepa.jacobian.rows import jacobian
from skjepa.jacobian.spectrum import singular_values


def smooth() -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 6, 3), nn.GELU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(6 * 36, 9)).eval()


NETS = {"smooth": smooth, "convolutions": conv_net, "ResNet": timm_resnet, "ViT": timm_vit}


@pytest.fixture(params=list(NETS))
def net(request):
    return NETS[request.param]().eval()


@pytest.mark.parametrize("copies", [1, 3])
def test_float32_rows_are_those_of_float64_on_the_cpu(net, copies, device):
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    dense = dense_jacobian(copy.deepcopy(net).double(), x.double())
    with load_encoder(net, image_size=32).scoring(device) as function:
        _, rows = jacobian(function, x.to(device), copies=copies)
    assert rows.device.type == torch.device(device).type
    largest = float(dense.abs().max())
    np.testing.assert_allclose(rows.cpu().numpy(), dense.reshape(rows.shape).numpy(), atol=2e-5 * largest, rtol=0)


def test_singular_values_are_those_of_float64_on_the_cpu(device):
    matrices = torch.randn(3, 7, 5000, generator=torch.Generator().manual_seed(0))
    matrices[1, 3] = 0
    matrices[2, 0, 0] = torch.nan
    found = singular_values(matrices.to(device))
    assert found.device.type == "cpu"
    expected = torch.linalg.svdvals(matrices[:2].double())
    np.testing.assert_allclose(found[:2], expected, rtol=1e-6, atol=1e-5)
    assert torch.isnan(found[2]).all()
