"""Train the bundled image encoder on CIFAR-10's training images, without their labels.

    python -m benchmarks.bundled_encoder.train --data CIFAR10_DIR --out skjepa/encoders/bundled --checkpoint-dir DIR

CIFAR10_DIR holds train/<class>/*.jpg or .png. The run is checkpointed after every epoch; `--resume` continues it and
gives the same weights as an uninterrupted run. `--after RUN.pt` starts from the weights of a complete run, as a second
stage with a schedule of its own (and another `--seed`). `--seconds` trains as many epochs, with the whole schedule, as
so much time takes: two epochs tell how long one lasts. DIR/encoder.safetensors is usable from the first epoch on; OUT
receives the weights of the complete run, their scored output whitened on the training images.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from skjepa.encoders.isotropy import whiten_head
from skjepa.encoders.networks import build_network, read_network, save_network
from skjepa.pretraining.config import PretrainConfig
from skjepa.pretraining.images import RECIPE
from skjepa.pretraining.loop import embed, pretrain

IMAGE_SIZE = 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # CIFAR-10's training pixels
NETWORK = {"widths": [32, 64, 128, 256], "depths": [1, 1, 1, 1], "n_components": 64, "n_pooled": 3}


def recipe(epochs: int, seed: int) -> PretrainConfig:
    """The settings of the shipped weights; MODEL_CARD.md says which others were tried."""
    return replace(RECIPE, epochs=epochs, seed=seed, view_size=24, mean=MEAN, std=STD)


def read_class_folders(root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images (n, 3, 32, 32) and class indices (n,) of root/<class>/*, in sorted order."""
    paths = sorted(path for path in root.glob("*/*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not paths:
        sys.exit(f"no images under {root}/<class>/")
    classes = sorted({path.parent.name for path in paths})
    pixels = np.empty((len(paths), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for row, path in zip(pixels, paths, strict=True):
        with Image.open(path) as image:
            row[:] = image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    labels = torch.tensor([classes.index(path.parent.name) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def earlier_epochs(checkpoint: Path) -> list[int]:
    """Epochs of the earlier stages, as the encoder file beside the checkpoint of the last one has them."""
    training = read_network(checkpoint.parent / "encoder.safetensors")[1]["training"]
    return [*training.get("earlier_epochs", []), int(training["epochs_done"])]


class _FirstEpochs(Exception):
    """Two epochs are done."""


def within(seconds: float, train: Callable[..., object], config: PretrainConfig) -> int:
    """Train for so long, decay included; returns the epochs. Until the decay begins nothing depends on their number."""
    ends = [time.perf_counter()]

    def stop_after_two(record: dict[str, float]) -> None:
        ends.append(time.perf_counter())
        if record["epoch"] == 2:
            raise _FirstEpochs

    with suppress(_FirstEpochs):
        train(replace(config, epochs=1_000_000), resume=False, then=stop_after_two)
    # Epochs of views in full size take longer; the file at the end takes a few seconds.
    per_pixel = (IMAGE_SIZE / config.view_size) ** 2 if config.view_size else 1.0
    of_an_epoch = (ends[2] - ends[1]) * (1 + config.full_size_share * (per_pixel - 1))
    left = 0.95 * (seconds - (ends[2] - ends[0]))
    epochs = max(3, 2 + int(left / of_an_epoch))
    train(replace(config, epochs=epochs), resume=True)
    return epochs


def main(arguments_given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--after", type=Path, help="checkpoint of an earlier stage")
    parser.add_argument("--seconds", type=float, help="in the place of --epochs")
    parser.add_argument("--limit", type=int, help="images, to try the script")
    arguments = parser.parse_args(arguments_given)
    if arguments.seconds is not None and arguments.resume:
        parser.error("--seconds begins a run: --resume goes on with one of so many --epochs")

    config = recipe(arguments.epochs, arguments.seed)
    directory = arguments.checkpoint_dir
    for folder in (directory, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    images = read_class_folders(arguments.data / "train")[0][: arguments.limit]
    torch.manual_seed(config.seed)
    network = build_network("convnet", **NETWORK)

    def save(path: Path, config: PretrainConfig, epochs_done: float, **more: float) -> None:
        training = {"data": "CIFAR-10 train", "images": len(images), "epochs_done": epochs_done, **more}
        if arguments.after is not None:
            training["earlier_epochs"] = earlier_epochs(arguments.after)
        metadata = {"image_size": IMAGE_SIZE, "mean": MEAN, "std": STD, "training": training | asdict(config)}
        save_network(network, path, metadata=metadata)

    def train(config: PretrainConfig, *, resume: bool, then: Callable[[dict[str, float]], None] | None = None) -> None:
        def keep(_, record: dict[str, float]) -> None:
            save(directory / "encoder.safetensors", config, record["epoch"])
            with (directory / "log.jsonl").open("a") as log:
                print(json.dumps(record), file=log)
            if then is not None:
                then(record)

        pretrain(
            network,
            images,
            config,
            device=arguments.device,
            checkpoint=directory / "run.pt",
            resume=resume,
            initial_checkpoint=arguments.after,
            on_epoch=keep,
            progress=True,
        )

    if arguments.seconds is None:
        train(config, resume=arguments.resume)
    else:
        left = arguments.seconds - (time.perf_counter() - started)
        config = replace(config, epochs=within(left, train, config))
    trained = whiten_head(network.head, embed(network, images, config))
    ratio = round(trained, 2)
    save(arguments.out / "encoder.safetensors", config, config.epochs, participation_ratio_before_whitening=ratio)


if __name__ == "__main__":
    main()
