"""Train small JEPAs without labels, on images and on vectors.

All random numbers of an epoch follow from (seed, epoch), and the learning rate from the step. A checkpoint between
epochs therefore needs no generator state, and a resumed run equals an uninterrupted one exactly. The learning rate is
constant between warm-up and decay, so until the decay begins the number of epochs can still be changed.
"""

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from tqdm.auto import tqdm

from skjepa._utils.files import written_whole
from skjepa._utils.hardware import has_bfloat16
from skjepa._utils.randomness import own_random_numbers
from skjepa.encoders.isotropy import embedding_statistics, unit_directions
from skjepa.pretraining.augmentations import VectorViewOptions, training_views, vector_views
from skjepa.pretraining.config import PretrainConfig
from skjepa.pretraining.losses import info_nce, invariance, sigreg, vicreg


class CollapseWarning(UserWarning):
    """Issued when the embeddings of an encoder in training vary in few directions only."""


def pretrain(
    network: nn.Module,
    samples: Tensor,
    config: PretrainConfig,
    *,
    device: str | torch.device = "cpu",
    checkpoint: str | os.PathLike | None = None,
    resume: bool = False,
    initial_checkpoint: str | os.PathLike | None = None,
    on_epoch: Callable[[nn.Module, dict[str, float]], None] | None = None,
    progress: bool = False,
) -> list[dict[str, float]]:
    """Train a network in place on unlabelled samples.

    Parameters
    ----------
    network : nn.Module
        Maps (n, 3, H, W) or (n, d) to (n, K); needs submodules `features` and `head` if the configuration has a
        projector.
    samples : uint8 Tensor of shape (n_samples, 3, height, width), or float Tensor of shape (n_samples, d)
        Images, or standardised vectors.
    config : PretrainConfig
        Settings of the training.
    device : str or torch.device
        Device to train on. Random numbers are drawn on the CPU, so views and batches are the same on every device.
    checkpoint : path-like, optional
        File that is rewritten, atomically, after every epoch.
    resume : bool
        Whether to continue from `checkpoint` if it exists; the result equals that of an uninterrupted run. `epochs` may
        differ from the checkpoint's as long as the decay has begun in neither run.
    initial_checkpoint : path-like, optional
        Checkpoint of an earlier run with any settings, whose weights (including the projector's) to start from. This is
        a warm restart (Loshchilov and Hutter, 2017) with a new schedule and optimiser. Give another `seed`, otherwise
        the batches of the earlier run are repeated.
    on_epoch : callable, optional
        Called with the network (in evaluation mode) and the epoch's statistics after the checkpoint is written.
    progress : bool
        Whether to show a bar with losses and the number of samples (not views) per second.

    Returns
    -------
    list of dict
        One per epoch: ``epoch`` from 1, mean losses, ``samples_per_second``, and
        `skjepa.encoders.embedding_statistics` of `n_watched` random unaugmented samples. The network is left in
        evaluation mode, on the CPU.

    Raises
    ------
    ValueError
        If a setting is not usable, `checkpoint` belongs to another configuration, or `initial_checkpoint` to another
        network.
    FloatingPointError
        If the loss is not finite; the last checkpoint is still valid.

    Warns
    -----
    CollapseWarning
        Once: when the embeddings' participation ratio, past the warm-up, is under a tenth of K and less than half of
        what it was before, or at the end, or where no term of the loss works against a collapse.
    """
    config.validate(len(samples))
    _check_samples(samples, config)
    model = _model(network, samples, config).to(device)
    optimizer = _optimizer(model, config)
    # Watched samples are drawn at random, since folders list one class after the other.
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(config.seed))
    watched = samples[order[: config.n_watched]]
    history: list[dict[str, float]] = []
    if resume and checkpoint is not None and Path(checkpoint).exists():
        history = _load_checkpoint(checkpoint, model, optimizer, config)
    elif initial_checkpoint is not None:
        _load_weights(initial_checkpoint, model)
    is_warned = False
    for epoch in range(len(history), config.epochs):
        record = {"epoch": epoch + 1} | _train_epoch(model, optimizer, samples, config, epoch, progress)
        network.eval()
        if len(watched) > 1:
            record |= embedding_statistics(embed(network, watched, config), seed=config.seed)
        history.append(record)
        if not is_warned and epoch + 1 > config.warmup and _is_collapsed(history, config):
            is_warned = True
            _warn_of_collapse(record)
        if checkpoint is not None:
            _save_checkpoint(checkpoint, model, optimizer, config, history)
        if on_epoch is not None:
            on_epoch(network, record)
    if config.spectral_norm:
        _fix_spectral_norm(network)
    network.eval().to("cpu")
    return history


