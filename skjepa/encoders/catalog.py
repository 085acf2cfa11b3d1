"""List encoders known to work, with the cost of a score, measured by `benchmarks/speed/encoder_costs.py`."""

import json
from dataclasses import dataclass
from pathlib import Path

COSTS = Path(__file__).parent / "bundled" / "encoder_costs.json"

FAMILIES = {
    "skjepa": ("bundled", "lite0"),
    "I-JEPA": (
        "vit_huge_patch14_gap_224.in1k_ijepa",
        "vit_huge_patch14_gap_224.in22k_ijepa",
        "vit_huge_patch16_gap_448.in1k_ijepa",
        "vit_giant_patch16_gap_224.in22k_ijepa",
    ),
    "DINOv2": (
        "vit_small_patch14_dinov2.lvd142m",
        "vit_base_patch14_dinov2.lvd142m",
        "vit_large_patch14_dinov2.lvd142m",
        "vit_giant_patch14_dinov2.lvd142m",
        "vit_small_patch14_reg4_dinov2.lvd142m",
        "vit_base_patch14_reg4_dinov2.lvd142m",
    ),
    # The quickgelu variants, since these weights were trained with that activation.
    "MetaCLIP": (
        "vit_base_patch32_clip_quickgelu_224.metaclip_2pt5b",
        "vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b",
        "vit_large_patch14_clip_quickgelu_224.metaclip_2pt5b",
        "vit_huge_patch14_clip_quickgelu_224.metaclip_2pt5b",
    ),
    "DINOv3": (
        "vit_small_patch16_dinov3.lvd1689m",
        "vit_small_plus_patch16_dinov3.lvd1689m",
        "vit_base_patch16_dinov3.lvd1689m",
        "vit_large_patch16_dinov3.lvd1689m",
        "convnext_tiny.dinov3_lvd1689m",
        "convnext_small.dinov3_lvd1689m",
        "convnext_base.dinov3_lvd1689m",
    ),
}
"""Names for `load_encoder` by family: those of the JEPA-SCORE paper, and DINOv3."""


@dataclass(frozen=True)
class EncoderCost:
    """Hold the number of operations of one exact score.

    Attributes
    ----------
    family, name : str
    n_components : int
        Number K of encoder outputs; an exact score takes K backward passes per image.
    image_size : int
        Side of the input image in pixels.
    is_default_size : bool
        Whether that is the model's own size.
    forward_gflop, backward_gflop : float
        10^9 operations per image of one pass, counted operator by operator on a model without weights.
    """

    family: str
    name: str
    n_components: int
    image_size: int
    is_default_size: bool
    forward_gflop: float
    backward_gflop: float

    def tflop(self, n_passes: int) -> float:
        """Return the 10^12 floating-point operations of one forward pass and `n_passes` backward passes, at most K."""
        return (self.forward_gflop + min(n_passes, self.n_components) * self.backward_gflop) / 1000

    @property
    def tflop_per_image(self) -> float:
        """10^12 floating-point operations of an exact score: one forward and K backward passes."""
        return self.tflop(self.n_components)


def encoder_costs() -> list[EncoderCost]:
    """Return the encoders known to work with the cost of a score, in the order of the catalogue."""
    return [EncoderCost(**entry) for entry in json.loads(COSTS.read_text())["encoders"]]
