"""Train the bundled image encoder on CIFAR-10's training images, without their labels.

    python -m benchmarks.bundled_encoder.train --data CIFAR10_DIR --out skjepa/encoders/bundled --checkpoint-dir DIR

CIFAR10_DIR holds train/<class>/*.jpg or .png. The run is checkpointed after every epoch; `--resume` continues it and
gives the same weights as an uninterrupted run. `--after RUN.pt` starts from the weights of a complete run, as a second
stage with a schedule of its own (and another `--seed`). DIR/encoder.safetensors is usable from the first epoch on; OUT
receives the weights of the complete run, their scored output whitened on the training images.
"""

import argparse
import json
import sys
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--after", type=Path, help="checkpoint of an earlier stage")
    arguments = parser.parse_args()

    config = recipe(arguments.epochs, arguments.seed)
    directory = arguments.checkpoint_dir
    for folder in (directory, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    images, _ = read_class_folders(arguments.data / "train")
    torch.manual_seed(config.seed)
    network = build_network("convnet", **NETWORK)

    def save(path: Path, epochs_done: float, **more: float) -> None:
        training = {"data": "CIFAR-10 train", "images": len(images), "epochs_done": epochs_done, **more}
        if arguments.after is not None:
            training["earlier_epochs"] = earlier_epochs(arguments.after)
        metadata = {"image_size": IMAGE_SIZE, "mean": MEAN, "std": STD, "training": training | asdict(config)}
        save_network(network, path, metadata=metadata)

    def keep(_, record: dict[str, float]) -> None:
        save(directory / "encoder.safetensors", record["epoch"])
        with (directory / "log.jsonl").open("a") as log:
            print(json.dumps(record), file=log)

    pretrain(
        network,
        images,
        config,
        device=arguments.device,
        checkpoint=directory / "run.pt",
        resume=arguments.resume,
        initial_checkpoint=arguments.after,
        on_epoch=keep,
        progress=True,
    )
    trained = whiten_head(network.head, embed(network, images, config))
    save(arguments.out / "encoder.safetensors", config.epochs, participation_ratio_before_whitening=round(trained, 2))


if __name__ == "__main__":
    main()
