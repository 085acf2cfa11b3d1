"""Exact scores side by side with the paper's Listing 1: seconds an image, values, and the floor of the machine.

    python -m benchmarks.speed.exact_speed [--quick] [--device cuda] [--threads 2]

Three encoders: the bundled one, a ResNet of 14 layers at 32x32, and DINOv2's ViT-S/14 at 224x224 (random weights: only
time is at stake). Every way is timed in every round, one after the other, so that what disturbs the machine disturbs
all of them; the fastest round counts. The floor is the arithmetic of the K backward passes (counted) over the rate of
matrix products that this machine sustains for some seconds in the same run: torch's own, and the faster of these and
of products as convolutions of one pixel, which on some processors run at twice that rate.

Writes benchmarks/results/exact_speed_<device>.json, or --out. With --only, the other encoders stay as the file has
them: each was compared in one run, and its floor taken from that run's rates.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from scipy.stats import spearmanr
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import record
from skjepa import Encoder, load_encoder
from skjepa.data.sample_images import demo_images
from skjepa.data.sources import as_source
from skjepa.extraction.batches.loader import Loader
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.batches.sizing import MAX_BATCH
from skjepa.jacobian.directions import random_directions
from skjepa.jacobian.input_gradients import product_by_convolution
from skjepa.jacobian.precision import narrowed
from skjepa.jacobian.rows import jacobian, worthwhile_copies
from skjepa.jacobian.spectrum import singular_values
from skjepa.jacobian.volume import PAPER_FLOOR, log_volume

SEED = 0
ENCODERS = ["bundled", "ResNet-14", "ViT-S/14"]
VIT = "vit_small_patch14_dinov2.lvd142m"
SUSTAINED = 3.0  # seconds of products of one shape
PROJECTED = 8  # the projection trick takes K / 8 random directions of the output


def listing_one(model: Callable[[Tensor], Tensor], images: Tensor, eps: float = PAPER_FLOOR) -> Tensor:
    """JEPA-SCORE as Listing 1 of arXiv 2510.05949 prints it."""
    J = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), inputs=images)
    with torch.inference_mode():
        J = J.flatten(2).permute(1, 0, 2)
        svdvals = torch.linalg.svdvals(J)
        return svdvals.clip_(eps).log_().sum(1)


def listing_one_projected(directions: Tensor, model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The trick of public code: Listing 1 of a random projection of the output."""
    return listing_one(lambda x: model(x) @ directions, images)