@torch.no_grad()
def embed(module: nn.Module, samples: Tensor, config: PretrainConfig, *, batch_size: int = 512) -> Tensor:
    """Return the outputs of a module, in its current mode, for unaugmented samples, (n_samples, n_outputs), float32.

    Parameters
    ----------
    module : nn.Module
        A network, or its `features`.
    samples : uint8 Tensor of shape (n_samples, 3, height, width), or float Tensor of shape (n_samples, d)
    config : PretrainConfig
        Settings with the mean and standard deviation of the pixels.
    """
    device = next((parameter.device for parameter in module.parameters()), samples.device)

    def output(part: Tensor) -> Tensor:
        part = part.to(device)
        return module(part if samples.ndim == 2 else _normalise(part.float() / 255, config)).float().cpu()

    return torch.cat([output(part) for part in samples.split(batch_size)])


def _check_samples(samples: Tensor, config: PretrainConfig) -> None:
    wanted = "vectors" if isinstance(config.views, VectorViewOptions) else "images"
    given = {2: "vectors", 4: "images"}.get(samples.ndim)
    if given != wanted:
        raise ValueError(f"views={type(config.views).__name__} needs {wanted}; got shape {tuple(samples.shape)}")


def _model(network: nn.Module, samples: Tensor, config: PretrainConfig) -> nn.ModuleDict:
    """Return the network and, if there is a second loss, the projector, which is dropped after training."""
    if samples.ndim == 4:
        network.to(memory_format=torch.channels_last)
    with own_random_numbers(config.seed):
        if config.spectral_norm:
            for module in list(network.modules()):
                if isinstance(module, nn.Linear | nn.Conv2d):
                    spectral_norm(module)
        model = nn.ModuleDict({"network": network})
        if config.projector_objective:
            model["projector"] = _projector(_feature_width(network, samples), config.projector_width)
    return model


def _fix_spectral_norm(network: nn.Module) -> None:
    """Turn the normalised weights into plain parameters again."""
    for module in network.modules():
        if is_parametrized(module, "weight"):
            remove_parametrizations(module, "weight", leave_parametrized=True)


def _is_collapsed(history: list[dict[str, float]], config: PretrainConfig) -> bool:
    """Whether embeddings have lost at least half of their directions and kept few, or have few when training ends.

    At first every encoder has few: with a handful of steps per epoch that may last for many epochs, and the ratio
    wavers about the limit. Where no term of the loss spreads the embeddings, the first low ratio tells.
    """
    ratios = [record["participation_ratio"] for record in history if "participation_ratio" in record]
    if not ratios or ratios[-1] >= 0.1 * history[-1]["n_components"]:
        return False
    nothing_spreads = config.objective == "invariance" or (config.objective == "sigreg" and not config.sigreg_weight)
    return nothing_spreads or ratios[-1] < 0.5 * max(ratios) or len(history) == config.epochs


def _warn_of_collapse(record: dict[str, float]) -> None:
    epoch, ratio, total = (record[name] for name in ("epoch", "participation_ratio", "n_components"))
    warnings.warn(
        f"epoch {epoch}: the embeddings vary in few directions, participation ratio {ratio:.1f} of {total:.0f} "
        "components: they have collapsed, or there were too few steps to spread them. Train on more images, for more "
        "epochs or in smaller batches, or take another objective",
        CollapseWarning,
        stacklevel=3,
    )


def _train_epoch(model, optimizer, samples: Tensor, config: PretrainConfig, epoch: int, progress: bool) -> dict:
    generator = torch.Generator().manual_seed(_mix(config.seed, epoch))
    order = torch.randperm(len(samples), generator=generator)
    steps = len(samples) // config.batch_size
    size = config.view_size if epoch < config.epochs * (1 - config.full_size_share) else None
    device = next(model.parameters()).device
    sums: dict[str, float] = {}
    started = time.perf_counter()
    model.train()
    with tqdm(
        total=steps * config.batch_size, desc=f"epoch {epoch + 1}/{config.epochs}", unit="sample", disable=not progress
    ) as bar:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate_at(epoch + step / steps)
            batch = samples[order[step * config.batch_size : (step + 1) * config.batch_size]]
            losses = _losses(model, batch.to(device), generator, size, config)
            loss = losses["loss"]
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} in epoch {epoch + 1}, step {step + 1}: lower learning_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            bar.update(config.batch_size)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    record = {name: value / steps for name, value in sums.items()}
    record["samples_per_second"] = steps * config.batch_size / (time.perf_counter() - started)
    return record


