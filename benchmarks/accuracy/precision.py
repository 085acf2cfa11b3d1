"""What float32 does to a score: full-rank and rank-deficient outputs against float64, and the floors that help.

    python -m benchmarks.accuracy.precision

Images are the demo's tiles of photographs. Writes benchmarks/results/precision.json.

The float32 Jacobian itself differs from the float64 one where outputs are rank-deficient (LayerNorm): no decomposition
can mend that, a floor or a rank can.
"""

import json
from collections.abc import Callable

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks.common import record
from skjepa import Encoder, Extraction, extract, load_encoder
from skjepa.data.sample_images import demo_images
from skjepa.jacobian.volume import PAPER_FLOOR, log_volume
from skjepa.scores.model import AUTO_FLOOR

OUT = record.RESULTS / "precision.json"
SEED, N_IMAGES, N_COMPONENTS = 0, 48, 64


def layer_norm(gain: float) -> Callable[[nn.Module, Tensor], Tensor]:
    """LayerNorm on top of an encoder, as most ViTs end; trained ones have gains of this size."""
    return lambda module, x: gain * nn.functional.layer_norm(module(x), (N_COMPONENTS,))


def relu(module: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.relu(module(x))


OUTPUTS = {
    "bundled": "auto",
    "bundled, then LayerNorm": layer_norm(1),
    "bundled, then LayerNorm of gain 16": layer_norm(16),
    "bundled, then ReLU": relu,
}


def encoders(precision: str) -> dict[str, Encoder]:
    return {name: load_encoder("bundled", output=output, precision=precision) for name, output in OUTPUTS.items()}


def compare(single: Extraction, double: Extraction) -> dict:
    largest = np.median(double.singular_values[..., 0])
    rank = int(np.median(double.numerical_rank))
    floors = {"1e-6 (paper)": 1e-6, f"{AUTO_FLOOR:g} x median largest (auto)": AUTO_FLOOR * largest}
    rows = {f"floor {name}": error(single, double, floor=floor) for name, floor in floors.items()}
    rows[f"floor 1e-6, rank {rank}"] = error(single, double, floor=1e-6, rank=rank)
    return {
        "median_largest_singular_value": float(largest),
        "numerical_rank_float32": int(np.median(single.numerical_rank)),
        "numerical_rank_float64": rank,
        "error_in_nats": rows,
    }


def error(single: Extraction, double: Extraction, **options) -> dict:
    difference = log_volume(single.singular_values, **options) - log_volume(double.singular_values, **options)
    spread = np.std(log_volume(double.singular_values, **options))
    return {
        "mean": float(difference.mean()),
        "largest": float(np.abs(difference).max()),
        "standard_deviation_of_the_score": float(spread),
    }


def narrow(images: NDArray) -> dict[str, dict]:
    """bfloat16 against float32: what the passes of the Jacobian under autocast do to values and ranks."""
    torch.manual_seed(SEED)
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=64)
    modules: dict[str, dict] = {name: {"source": "bundled", "output": output} for name, output in OUTPUTS.items()}
    modules["ViT-Ti/16 at 64x64, random weights"] = {"source": vit, "image_size": 64}
    found = {}
    for name, options in modules.items():
        single, half = (extract(load_encoder(precision=p, **options), images) for p in ("float32", "bfloat16"))
        largest = float(np.median(single.singular_values[..., 0]))
        floors = {"1e-6 (paper)": PAPER_FLOOR, f"{AUTO_FLOOR:g} x median largest (auto)": AUTO_FLOOR * largest}
        found[name] = {
            "largest_zero": float((half.singular_values[..., -1] / half.singular_values[..., 0]).max()),
            "error_in_nats": {floor: ranked_error(half, single, floor=value) for floor, value in floors.items()},
        }
    return found


def ranked_error(half: Extraction, single: Extraction, floor: float) -> dict:
    ours, exact = (log_volume(extraction.singular_values, floor=floor)[:, 0] for extraction in (half, single))
    return {
        "mean": float((ours - exact).mean()),
        "standard_deviation": float((ours - exact).std()),
        "standard_deviation_of_the_score": float(exact.std()),
        "spearman": float(spearmanr(ours, exact).statistic),
    }


def main() -> None:
    images = demo_images(SEED)["fit"][:N_IMAGES]
    results = {
        name: compare(extract(single, images), extract(double, images))
        for (name, single), double in zip(encoders("float32").items(), encoders("float64").values(), strict=True)
    }
    record.write(OUT, {"encoders": results, "bfloat16": narrow(images)}, seed=SEED, n_images=N_IMAGES)
    for name, row in results.items():
        print(name, json.dumps(row["error_in_nats"], indent=1))


if __name__ == "__main__":
    main()