class Ours:
    """Singular values as `skjepa.extract` measures them, of inputs that are ready."""

    def __init__(self, precision: str, n_components: int, directions: Tensor | None = None) -> None:
        self.precision, self.directions = precision, directions
        self.n_passes = n_components if directions is None else directions.shape[1]

    def __call__(self, model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        function = narrowed(model, self.precision, str(images.device))
        copies = worthwhile_copies(images, self.n_passes, MAX_BATCH // len(images))
        return singular_values(jacobian(function, images, directions=self.directions, copies=copies)[1])


class ResNet14(nn.Module):
    """Six basic blocks of 16, 32 and 64 channels, as ResNets for CIFAR-10 are built."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        blocks, inputs = [], 16
        for outputs, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
            shortcut = None
            if inputs != outputs:
                shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            blocks.append(BasicBlock(inputs, outputs, stride, shortcut))
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean((2, 3))


def encoder_of(name: str, precision: str) -> Encoder:
    torch.manual_seed(SEED)
    if name == "bundled":
        return load_encoder("bundled", precision=precision)
    if name == "ResNet-14":
        net = ResNet14().to(memory_format=torch.channels_last)
        return load_encoder(net, image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3, precision=precision)
    net = timm.create_model(VIT, pretrained=False, num_classes=0, img_size=224)
    return load_encoder(net, image_size=224, mean=(0.5,) * 3, std=(0.25,) * 3, precision=precision)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--threads", type=int, help="of torch on the CPU; by default all")
    options.add_argument("--only", nargs="+", choices=ENCODERS)
    options.add_argument("--quick", action="store_true", help="one round, no ViT on a CPU: a minute")
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    names = chosen.only or ENCODERS
    if chosen.quick and chosen.device == "cpu":
        names = [name for name in names if name != "ViT-S/14"]
    fastest, sustained, by_convolution = matrix_rates(chosen.device)
    rates = sustained, {name: max(rate, by_convolution.get(name, 0)) for name, rate in sustained.items()}
    results = {name: compare(name, chosen.device, rates, 1 if chosen.quick else rounds(name)) for name in names}
    path = chosen.out or record.RESULTS / f"exact_speed_{torch.device(chosen.device).type}.json"
    before = json.loads(path.read_text())["encoders"] if chosen.only and path.exists() else {}
    settings = {"device": chosen.device, "threads": torch.get_num_threads(), "quick": chosen.quick}
    if chosen.device.startswith("cuda"):
        settings["gpu"] = torch.cuda.get_device_name(chosen.device)
    record.write(
        path,
        {
            "matrix_gflops": sustained,
            "fastest_gflops": fastest,
            "convolution_gflops": by_convolution,
            "encoders": {name: {**before, **results}[name] for name in ENCODERS if name in before or name in results},
        },
        seed=SEED,
        **settings,
    )
    for name, result in results.items():
        print(f"{name}: K = {result['n_components']}, floor {result['floor_ms']}")
        for way in result["ways"]:
            print(f"  {way['way']:40} batch {way['batch']:3}  {way['ms']:9.2f} ms an image")


def rounds(name: str) -> int:
    return 2 if name == "ViT-S/14" else 4


def matrix_rates(device: str) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """GFLOP/s of matrix products of several shapes, as the layers have them and square, in each precision.

    The fastest product seen, what the fastest shape sustains for as long as a layer-wise pass may run, and on a CPU
    what it sustains as a convolution of one pixel.
    """
    fastest, sustained, by_convolution = {}, {}, {}
    kinds = {"float32": (torch.float32, "ieee"), "bfloat16": (torch.bfloat16, "ieee")}
    if device.startswith("cuda"):
        kinds["tf32"] = (torch.float32, "tf32")
    for name, (dtype, products) in kinds.items():
        torch.backends.cuda.matmul.fp32_precision = products
        found, convolved = [], []
        for m, k, n in ((2056, 1536, 384), (2056, 384, 1536), (2048, 2048, 2048), (8192, 4096, 4096)):
            if m == 8192 and device == "cpu":
                continue
            a, b = torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype)
            found.append(2 * m * k * n / seconds_sustained(lambda a=a, b=b: a @ b, device) / 1e9)
            if device == "cpu":
                product = partial(product_by_convolution, a, b[:, :, None, None])
                convolved.append(2 * m * k * n / seconds_sustained(product, device)[1] / 1e9)
        fastest[name], sustained[name] = (float(best) for best in np.max(found, axis=0))
        if convolved:
            by_convolution[name] = float(max(convolved))
    torch.backends.cuda.matmul.fp32_precision = "none"
    return fastest, sustained, by_convolution


def seconds_sustained(call: Callable[[], object], device: str) -> np.ndarray:
    """The fastest of some seconds of calls, and their mean."""
    times = [timed(call, device)]
    while sum(times) < SUSTAINED:
        times.append(timed(call, device))
    return np.array([min(times), np.mean(times)])


def timed(call: Callable[[], object], device: str) -> float:
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def compare(name: str, device: str, rates: tuple[dict[str, float], dict[str, float]], n_rounds: int) -> dict:
    encoder = encoder_of(name, "float32")
    on_gpu = device.startswith("cuda")
    vit = name == "ViT-S/14"
    batches = {False: (1, 8, 16, 32, 64), True: (1,) if not on_gpu else (1, 8, 32)}[vit]
    images = inputs(encoder, max(batches)).to(device)
    precisions = ["float32", "bfloat16", *(["tf32"] if on_gpu else [])]
    with encoder.scoring(device) as function:
        n_components = function(images[:1]).shape[1]
        flop = flop_of_a_pass(function, images[:1])
    m = max(1, n_components // PROJECTED)
    projected = torch.from_numpy(random_directions(n_components, m, seed=SEED).components).float().to(device)
    ways: list[tuple[str, int, Callable, str]] = []
    for batch in batches:
        ways.append(("Listing 1", batch, listing_one, "float32"))
        ways += [(f"skjepa, {p}", batch, Ours(p, n_components), p) for p in precisions]
        if batch in (1, batches[-1]):
            few = partial(listing_one_projected, projected)
            ways.append((f"Listing 1, {m} projections", batch, few, "float32"))
            ways.append((f"skjepa, {m} directions", batch, Ours("float32", n_components, projected), "float32"))
    seconds = {way[:2]: [] for way in ways}
    for _ in range(n_rounds):
        for way, batch, call, precision in ways:
            x = images[:batch]
            # Small batches are repeated, so that a round of each takes about as long.
            parts = [images[i : i + 1] for i in range(min(4, len(images)))] if batch == 1 and not vit else [x]
            with encoder_of(name, precision).scoring(device) as f:
                if not vit or on_gpu:
                    call(f, parts[0])  # warms up
                took = timed(lambda parts=parts, call=call, f=f: [call(f, part) for part in parts], device)
            seconds[way, batch].append(took / sum(map(len, parts)))
    return {
        "n_components": n_components,
        "n_inputs": images[0].numel(),
        "gflop_of_a_pass": flop / 1e9,
        "floor_ms": {key: flop * n_components / rate / 1e6 for key, rate in rates[0].items()},
        "lowest_floor_ms": {key: flop * n_components / rate / 1e6 for key, rate in rates[1].items()},
        "ways": [
            {"way": way, "batch": batch, "ms": 1e3 * min(times), "ms_of_rounds": [1e3 * t for t in times]}
            for (way, batch), times in seconds.items()
        ],
        "values": agreement(name, images[: 1 if vit and not on_gpu else 32], device, precisions),
    }


def inputs(encoder: Encoder, n: int) -> Tensor:
    """Photographs of the demo as the encoder receives them."""
    source = as_source(demo_images(SEED)["fit"][:n])
    loader = Loader(
        source, encoder.preprocessing, encoder.dtype, "cpu", channels_last=encoder.channels_last, run=RunOptions()
    )
    return torch.cat([x for _, x, _ in loader.batches(range(n), lambda: n)])


def flop_of_a_pass(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    leaf = x.clone().requires_grad_(True)
    with torch.enable_grad():
        output = function(leaf)
        with FlopCounterMode(display=False) as counter:
            torch.autograd.grad(output[:, 0].sum(), leaf)
    return counter.get_total_flops() / len(x)


def agreement(name: str, images: Tensor, device: str, precisions: list[str]) -> dict[str, dict]:
    """Differences to Listing 1 in nats, and the rank correlation, by precision."""
    found = {}
    with encoder_of(name, "float32").scoring(device) as f:
        theirs = torch.cat([listing_one(f, part) for part in images.split(8)]).cpu().numpy()
    for precision in precisions:
        with encoder_of(name, precision).scoring(device) as f:
            measure = Ours(precision, f(images[:1]).shape[1])
            spectra = torch.cat([measure(f, part) for part in images.split(8)])
        ours = log_volume(spectra.numpy(), floor=PAPER_FLOOR)
        found[precision] = {
            "images": len(images),
            "mean_difference": float((ours - theirs).mean()),
            "largest_difference": float(np.abs(ours - theirs).max()),
            "spearman": float(spearmanr(ours, theirs).statistic) if len(images) > 2 else None,
        }
    return found


if __name__ == "__main__":
    main()
