"""Ways to the same Jacobian that might pay on a GPU, each beside the package's own; none of them is its default.

A way whose rows differ from those of the package by more than rounding is no way: the largest difference, relative to
the largest entry, stands beside each time.
"""

import argparse
import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch._functorch.config
import torch.multiprocessing
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from skjepa import load_encoder
from skjepa.jacobian.precision import narrowed
from skjepa.jacobian.repeated_backward import prepared
from skjepa.jacobian.rows import jacobian

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "plain products": SDPBackend.MATH,
}
SIDE_BY_SIDE = 32
"""Cotangents that `torch.vmap` carries through one backward pass."""

Function = Callable[[Tensor], Tensor]
Way = Callable[[Function, Tensor], Tensor]


def measure(rows: Any, chosen: argparse.Namespace, vit: Callable, fastest: Callable) -> None:
    """Each way at batch 1 and at a batch that fills a GPU; last what is compiled, which takes a minute each time."""
    torch._functorch.config.donated_buffer = False  # a compiled backward pass runs K times through one graph
    on_gpu = chosen.device.startswith("cuda")
    images = torch.randn(4 if chosen.quick else 32, 3, *[28 if chosen.quick else 224] * 2, device=chosen.device)
    batches = (1, len(images))
    main = "bfloat16" if on_gpu else "float32"
    plan = [(precision, batch, False) for precision in ([main, "tf32"] if on_gpu else [main]) for batch in batches]
    plan += [(main, batch, True) for batch in (batches[1:] if chosen.quick else reversed(batches))]
    for precision, batch, is_compiled in plan:
        x = images[:batch].contiguous()
        encoder = vit(precision, quick=chosen.quick)
        with encoder.scoring(chosen.device) as function:
            own = jacobian(narrowed(function, precision, chosen.device), x)[1]
            chosen_ways, called = ways(batch, on_gpu), function
            if is_compiled:  # the module itself: how an encoder guards it would break the compiled graph
                chosen_ways, called = compiled_ways(on_gpu), copy.deepcopy(encoder.module).to(chosen.device)
                called.requires_grad_(False)
            narrow = narrowed(called, precision, chosen.device)
            for name, way in chosen_ways.items():
                names = {"way": name, "precision": precision, "batch": batch}
                rows.add(partial(timed_and_compared, way, narrow, x, own, fastest), **names)


def ways(batch: int, on_gpu: bool) -> dict[str, Way]:
    """Functions of (encoder, images) that return the Jacobians (B, K, D)."""
    found: dict[str, Way] = {"skjepa": lambda f, x: jacobian(f, x)[1]}
    if batch == 1:
        found["skjepa, image copied 32 times"] = lambda f, x: jacobian(f, x, copies=32)[1]
    found["cotangents side by side (vmap)"] = side_by_side
    if on_gpu:
        found["CUDA graph of a pass"] = partial(captured, prepared)
        found |= {f"attention by {name}": partial(by_kernel, kernel) for name, kernel in KERNELS.items()}
    return found


def compiled_ways(on_gpu: bool) -> dict[str, Way]:
    found: dict[str, Way] = {"torch.compile": compiled}
    return found | ({"CUDA graph of a compiled pass": partial(captured, once_compiled)} if on_gpu else {})


def timed_and_compared(way: Way, function: Function, x: Tensor, own: Tensor, fastest: Callable) -> dict[str, Any]:
    started = time.perf_counter()
    difference = float((way(function, x) - own).abs().max() / own.abs().max())
    first = time.perf_counter() - started
    rounds = fastest(lambda: way(function, x), str(x.device), len(x), rounds=2)
    return {"first_seconds": first, "largest_difference": difference, **rounds}


def rows_of(outputs: Tensor, leaf: Tensor) -> Tensor:
    """One backward pass for each output."""
    rows = leaf.new_empty(len(leaf), outputs.shape[1], leaf[0].numel())
    for k in range(outputs.shape[1]):
        cotangent = torch.zeros_like(outputs)
        cotangent[:, k] = 1
        (gradient,) = torch.autograd.grad(outputs, leaf, cotangent, retain_graph=True)
        rows[:, k] = gradient.flatten(1)
    return rows


@cache
def once_compiled(function: Function) -> Function:
    """The compiled function, the same at every call: compiling takes a minute."""
    return torch.compile(function, dynamic=False)


