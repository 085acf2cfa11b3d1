"""Count the floating-point operations of one exact score for every encoder of the catalogue.

Models are built without weights (meta device), so the whole list takes a minute and no download:

    python -m benchmarks.speed.encoder_costs
"""

import timm
import torch
from timm.models import get_pretrained_cfg
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import record
from skjepa.encoders.catalog import COSTS, FAMILIES
from skjepa.encoders.lite0 import LITE0, LITE0_SIZE, load_lite0
from skjepa.encoders.loading import BUNDLED
from skjepa.encoders.networks import read_network
from skjepa.encoders.timm_models import is_clip_type

PUBLISHED_SIZE = 224  # of the JEPA-SCORE figures, whatever the model's own


def main() -> None:
    entries = [
        measure(family, name, size, default)
        for family, names in FAMILIES.items()
        for name in names
        for size, default in sizes(name)
    ]
    record.write(COSTS, {"encoders": entries}, seed=0)  # nothing is random here


def sizes(name: str) -> list[tuple[int, bool]]:
    if name == "bundled":
        return [(read_network(BUNDLED)[1]["image_size"], True)]
    if name == LITE0:
        return [(LITE0_SIZE, True)]
    config = get_pretrained_cfg(name)
    default = config.input_size[1]
    divides = not config.fixed_input_size or default != 448  # patch 16 at 448 was made for 448
    return [(default, True)] + ([(PUBLISHED_SIZE, False)] if default > 256 and divides else [])


def build(name: str, image_size: int) -> torch.nn.Module:
    if name == "bundled":
        return read_network(BUNDLED)[0].to("meta")
    if name == LITE0:
        return load_lite0().to("meta")
    config = get_pretrained_cfg(name)
    options = {} if is_clip_type(config.to_dict()) else {"num_classes": 0}
    if config.fixed_input_size:
        options["img_size"] = image_size
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, **options)


def measure(family: str, name: str, image_size: int, default: bool) -> dict:
    model = build(name, image_size).eval().requires_grad_(False)
    x = torch.empty(1, 3, image_size, image_size, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        z = model(x)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(z[:, 0].sum(), x)
    print(f"{name} at {image_size}: K = {z.shape[1]}")
    return {
        "family": family,
        "name": name,
        "n_components": z.shape[1],
        "image_size": image_size,
        "is_default_size": default,
        "forward_gflop": round(forward.get_total_flops() / 1e9, 4),
        "backward_gflop": round(backward.get_total_flops() / 1e9, 4),
    }


if __name__ == "__main__":
    main()
