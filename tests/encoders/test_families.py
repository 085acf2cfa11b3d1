"""Jacobians of one model of each family of timm, with random weights, against plain autograd in float64.

Every rule of `skjepa.jacobian.repeated_backward` meets layers here that it was not written for.
"""

import pytest
import timm
import torch

from skjepa import load_encoder
from skjepa.encoders.derivative import is_derivative_right
from skjepa.jacobian import jacobian

FAMILIES = {
    "bat_resnext26ts": 256,
    "beit_base_patch16_224": 224,
    "botnet26t_256": 256,
    "cait_xxs24_224": 224,
    "coat_tiny": 224,
    "coatnet_pico_rw_224": 224,
    "convit_tiny": 224,
    "convmixer_768_32": 64,
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "crossvit_tiny_240": 240,
    "cs3darknet_s": 64,
    "deit_tiny_patch16_224": 224,
    "densenet121": 64,
    "dla34": 64,
    "dpn48b": 64,
    "edgenext_xx_small": 64,
    "efficientformer_l1": 224,
    "efficientnet_lite0": 64,
    "efficientvit_b0": 64,
    "eva02_tiny_patch14_224": 224,
    "fastvit_t8": 64,
    "focalnet_tiny_srf": 224,
    "gcvit_xxtiny": 224,
    "gernet_s": 64,
    "ghostnet_100": 64,
    "halonet26t": 256,
    "hardcorenas_a": 64,
    "hrnet_w18_small": 64,
    "inception_next_atto": 64,
    "lambda_resnet26t": 256,
    "lcnet_035": 64,
    "levit_128s": 224,
    "maxvit_pico_rw_256": 256,
    "mixer_s32_224": 224,
    "mobilenetv2_035": 64,
    "mobilenetv3_small_050": 64,
    "mobileone_s0": 64,
    "mobilevit_xxs": 64,
    "mvitv2_tiny": 224,
    "nest_tiny": 224,
    "nf_resnet26": 64,
    "nfnet_l0": 64,
    "pit_ti_224": 224,
    "poolformer_s12": 64,
    "pvt_v2_b0": 64,
    "regnetx_002": 64,
    "regnety_002": 64,
    "repghostnet_050": 64,
    "repvgg_a0": 64,
    "repvit_m0_9": 64,
    "res2net50_14w_8s": 64,
    "resmlp_12_224": 224,
    "resnest14d": 64,
    "resnet18": 64,
    "resnetv2_50": 64,
    "rexnet_100": 64,
    "selecsls42": 64,
    "semnasnet_050": 64,
    "skresnet18": 64,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_cr_tiny_224": 224,
    "tiny_vit_5m_224": 224,
    "tinynet_e": 64,
    "twins_pcpvt_small": 224,
    "vgg11": 64,
    "visformer_tiny": 224,
    "vit_tiny_patch16_224": 224,
    "volo_d1_224": 224,
    "xcit_nano_12_p16_224": 224,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # timm's own
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_the_jacobian(name):
    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    torch.manual_seed(0)
    size = FAMILIES[name]
    encoder = load_encoder(timm.create_model(name, num_classes=0).eval(), image_size=size, precision="float64")
    before = encoder.fingerprint
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    with encoder.scoring() as function:
        # Two samples: torch 2.14's own backward pass of a batch normalisation is wrong for one, in some layouts.
        leaf = x.repeat(2, 1, 1, 1).requires_grad_(True)
        output = function(leaf)
        directions = torch.randn(output.shape[1], 2, dtype=torch.float64)
        expected = [
            torch.autograd.grad(output, leaf, u.repeat(2, 1), retain_graph=True)[0][0].flatten() for u in directions.T
        ]
        found = jacobian(function, x, directions=directions)[1][0]
        assert is_derivative_right(function, x[0], 1.0, encoder.scoring)
    expected = torch.stack(expected)
    assert float((found - expected).norm() / expected.norm()) < 1e-9
    assert encoder.fingerprint == before