def _losses(model, batch: Tensor, generator: torch.Generator, size: int | None, config: PretrainConfig) -> dict:
    views = torch.cat([_view(batch, generator, size, config) for _ in range(config.n_views)])
    network = model["network"]
    with torch.autocast(views.device.type, torch.bfloat16, enabled=_uses_bfloat16(views.device, config)):
        if "projector" not in model:
            embeddings = network(views)
        else:
            features = network.features(views)
            embeddings, projections = network.head(features), model["projector"](features)
    losses = {}
    losses["loss"] = loss = _objective(config.objective, embeddings, generator, config)
    if "projector" in model:
        second = _objective(config.projector_objective, projections, generator, config)
        losses |= {"loss": loss + config.projector_weight * second, "head_loss": loss, "projector_loss": second}
    return losses


def _view(batch: Tensor, generator: torch.Generator, size: int | None, config: PretrainConfig) -> Tensor:
    if isinstance(config.views, VectorViewOptions):
        return vector_views(batch, generator, options=config.views)
    return _normalise(training_views(batch, generator, size=size, options=config.views), config)


def _uses_bfloat16(device: torch.device, config: PretrainConfig) -> bool:
    if config.precision == "auto" and isinstance(config.views, VectorViewOptions):
        return False  # not faster for small matrices
    if config.precision == "auto":
        return has_bfloat16(device)
    return config.precision == "bfloat16"


def _objective(name: str | None, embeddings: Tensor, generator: torch.Generator, config: PretrainConfig) -> Tensor:
    views = embeddings.float().unflatten(0, (config.n_views, -1))
    if name == "vicreg":
        return vicreg(views[0], views[1])
    if name == "info_nce":
        return info_nce(views[0], views[1], temperature=config.temperature)
    if name == "invariance":
        return invariance(views)
    directions = unit_directions(views.shape[2], config.n_directions, generator).to(views.device)
    regulariser = torch.stack([sigreg(view, directions) for view in views]).mean()
    return (1 - config.sigreg_weight) * invariance(views) + config.sigreg_weight * regulariser


def _normalise(pixels: Tensor, config: PretrainConfig) -> Tensor:
    mean, std = (torch.tensor(value, device=pixels.device).view(3, 1, 1) for value in (config.mean, config.std))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


def _mix(seed: int, epoch: int) -> int:
    """Return a generator seed that no other small (seed, epoch) shares."""
    return (seed * 1_000_003 + epoch) % 2**63


def _projector(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.SiLU(), nn.Linear(hidden, hidden // 2)
    )


@torch.no_grad()
def _feature_width(network: nn.Module, samples: Tensor) -> int:
    training = network.training
    width = network.eval().features(torch.zeros(1, *samples.shape[1:])).shape[1]  # type: ignore[operator]
    network.train(training)
    return width


def _optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    kernels = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98))


def _save_checkpoint(path, model, optimizer, config: PretrainConfig, history: list[dict[str, float]]) -> None:
    state: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"config": asdict(config), "history": history}
    with written_whole(path) as partial:
        torch.save(state, partial)


def _load_weights(path, model: nn.Module) -> None:
    state = torch.load(path, weights_only=True, map_location="cpu")
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ValueError(f"{path} holds the weights of another network: {error}") from error


def _load_checkpoint(path, model, optimizer, config: PretrainConfig) -> list[dict[str, float]]:
    state = torch.load(path, weights_only=True, map_location="cpu")
    current, stored = asdict(config), state["config"]
    changed = {name for name in current if stored.get(name) != current[name]}
    decay_start = min(config.decay_start, replace(config, epochs=stored["epochs"]).decay_start)
    if changed == {"epochs"} and len(state["history"]) <= decay_start:
        changed = set()
    if changed:
        raise ValueError(
            f"{path} was made with other settings of {', '.join(sorted(changed))}: give the same, another file, or "
            "resume=False"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["history"]
