"""One picture, one call of `predict`: how many bare forward passes of its encoder it takes, and what comes on top.

    python -m benchmarks.speed.one_picture [--threads 1] [--rounds 40] [--out FILE]

Encoders with random weights: only time is at stake. In every round the bare pass (the module in eval mode, without
gradients, of a tensor that is ready) and `predict` of a warm detector with ``method="forward"`` follow one another;
medians over rounds; so does `predict` inside ``detector.steady()``. The aim is at most 1.3 bare passes and 10 ms. With
one thread it is processor time that is measured, which on a machine without other work is the time on the clock.

Writes benchmarks/results/one_picture_cpu.json, or --out.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from benchmarks.common import record
from skjepa import Encoder, JEPAScoreDetector, load_encoder

SEED = 0
SHARE, REST_MS = 1.3, 10.0


class LargeMLP(nn.Module):
    """80 million parameters, nearly all of which one picture passes."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3 * 32 * 32, 5120, 5120, 5120, 2048]
        self.layers = nn.ModuleList(nn.Linear(n_inputs, n_outputs) for n_inputs, n_outputs in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def encoders() -> dict[str, Callable[[], Encoder]]:
    def of_timm(name: str, size: int, **options: object) -> Encoder:
        net = timm.create_model(name, pretrained=False, num_classes=0, **options)
        return load_encoder(net, image_size=size)

    return {
        "bundled, 32 pixels": lambda: load_encoder("bundled"),
        "MLP of 80 M parameters, 32 pixels": lambda: load_encoder(LargeMLP(), image_size=32),
        "EfficientNet-Lite0, 224 pixels": lambda: of_timm("tf_efficientnet_lite0", 224),
        "ViT-S/16, 224 pixels": lambda: of_timm("vit_small_patch16_224", 224),
        "ViT-B/16, 224 pixels": lambda: of_timm("vit_base_patch16_224", 224),
    }


def compare(encoder: Encoder, n_rounds: int) -> dict:
    side = encoder.input_shape[1]
    images = np.random.default_rng(SEED).integers(0, 256, size=(40, side, side, 3), dtype=np.uint8)
    detector = JEPAScoreDetector(encoder, method="forward", calibration=0.25, target_fpr=0.1).fit(images)
    module, x = encoder.module.eval(), torch.rand(1, *encoder.input_shape)

    def bare() -> None:
        with torch.no_grad():
            module(x)

    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    calls = {"bare": bare, "predict": lambda: detector.predict(images[:1]), "judge": lambda: detector.judge(images[:1])}
    calls["steady"] = calls["predict"]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(n_rounds + 2):
        for name, call in calls.items():
            with detector.steady() if name == "steady" else nullcontext():
                start = clock()
                call()
                taken = clock() - start
            if i >= 2:  # the first rounds warm up
                seconds[name].append(taken)
    found = {f"{name}_ms": round(1e3 * float(np.median(values)), 3) for name, values in seconds.items()}
    found |= {
        "parameters": sum(weight.numel() for weight in module.parameters()),
        "ratio": round(found["predict_ms"] / found["bare_ms"], 3),
        "on_top_ms": round(found["predict_ms"] - found["bare_ms"], 3),
        "aim_is_met": found["predict_ms"] <= SHARE * found["bare_ms"] + REST_MS,
        "aim_is_met_steady": found["steady_ms"] <= SHARE * found["bare_ms"] + REST_MS,
    }
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, help="of torch; by default all")
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--out", type=Path, default=record.RESULTS / "one_picture_cpu.json")
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    torch.manual_seed(SEED)
    results = {}
    for name, make in encoders().items():
        results[name] = compare(make(), chosen.rounds)
        print(name, results[name])
    threads = torch.get_num_threads()
    clock = "processor time" if threads == 1 else "wall time"
    record.write(chosen.out, {"encoders": results}, seed=SEED, threads=threads, rounds=chosen.rounds, clock=clock)


if __name__ == "__main__":
    main()
