"""The forward method side by side with the bare encoder: what does reading the hidden layers cost?

    python -m benchmarks.speed.forward_cost [--quick] [--device cuda] [--threads 2] [--weights lite0.pth] [--only ...]

Four encoders: the bundled one, and EfficientNet-Lite0, ViT-S/14 and ConvNeXt-T of timm at 224x224 (random weights, on
which time does not depend). In every round each of three is timed, one after the other, on the same batch: the module
itself under `torch.no_grad`; what `skjepa.extract(method="forward")` does with a batch, embeddings and the mean and
standard deviation of each channel of the hidden layers; and a whole call of `extract` from arrays, which also looks at
the encoder and resizes and normalises the images. What a call costs whatever the number of images is that of one image;
the rest is what each further image takes. A ratio is of one round; median, smallest and largest are written, by the
clock and of the processor's seconds, which other work on the machine changes less where torch has one thread. With
`--only` the file keeps what it has of the other encoders.

Writes benchmarks/results/forward_cost.json, or --out.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common import record
from benchmarks.speed.exact_speed import VIT, inputs, timed
from skjepa import Encoder, extract, load_encoder
from skjepa.data.sample_images import demo_images
from skjepa.extraction.batches.measurement import Measurement, scoring
from skjepa.extraction.batches.pooling import chosen_layers
from skjepa.extraction.batches.sizing import MAX_BATCH

SEED = 0
BAR = 1.15
"""What the project allows: the time of a measured batch over that of the bare encoder."""

NAMES = {
    "bundled": "bundled",
    "EfficientNet-Lite0": "tf_efficientnet_lite0",
    "ViT-S/14": VIT,
    "ConvNeXt-T": "convnext_tiny",
}
BATCHES = {"bundled": MAX_BATCH, "EfficientNet-Lite0": MAX_BATCH // 2, "ViT-S/14": 8, "ConvNeXt-T": 8}
SIDE = 224
CALL_BATCHES = 5  # of the small encoder in a whole call: one takes less time than the call's fixed part varies
BARE, MEASURED, CALL = "bare encoder", "measured batch", "whole call"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--threads", type=int, help="of torch on the CPU; by default all")
    options.add_argument("--only", nargs="+", choices=list(NAMES))
    options.add_argument("--weights", type=Path, help="of EfficientNet-Lite0, in the place of random ones")
    options.add_argument("--quick", action="store_true", help="two rounds of small batches: under a minute")
    options.add_argument("--out", type=Path, default=record.RESULTS / "forward_cost.json")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    results = {}
    for name in chosen.only or NAMES:
        encoder = encoder_of(name, chosen.weights if name == "EfficientNet-Lite0" else None)
        batch = 4 if chosen.quick else BATCHES[name]
        n_rounds = 2 if chosen.quick else {"bundled": 20, "EfficientNet-Lite0": 10}.get(name, 5)
        results[name] = compare(encoder, batch, n_rounds, chosen.device)
        print(
            name,
            results[name]["ways"][MEASURED]["ratio"],
            results[name]["ways"][MEASURED]["processor_ratio"],
            flush=True,
        )
    settings = {"device": chosen.device, "threads": torch.get_num_threads(), "quick": chosen.quick}
    if chosen.device.startswith("cuda"):
        settings["gpu"] = torch.cuda.get_device_name(chosen.device)
    if chosen.only and chosen.out.exists():  # a ratio is of one encoder: those of other runs stay as they are
        results = json.loads(chosen.out.read_text())["encoders"] | results
    in_order = {name: results[name] for name in NAMES if name in results}
    record.write(chosen.out, {"bar": BAR, "encoders": in_order}, seed=SEED, **settings)


def encoder_of(name: str, weights: Path | None = None) -> Encoder:
    """Loaded by its name, as users do, with random weights where there are no others."""
    if name == "bundled":
        return load_encoder("bundled")
    if weights is not None:
        return load_encoder(NAMES[name], image_size=SIDE, weights=weights)
    torch.manual_seed(SEED)
    net = timm.create_model(NAMES[name], pretrained=False, **({"img_size": SIDE} if name == "ViT-S/14" else {}))
    with tempfile.TemporaryDirectory() as folder:
        save_file(net.state_dict(), Path(folder) / "random.safetensors")
        return load_encoder(NAMES[name], image_size=SIDE, weights=Path(folder) / "random.safetensors")


def compare(encoder: Encoder, batch: int, n_rounds: int, device: str) -> dict:
    """Milliseconds per image of each way, and its ratio to the bare encoder in the same round."""
    images = demo_images(SEED)["fit"][: CALL_BATCHES * batch if encoder.name == "bundled" else batch]
    x = inputs(encoder, batch).to(device)
    layers = chosen_layers(encoder, "auto", tuple(x.shape[1:]))
    measurement = Measurement(encoder, 0, 0, layers=layers)
    encoder.module.to(device).eval()
    call = partial(extract, encoder, method="forward", device=device)
    first: list[np.ndarray] = []
    seconds: dict[str, list[np.ndarray]] = {BARE: [], MEASURED: [], CALL: []}
    for _ in range(n_rounds + 1):
        with scoring(encoder, device) as function:
            measured = partial(measurement.arrays(function, device), x, [], 1)
            for way, run in ((BARE, partial(bare, encoder, x)), (MEASURED, measured)):
                seconds[way].append(both_clocks(run, device) / batch)
        first.append(both_clocks(partial(call, images[:1]), device))
        seconds[CALL].append((both_clocks(partial(call, images), device) - first[-1]) / (len(images) - 1))
    times = {way: np.array(took[1:]) for way, took in seconds.items()}  # the first round warms up
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "n_components": bare(encoder, x[:1]).shape[1],
        "layers": [layer.name for layer in layers],
        "numbers_per_image": sum(layer.width for layer in layers),
        "batch": batch,
        "rounds": n_rounds,
        "fixed_ms_of_a_call": 1e3 * float(np.median(np.array(first[1:])[:, 0])),
        "ways": {way: summary(took, times[BARE]) for way, took in times.items()},
    }


def both_clocks(call: Callable[[], object], device: str) -> np.ndarray:
    """Seconds by the clock, and of the processor."""
    used = time.process_time()
    took = timed(call, device)
    return np.array([took, time.process_time() - used])


def summary(took: np.ndarray, bare_took: np.ndarray) -> dict:
    """Medians, rounds and ratios of times (n_rounds, 2) by the clock and of the processor."""
    clock, processor = (took / bare_took).T
    return {
        "ms_per_image": 1e3 * float(np.median(took[:, 0])),
        "processor_ms_per_image": 1e3 * float(np.median(took[:, 1])),
        "ms_of_rounds": (1e3 * took[:, 0]).tolist(),
        "processor_ms_of_rounds": (1e3 * took[:, 1]).tolist(),
        "ratio": spread(clock),
        "processor_ratio": spread(processor),
    }


@torch.no_grad()
def bare(encoder: Encoder, x: Tensor) -> Tensor:
    return encoder.module(x)


def spread(ratios: np.ndarray) -> dict[str, float]:
    return {"min": float(ratios.min()), "median": float(np.median(ratios)), "max": float(ratios.max())}


if __name__ == "__main__":
    main()
