"""Train an encoder on a folder of images and write it to a file, as `skjepa pretrain` does."""

import json
import os
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import Tensor
from tqdm.auto import tqdm

from skjepa._utils import hardware
from skjepa._utils.files import written_whole
from skjepa._utils.hardware import default_budget
from skjepa._utils.randomness import own_random_numbers
from skjepa._utils.validation import check_choice, check_integer
from skjepa.data.images import ImageReadError
from skjepa.data.sources import Source, as_source
from skjepa.encoders.isotropy import whiten_head
from skjepa.encoders.networks import build_network, save_network
from skjepa.encoders.preprocessing import plain_preprocessing
from skjepa.pretraining.config import PretrainConfig
from skjepa.pretraining.loop import CollapseWarning, embed, pretrain

IMAGE_NETWORKS = ("convnet", "vit")

RECIPE = PretrainConfig(
    epochs=40,
    batch_size=128,
    sigreg_weight=0.25,
    projector_objective="info_nce",
    projector_weight=2.0,
    full_size_share=0.1,
)
"""Settings of the bundled encoder; sizes and pixel statistics are filled in from the images."""


@dataclass(frozen=True)
class TrainedEncoder:
    """Hold the result of `skjepa.pretraining.train_encoder`.

    Attributes
    ----------
    path : Path
        File of the encoder, for `load_encoder`.
    history : list of dict
        Statistics per epoch from `skjepa.pretraining.pretrain`; also in the file next to it, one JSON object per line.
    n_images : int
        Number of images that were trained on.
    skipped : dict of id -> reason
        Images that could not be read.
    """

    path: Path
    history: list[dict[str, float]]
    n_images: int
    skipped: dict[str, str]


