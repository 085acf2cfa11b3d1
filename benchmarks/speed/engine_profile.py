"""Where the time of an exact score goes, and what other ways of doing it were worth.

    python -m benchmarks.speed.engine_profile [--only profiles kernels ...]

On one thread, in seconds of its processor, which other work on the machine disturbs less than the clock. Four parts:

- rates: GFLOP/s of a float32 and a bfloat16 matrix product by torch, and by a convolution of one pixel.
- profiles: share of the time by kind of operation, and the GFLOP/s at which the counted arithmetic of the passes runs,
  over all the time and over the time of products and convolutions alone.
- kernels: each part of a pass by the kernel that `skjepa.jacobian.input_gradients` takes and by others, one after the
  other in every round. The median of the ratios counts, above 1 where the way taken is faster.
- stacked: in the same way, whole scores with the cotangents stacked by `torch.vmap`.

Writes benchmarks/results/engine_profile_cpu.json; a part that is left out keeps what the file has.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import record
from benchmarks.speed.exact_speed import Ours, encoder_of, flop_of_a_pass, inputs
from skjepa.jacobian import input_gradients
from skjepa.jacobian.precision import narrowed
from skjepa.jacobian.repeated_backward import prepared
from skjepa.jacobian.rows import jacobian, worthwhile_copies

SEED = 0
PATH = record.RESULTS / "engine_profile_cpu.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PROFILED = [("bundled", 64, None), ("bundled", 1, None), ("ResNet-14", 64, None), ("ViT-S/14", 1, 32)]
KINDS = {
    "convolutions": ("convolution", "mkldnn_conv"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "Gram matrix, eigenvalues": ("aten::baddbmm", "aten::_linalg_eigh"),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::fill_", "aten::zero_", "aten::im2col", "aten::col2im"),
    "elementwise": ("aten::mul", "aten::add", "aten::sub", "aten::div", "aten::neg", "aten::to", "aten::where"),
    "softmax and normalisation": ("softmax", "norm"),
    "pooling": ("pool", "aten::mean", "aten::sum"),
}
# Convolutions of the encoders: channels in and out, kernel, stride, padding, size, batch, layout.
CONVOLUTIONS = {
    "bundled, stem": (3, 32, 4, 2, 1, 32, 64),
    "bundled, 32 channels": (32, 32, 3, 1, 1, 16, 64),
    "bundled, 64 to 128 channels": (64, 128, 3, 2, 1, 8, 64),
    "bundled, shortcut": (64, 128, 1, 1, 0, 4, 64),
    "bundled, 256 channels of 2 x 2": (256, 256, 3, 1, 1, 2, 64),
    "ResNet-14, stem": (3, 16, 3, 1, 1, 32, 64),
    "ResNet-18, stem": (3, 64, 7, 2, 3, 224, 1),
    "EfficientNet, pointwise": (16, 96, 1, 1, 0, 112, 1),
    "ViT-S/14, patches": (3, 384, 14, 14, 0, 224, 1),
    "ConvNeXt, patches": (3, 96, 4, 4, 0, 224, 1),
}
LINEAR = {"ViT-S/14, behind GELU": (257, 1536, 384), "ViT-S/14, attention": (257, 384, 384), "a head": (64, 64, 448)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"rates": rates, "profiles": profiles, "kernels": kernels, "stacked": stacked}
    options.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    chosen = options.parse_args()
    torch.set_num_threads(1)
    found = json.loads(PATH.read_text()) if PATH.exists() else {}
    found.pop("stamp", None)
    torch.manual_seed(SEED)
    for part in chosen.only:
        found[part] = parts[part]()
        print(json.dumps(found[part], indent=1))
    record.write(PATH, found, seed=SEED, threads=1)


def rates() -> dict[str, dict[str, float]]:
    """GFLOP/s of products as ViT-S/14 has them, median of some seconds."""
    found = {}
    for name, dtype in DTYPES.items():
        a, b = torch.randn(2056, 1536, dtype=dtype), torch.randn(1536, 384, dtype=dtype)
        kernel = b[:, :, None, None]
        ways = {
            "matrix product": lambda a=a, b=b: a @ b,
            "convolution": partial(input_gradients.product_by_convolution, a, kernel),
        }
        seconds = side_by_side(ways, 300)
        found[name] = {way: 2 * 2056 * 1536 * 384 / median(times) / 1e9 for way, times in seconds.items()}
    return found


def side_by_side(ways: dict[str, Callable[[], object]], n_rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(n_rounds + 1):
        for way, call in ways.items():
            start = time.process_time()
            call()
            seconds[way].append(time.process_time() - start)
    return {way: times[1:] for way, times in seconds.items()}  # the first one warms up


def profiles() -> list[dict[str, Any]]:
    return [profile_of(*case, precision) for case in PROFILED for precision in DTYPES]


def profile_of(name: str, batch: int, m: int | None, precision: str) -> dict[str, Any]:
    encoder = encoder_of(name, precision)
    x = inputs(encoder, batch)
    with encoder.scoring("cpu") as function:
        n_components = function(x[:1]).shape[1]
        directions = None if m is None else torch.eye(n_components)[:, :m].contiguous()
        measure = Ours(precision, n_components, directions)
        flop = flop_of_a_pass(function, x[:1]) * measure.n_passes * batch
        (seconds,) = side_by_side({"": partial(measure, function, x)}, 5).values()
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            measure(function, x)
    spent: dict[str, float] = defaultdict(float)
    for event in watched.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    total = sum(spent.values())
    products = spent["convolutions"] + spent["matrix products"]
    return {
        "encoder": name,
        "batch": batch,
        "passes": measure.n_passes,
        "precision": precision,
        "ms": 1e3 * median(seconds) / batch,
        "shares": {kind: spent[kind] / total for kind in [*KINDS, "calls and the rest"]},
        "gflops": flop / median(seconds) / 1e9,
        "gflops_of_products": flop / (products * median(seconds) / total) / 1e9,
    }


def kind_of(operation: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(p in operation for p in parts)), "calls and the rest")


def kernels() -> list[dict[str, Any]]:
    found = []
    for precision, dtype in DTYPES.items():
        for name, shapes in CONVOLUTIONS.items():
            for layout in ("channels last", "channels first"):
                found.append(
                    {"part": name, "layout": layout, **compared(*convolution(shapes, dtype, layout), precision)}
                )
        for name, (n_rows, n_out, n_in) in LINEAR.items():
            gradient, weight = torch.randn(n_rows, n_out, dtype=dtype), torch.randn(n_out, n_in, dtype=dtype)
            kernel = weight[:, :, None, None]
            ways = {
                "matrix product": lambda g=gradient, w=weight: g @ w,
                "convolution": partial(input_gradients.product_by_convolution, gradient, kernel),
            }
            taken = partial(input_gradients.of_linear(weight), gradient)
            found.append({"part": name, "layout": "", **compared(taken, ways, precision)})
    return found


def convolution(shapes: tuple, dtype: torch.dtype, layout: str) -> tuple[Callable, dict[str, Callable]]:
    """The gradient that the engine takes of a convolution, and the same by other kernels."""
    n_in, n_out, k, s, p, size, batch = shapes
    format = torch.channels_last if layout == "channels last" else torch.contiguous_format
    weight = torch.randn(n_out, n_in, k, k, dtype=dtype).contiguous(memory_format=format)
    shape, size_out = torch.Size((batch, n_in, size, size)), (size + 2 * p - k) // s + 1
    gradient = torch.randn(batch, n_out, size_out, size_out, dtype=dtype).contiguous(memory_format=format)
    how: dict[str, Any] = {"stride": (s, s), "padding": (p, p), "dilation": (1, 1), "groups": 1}
    uncovered = size + 2 * p - k - (size_out - 1) * s

    def folded() -> Tensor:
        patches = weight.flatten(1).mT @ gradient.flatten(2)
        return F.fold(patches, (size, size), kernel_size=(k, k), stride=s, padding=p)

    ways: dict[str, Callable] = {
        "gradient kernel": lambda: conv2d_input(shape, weight, gradient, **how),
        "transposed convolution": lambda: F.conv_transpose2d(gradient, weight, output_padding=uncovered, **how),
    }
    if n_in <= 4:
        ways["matrix product and fold"] = folded
    if s == 1:
        flipped = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=format)
        ways["flipped weights"] = lambda: F.conv2d(gradient, flipped, padding=k - 1 - p)
    below = input_gradients.of_convolution(weight, shape, how)
    return lambda: below(gradient).contiguous(), ways


def compared(taken: Callable, ways: dict[str, Callable], precision: str) -> dict[str, Any]:
    """Milliseconds of the way taken, and how many times as long others take."""
    with torch.no_grad():
        calls = {"taken": taken, **{way: lambda call=call: call().contiguous() for way, call in ways.items()}}
        seconds = side_by_side(calls, 40)
    times = {way: median(a / b for a, b in zip(seconds[way], seconds["taken"], strict=True)) for way in ways}
    return {"precision": precision, "ms": 1e3 * median(seconds["taken"]), "times_as_long": times}


def stacked() -> list[dict[str, Any]]:
    """Whole scores of small batches: copies side by side, or all cotangents in one pass by vmap."""
    found = []
    for name in ("bundled", "ResNet-14"):
        for precision in DTYPES:
            encoder = encoder_of(name, precision)
            for batch in (1, 8):
                x = inputs(encoder, batch)
                with encoder.scoring("cpu") as function:
                    narrow = narrowed(function, precision, "cpu")
                    copies = worthwhile_copies(x, 64, 64 // batch)
                    taken = partial(jacobian, narrow, x, copies=copies)
                    seconds = side_by_side({"taken": taken, "vmap": partial(by_vmap, narrow, x, 64 // batch)}, 9)
                ratio = median(a / b for a, b in zip(seconds["vmap"], seconds["taken"], strict=True))
                case = {"encoder": name, "precision": precision, "batch": batch}
                found.append({**case, "ms": 1e3 * median(seconds["taken"]) / batch, "times_as_long": {"vmap": ratio}})
    return found


def by_vmap(function: Callable[[Tensor], Tensor], x: Tensor, n_together: int) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    output = prepared(function)(leaf)
    n_components = output.shape[1]
    units = torch.eye(n_components)[:, None].expand(-1, len(x), -1)
    rows = [
        torch.autograd.grad(output, leaf, some, retain_graph=True, is_grads_batched=True)[0]
        for some in units.split(n_together)
    ]
    return torch.cat(rows).transpose(0, 1).flatten(2)


if __name__ == "__main__":
    main()
