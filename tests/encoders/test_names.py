"""Names of encoders are judged without torch, and a wrong one is answered by those that may be meant."""

import subprocess
import sys

import pytest
import timm

from skjepa.encoders.catalog import FAMILIES
from skjepa.encoders.names import close_names, timm_names, unknown_name


def test_every_name_of_timm_is_known():
    assert set(timm.list_models()) <= timm_names()
    assert not [name for name in timm.list_pretrained() if unknown_name(name)]
    assert unknown_name("resnet18") is None
    assert unknown_name("vit_small_patch14_dinov2.lvd142m") is None
    assert unknown_name("tv_densenet121") is None  # timm still takes the former name


def test_a_tag_is_for_timm_to_judge():
    assert unknown_name("resnet18.tomorrow") is None


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("dinov2", "DINOv2"),
        ("dinov2_vits14", "DINOv2"),
        ("dino-v2", "DINOv2"),
        ("DINOv3", "DINOv3"),
        ("ijepa", "I-JEPA"),
        ("I-JEPA", "I-JEPA"),
        ("metaclip", "MetaCLIP"),
    ],
)
def test_a_family_stands_for_its_encoders(name, family):
    assert close_names(name)[:4] == list(FAMILIES[family][:4])


def test_misspelt_names():
    assert close_names("vit_smal_patch14_dino2")[0] == "vit_small_patch14_dinov2.lvd142m"
    assert "bundled" in close_names("bundle")
    assert close_names("qqqq") == []
    assert "Did you mean" in unknown_name("resnet17")


def test_neither_torch_nor_timm_is_imported():
    code = (
        "import sys; from skjepa.encoders.names import unknown_name; assert unknown_name('dinov2'); "
        "print([name for name in ('torch', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