def compiled(function: Function, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_(True)
    with torch.enable_grad():
        return rows_of(once_compiled(function)(leaf), leaf)


def side_by_side(function: Function, x: Tensor) -> Tensor:
    """Fused attention has no batching rule for its backward pass: its plain products have."""
    leaf = x.clone().requires_grad_(True)
    parts = []
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        outputs = function(leaf)
        units = torch.eye(outputs.shape[1], dtype=outputs.dtype, device=x.device)
        for some in units.split(max(1, SIDE_BY_SIDE // len(x))):
            cotangents = some[:, None].expand(-1, len(x), -1)
            (part,) = torch.autograd.grad(outputs, leaf, cotangents, retain_graph=True, is_grads_batched=True)
            parts.append(part.flatten(2))
    return torch.cat(parts).transpose(0, 1)


def by_kernel(kernel: SDPBackend, function: Function, x: Tensor) -> Tensor:
    with sdpa_kernel(kernel):
        return jacobian(function, x)[1]


def captured(made: Callable[[Function], Function], function: Function, x: Tensor) -> Tensor:
    """One backward pass recorded and replayed K times; the forward pass runs on the stream that is recorded."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.enable_grad(), torch.cuda.stream(stream):
        leaf = x.clone().requires_grad_(True)
        outputs = made(function)(leaf)
        cotangent = torch.zeros_like(outputs)
        for _ in range(3):  # libraries set themselves up
            torch.autograd.grad(outputs, leaf, cotangent, retain_graph=True)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            (gradient,) = torch.autograd.grad(outputs, leaf, cotangent, retain_graph=True)
        rows = leaf.new_empty(len(leaf), outputs.shape[1], leaf[0].numel())
        for k in range(outputs.shape[1]):
            cotangent.zero_()
            cotangent[:, k] = 1
            graph.replay()
            rows[:, k] = gradient.flatten(1)
    torch.cuda.current_stream().wait_stream(stream)
    return rows.detach()


def two_processes(device: str, *, quick: bool) -> dict[str, Any]:
    """Seconds of each of two encoders alone, and of both at once, each in a process of its own."""
    context = torch.multiprocessing.get_context("spawn")
    names = ("bundled", "bundled") if quick else ("ViT-S/14", "EfficientNet-Lite0")
    orders, reports = [context.Queue() for _ in names], context.Queue()
    workers = [
        context.Process(target=worker, args=(i, name, device, quick, orders[i], reports), daemon=True)
        for i, name in enumerate(names)
    ]
    for process in workers:
        process.start()
    try:
        for _ in workers:
            reports.get(timeout=120)  # ready
        alone, both = [], []
        for _ in range(2):
            alone.append([seconds_of([i], orders, reports) for i in range(len(names))])
            both.append(seconds_of([0, 1], orders, reports))
        each = np.min(alone, axis=0)
        found = {"encoders": list(names), "seconds_alone": each.tolist(), "seconds_together": min(both)}
        return found | {"together_over_sum": min(both) / float(each.sum())}
    finally:
        for process in workers:
            process.kill()


def seconds_of(which: list[int], orders: list[Any], reports: Any) -> float:
    started = time.perf_counter()
    for i in which:
        orders[i].put("measure")
    for _ in which:
        answer = reports.get(timeout=120)
        if answer != "done":
            raise RuntimeError(answer)
    return time.perf_counter() - started


def worker(i: int, name: str, device: str, quick: bool, orders: Any, reports: Any) -> None:
    """Measures the same batches whenever it is told to; some sketches of a large encoder take as long as of a small."""
    try:
        from benchmarks.speed.forward_cost import encoder_of

        encoder = load_encoder("bundled") if quick else encoder_of(name)
        assert encoder.input_shape is not None
        x = torch.randn(4 if quick else 32, *encoder.input_shape, device=device)
        with encoder.scoring(device) as function:
            n_passes = 8 if quick else 128
            directions = torch.eye(function(x[:1]).shape[1], device=device)[:, :n_passes]
            with torch.autocast(torch.device(device).type, torch.bfloat16) if not quick else nullcontext():
                jacobian(function, x, mode="reverse", directions=directions)
                reports.put("ready")
                while orders.get():
                    jacobian(function, x, mode="reverse", directions=directions)
                    if device.startswith("cuda"):
                        torch.cuda.synchronize()
                    reports.put("done")
    except Exception as error:
        reports.put(f"{type(error).__name__}: {error}")