def train_encoder(
    X: Any,
    out: str | os.PathLike,
    *,
    network: str = "convnet",
    image_size: int = 32,
    n_components: int = 64,
    config: PretrainConfig = RECIPE,
    resume: bool = False,
    keep_checkpoint: bool = False,
    device: str = "auto",
    n_jobs: int | None = None,
    on_error: str = "raise",
    progress: bool = False,
) -> TrainedEncoder:
    """Train a small encoder on unlabelled images and write it to one file.

    Parameters
    ----------
    X : images
        A folder, or images in any other form that `skjepa.data.as_source` accepts. All resized images are held in
        memory.
    out : path-like
        Encoder to write, ``.safetensors``. Next to it lie ``.jsonl``, the statistics of each epoch, and until training
        has finished ``.checkpoint.pt``, from which `resume` continues.
    network : {"convnet", "vit"}
        Architecture: a small residual convolutional network or a small vision transformer.
    image_size : int
        Side of the square input images in pixels; for "vit" a multiple of 8.
    n_components : int
        Length K of the embedding.
    config : PretrainConfig
        Settings of the training. `view_size`, `mean` and `std` are replaced by three quarters of `image_size` and the
        images' own statistics.
    resume : bool
        Whether to continue from the checkpoint, if there is one.
    keep_checkpoint : bool
        Keep the checkpoint of a finished run, so that `resume` can add epochs.
    device : str
        Torch device; "auto" takes CUDA if there is one.
    n_jobs : int, optional
        Number of threads that read images.
    on_error : {"raise", "skip"}
        Whether an image that cannot be read raises an error, or is left out with a warning.
    progress : bool
        Whether to show bars.

    Returns
    -------
    TrainedEncoder

    Raises
    ------
    ValueError
        If a setting is not usable, X holds vectors, or the checkpoint has other settings.
    skjepa.data.ImageReadError
        If an image cannot be read, with ``on_error="raise"``.
    MemoryError
        If the images do not fit into half of the free memory.

    Warns
    -----
    CollapseWarning
        If the embeddings vary in few directions only; the encoder is still written.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ValueError(f"got out={out}; the name of an encoder must end in .safetensors")
    check_choice("network", network, IMAGE_NETWORKS)
    check_integer("image_size", image_size, minimum=8)
    check_integer("n_components", n_components, minimum=1)
    source = as_source(X)
    if source.is_vector:
        raise ValueError("X holds vectors, and train_encoder takes images: use skjepa.VectorJEPA for vectors")
    images, skipped = _read(source, image_size, on_error=on_error, n_jobs=n_jobs, progress=progress)
    mean, std = _channel_statistics(images)
    config = replace(
        config,
        batch_size=min(config.batch_size, len(images)),
        view_size=image_size * 3 // 4,
        mean=mean,
        std=std,
    )
    config.validate(len(images))
    with own_random_numbers(config.seed):
        module = build_network(network, **_network_arguments(network, image_size, n_components))
    log = out.with_suffix(".jsonl")
    checkpoint = checkpoint_of(out)
    if not (resume and checkpoint.exists()):
        log.unlink(missing_ok=True)

    def keep(_: Any, record: dict[str, float]) -> None:
        with log.open("a") as file:
            print(json.dumps(record), file=file)

    history = pretrain(
        module,
        images,
        config,
        device=hardware.resolve_device(device),
        checkpoint=checkpoint,
        resume=resume,
        on_epoch=keep,
        progress=progress,
    )
    with written_whole(log) as partial:  # rewritten, since an interrupted run may have lost a line
        Path(partial).write_text("".join(json.dumps(record) + "\n" for record in history))
    _whiten(module, images, config)
    training = {"images": len(images), "last_epoch": history[-1], **asdict(config)}
    save_network(module, out, metadata={"image_size": image_size, "mean": mean, "std": std, "training": training})
    if not keep_checkpoint:
        checkpoint.unlink(missing_ok=True)
    return TrainedEncoder(out, history, len(images), skipped)


def checkpoint_of(encoder: Path) -> Path:
    """Where the training of an encoder file keeps its state."""
    return encoder.with_suffix(".checkpoint.pt")


def _network_arguments(network: str, image_size: int, n_components: int) -> dict[str, Any]:
    if network == "convnet":
        return {"n_components": n_components, "n_pooled": 3}
    if image_size % 8:
        raise ValueError(f"image_size of a vit must be a multiple of 8; got {image_size}")
    return {"image_size": image_size, "patch_size": image_size // 8, "n_components": n_components}


def _read(source: Source, image_size: int, *, on_error: str, n_jobs, progress: bool) -> tuple[Tensor, dict[str, str]]:
    """Read all images as uint8 (n, 3, image_size, image_size), prepared as the encoder will prepare its input."""
    check_choice("on_error", on_error, ("raise", "skip"))
    needed, budget = len(source) * 3 * image_size**2, default_budget("cpu")
    if needed > budget:
        raise MemoryError(
            f"{len(source)} images of {image_size}x{image_size} take {needed / 2**30:.1f} GiB, and "
            f"{budget / 2**30:.1f} GiB are available: give a smaller image_size or fewer images"
        )
    preprocessing = plain_preprocessing(image_size, None, None)

    def load(position: int) -> Tensor | ImageReadError:
        try:
            pixels = preprocessing.load(source.load(position), torch.float32)
        except ImageReadError as error:
            return error
        return (pixels * 255).round().to(torch.uint8)

    loading = joblib.Parallel(n_jobs, prefer="threads", return_as="generator")(
        joblib.delayed(load)(position) for position in range(len(source))
    )
    images = torch.empty(len(source), 3, image_size, image_size, dtype=torch.uint8)
    readable = torch.ones(len(source), dtype=torch.bool)
    skipped = {}
    bar = tqdm(loading, total=len(source), desc="reading", unit="img", disable=not progress)
    for position, item in enumerate(bar):
        if isinstance(item, Tensor):
            images[position] = item
            continue
        if on_error == "raise":
            raise item
        warnings.warn(f"skipped {item}", stacklevel=3)
        readable[position] = False
        skipped[str(source.ids[position])] = str(item)
    if readable.sum() < 2:
        raise ValueError(f"training needs at least 2 images; got {int(readable.sum())} that can be read")
    return images[readable] if skipped else images, skipped


def _channel_statistics(images: Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of each channel, of pixels in [0, 1]; 1 for a constant channel."""
    counts = torch.stack([torch.bincount(images[:, channel].flatten(), minlength=256) for channel in range(3)]).double()
    levels = torch.arange(256, dtype=torch.float64) / 255
    total = counts.sum(1)
    mean = counts @ levels / total
    std = (counts @ levels.square() / total - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-3, std, 1.0)
    return tuple(round(m, 4) for m in mean.tolist()), tuple(round(s, 4) for s in std.tolist())


def _whiten(module: torch.nn.Module, images: Tensor, config: PretrainConfig) -> None:
    try:
        whiten_head(module.head, embed(module, images, config))  # type: ignore[arg-type]
    except ValueError as error:  # too few images, or a collapse: the encoder is still written
        warnings.warn(f"the encoder's outputs are not whitened: {error}", CollapseWarning, stacklevel=3)
