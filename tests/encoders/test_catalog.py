"""The list of encoders, against timm and against the models themselves."""

import timm
import torch

from skjepa.encoders.catalog import FAMILIES, EncoderCost, encoder_costs
from skjepa.encoders.timm_models import is_clip_type

SMALL = {  # the rest would take minutes
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch32_clip_quickgelu_224.metaclip_2pt5b",
    "vit_small_patch16_dinov3.lvd1689m",
    "convnext_tiny.dinov3_lvd1689m",
}


def test_every_name_has_pretrained_weights_in_timm():
    names = {name for family in FAMILIES.values() for name in family} - set(FAMILIES["skjepa"])
    assert names <= set(timm.list_pretrained())


def test_every_name_is_counted_at_its_own_size():
    expected = [(family, name) for family, names in FAMILIES.items() for name in names]
    assert [(cost.family, cost.name) for cost in encoder_costs() if cost.is_default_size] == expected
    for cost in encoder_costs():
        if cost.is_default_size and cost.family != "skjepa":
            assert cost.image_size == timm.get_pretrained_cfg(cost.name).input_size[1]


def test_published_size_is_listed():
    """JEPA-SCORE's figures with DINOv2 are at 224, not at timm's 518."""
    assert [c.image_size for c in encoder_costs() if c.name == "vit_small_patch14_dinov2.lvd142m"] == [518, 224]


def test_components_are_those_of_the_models():
    costs = [cost for cost in encoder_costs() if cost.name in SMALL and cost.image_size == 224]
    assert len(costs) >= 3
    for cost in costs:
        config = timm.get_pretrained_cfg(cost.name)
        head = {} if is_clip_type(config.to_dict()) else {"num_classes": 0}
        size = {"img_size": 224} if config.fixed_input_size else {}
        with torch.device("meta"):
            model = timm.create_model(cost.name, pretrained=False, **head, **size).eval()
            assert model(torch.empty(1, 3, 224, 224)).shape == (1, cost.n_components)


def test_cost_is_one_forward_and_k_backward_passes():
    cost = EncoderCost("family", "name", 10, 32, True, forward_gflop=500.0, backward_gflop=50.0)
    assert cost.tflop_per_image == 1.0


def test_figures_are_plausible():
    """ViT-S/14 at 224: 12.25 GFLOP forward, 14.1 an input-gradient pass, as measured by hand."""
    (cost,) = [c for c in encoder_costs() if c.name == "vit_small_patch14_dinov2.lvd142m" and c.image_size == 224]
    assert 11 < cost.forward_gflop < 13
    assert 11 < cost.backward_gflop < 15
    assert 4.5 < cost.tflop_per_image < 6
