"""Export a fitted detector as one ONNX file, which runs without PyTorch."""

import importlib.util
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from skjepa import __version__
from skjepa._utils.files import check_output, written_whole
from skjepa.deployment.detector_module import CrossMargin, DetectorModule, Reading
from skjepa.detectors.encoder_choice import named_encoder, require_fingerprint
from skjepa.detectors.fitted_score import FittedScore
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.encoders.automatic import is_auto
from skjepa.encoders.encoder import Encoder
from skjepa.encoders.preprocessing import Preprocessing
from skjepa.extraction.batches.pooling import chosen_layers
from skjepa.pretraining.tables import VectorJEPA
from skjepa.scores.densities import GaussianDensity, NearestRows
from skjepa.scores.layered import LayeredScore

METADATA = "skjepa"
"""Key in the metadata of the file that holds everything beside the arithmetic, as JSON."""
FORMAT = 1

_LARGEST = 2_000_000_000  # bytes, a little below the limit of one protobuf message
_AGREES = 1e-5  # relative difference between torch and onnxruntime that rounding explains
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_OTHERWISE = "Otherwise run the saved detector without export, for example by `skjepa serve`"


class ExportError(ValueError):
    """Report that a part of a detector cannot be exported; the message names the part and an alternative."""


def export_onnx(detector: JEPAScoreDetector, path: str | os.PathLike) -> Path:
    """Write a fitted detector as an ONNX file, which `skjepa.runtime.OnnxDetector` runs without PyTorch.

    The file holds normalisation, encoder, layers, score and threshold. It works for every detector that makes no
    backward pass. The scores of the file are compared with those of PyTorch before it appears.

    Parameters
    ----------
    detector : JEPAScoreDetector
        Detector fitted with ``method="forward"``, or with "auto" where that chose it.
    path : path-like
        Name of the file, which must end in ``.onnx``. An existing file is replaced.

    Returns
    -------
    Path
        The file. Its inputs are ``images`` (n_samples, 3, H, W) in [0, 1] or ``rows`` (n_samples, d), and
        ``threshold``, by default the detector's ``offset_``. Its outputs are ``score``, ``decision`` (score minus
        threshold) and ``label`` (+1, -1), with folds also ``scores_by_model``.

    Raises
    ------
    ExportError
        The detector reads the Jacobian, has your own `reference`, or has an encoder that PyTorch cannot export.
    ImportError
        A package of the extra ``export`` is missing.
    """
    path = check_output(path, (".onnx",))
    _require_packages()
    models = _models_of(detector)
    readings = [_reading(detector, fitted) for fitted in detector.models_]
    margin = None if detector.fold_scores is None else CrossMargin(detector.fold_scores, detector.level)
    module = DetectorModule(readings, models, margin).eval()
    encoder, shape = readings[0][0], tuple(detector.models_[0].settings["input_shape"] or ())
    if (size := sum(tensor.nbytes for tensor in module.state_dict().values())) > _LARGEST:
        raise ExportError(
            f"the detector has {size / 1e9:.1f} GB, and an ONNX file holds at most 2 GB: choose a smaller encoder. "
            f"{_OTHERWISE}"
        )
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0), dtype=encoder.dtype)
    inputs = (x, torch.tensor(float(detector.offset_), dtype=torch.float64))
    program = _exported(module, inputs, encoder)
    about = _about(detector, encoder, shape)
    _with_default(program, "threshold", inputs[1].numpy())
    program.model.metadata_props[METADATA] = json.dumps(about)
    with written_whole(path) as partial:
        program.save(str(partial), external_data=False)
        _require_agreement(partial, module, inputs, about["input"])
    return path


def _require_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"export needs {', '.join(missing)}: pip install 'skjepa[export]'")


def _models_of(detector: Any) -> list[LayeredScore]:
    """Return the score model of each fold; raise ExportError for models without an ONNX form."""
    if not isinstance(detector, JEPAScoreDetector):
        raise ExportError(
            f"{type(detector).__name__} holds no encoder and cannot be exported: fit a "
            "JEPAScoreDetector(method='forward')"
        )
    if detector.tiles is not None:
        raise ExportError(f"tiles do not export: fit without them, on pictures of one size. {_OTHERWISE}")
    models = [fitted.model for fitted in detector.models_]
    for model, fitted in zip(models, detector.models_, strict=True):
        if not isinstance(model, LayeredScore) or model.volume_model is not None:
            raise ExportError(
                f"formula={detector.formula!r} with method {fitted.settings['method']!r} reads the Jacobian by "
                "backward passes, which ONNX does not have, so it cannot be exported: fit with method='forward' and "
                f"formula='joint'. {_OTHERWISE}"
            )
        if model.local is not None:
            raise ExportError(f"local=True cannot be exported: fit with local=False. {_OTHERWISE}")
        if not isinstance(model.neighbours, NearestRows | GaussianDensity):
            name = type(model.neighbours).__name__
            raise ExportError(
                f"reference={name} cannot be exported: fit with reference='knn' or 'gaussian'. {_OTHERWISE}"
            )
        if isinstance(model.neighbours, NearestRows) and model.neighbours.metric != "euclidean":
            raise ExportError(
                f"neighbours by the metric {model.neighbours.metric!r} cannot be exported: use the metric 'euclidean'. "
                f"{_OTHERWISE}"
            )
    return [model for model in models if isinstance(model, LayeredScore)]


def _reading(detector: JEPAScoreDetector, fitted: FittedScore) -> Reading:
    """Return the encoder of a model, after comparing its fingerprint, and the layers that are read from it."""
    encoder, settings = fitted.encoder or detector.encoder_, fitted.settings
    if encoder is None:  # fitted on an Extraction
        shape = settings["input_shape"] or ()
        if isinstance(detector.encoder, VectorJEPA) or (len(shape) == 1 and is_auto(detector.encoder)):
            raise ExportError(
                "this detector was fitted on an Extraction and lacks the trained encoder that made it: fit it on the "
                "rows, or fit again with encoder= that Encoder"
            )
        encoder = named_encoder(detector.encoder, settings["fingerprint"])
    require_fingerprint(encoder.fingerprint, settings["fingerprint"], f"encoder {encoder.name!r}")
    layers = chosen_layers(encoder, settings.get("layers"), tuple(settings["input_shape"] or ()))
    return encoder, layers, settings.get("layers_dtype") or "float32"


def _exported(module: DetectorModule, inputs: tuple, encoder: Encoder) -> Any:
    names = ["images" if encoder.preprocessing is not None else "rows", "threshold"]
    outputs = ["score", "decision", "label", *([] if module.margin is None else ["scores_by_model"])]
    batch = torch.export.Dim("batch", min=1)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter warns about versions and its own choices
            return torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                verbose=False,
                input_names=names,
                output_names=outputs,
                dynamic_shapes={"x": {0: batch}, "threshold": {}},
                custom_translation_table={torch.ops.aten.asinh.default: _asinh},
            )
    except Exception as error:  # torch.export raises nearly anything on what it cannot trace
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ExportError(
            f"the encoder {encoder.name!r} cannot be written as ONNX ({reason}): choose an encoder whose forward pass "
            f"torch.export can trace, such as the bundled one or a model of timm. {_OTHERWISE}"
        ) from error


def _asinh(x: Any) -> Any:
    """Write asinh by other operations, because onnxruntime has none in double precision."""
    import onnxscript

    op: Any = onnxscript.opset18
    size = op.Abs(x)
    return op.Mul(
        op.Sign(x),
        op.Log(op.Add(size, op.Sqrt(op.Add(op.Mul(size, size), op.CastLike(op.Constant(value_float=1.0), x))))),
    )


def _with_default(program: Any, name: str, value: np.ndarray) -> None:
    """Give an input of the graph a default value."""
    import onnx_ir

    graph = program.model.graph
    (found,) = (item for item in graph.inputs if item.name == name)
    found.const_value = onnx_ir.tensor(value, name=name)
    graph.register_initializer(found)


def _about(detector: JEPAScoreDetector, encoder: Encoder, shape: tuple[int, ...]) -> dict[str, Any]:
    scores, folds = detector.calibration_scores_, detector.fold_scores
    return {
        "format": FORMAT,
        "skjepa": __version__,
        "detector": type(detector).__name__,
        "fingerprint": detector.models_[0].settings["fingerprint"],
        "input": "images" if encoder.preprocessing is not None else "rows",
        "shape": list(shape),
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "pictures": None if encoder.preprocessing is None else _picture_steps(encoder.preprocessing),
        "threshold": float(detector.offset_),
        "target_fpr": detector.target_fpr,
        "calibration_scores": None if scores is None else [float(score) for score in scores],
        "fold_scores": [[float(score) for score in fold] for fold in folds]
        if folds is not None and detector.is_cross_calibrated
        else None,
    }


def _picture_steps(preprocessing: Preprocessing) -> list[dict[str, Any]] | None:
    """Return the steps that prepare a PIL image before it is divided by 255; None where Pillow alone cannot do them."""
    if preprocessing.normalises_first or not isinstance(preprocessing.resize, Compose):
        return None
    steps: list[dict[str, Any]] = []
    filters = {InterpolationMode.BICUBIC: "BICUBIC", InterpolationMode.BILINEAR: "BILINEAR"}
    for step in preprocessing.resize.transforms:
        if isinstance(step, Resize) and step.interpolation in filters and step.max_size is None:
            size = [step.size] if isinstance(step.size, int) else list(step.size)
            steps.append({"resize": size, "filter": filters[step.interpolation]})
        elif isinstance(step, CenterCrop):
            steps.append({"crop": list(step.size)})
        elif "ToTensor" not in type(step).__name__:
            return None
    return steps


def _require_agreement(path: Path, module: DetectorModule, inputs: tuple, name: str) -> None:
    """Raise ExportError where onnxruntime and torch disagree on a batch, or on a batch of another size."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class but this
        raise ExportError(
            f"onnxruntime cannot run the exported model ({error}). It has some operations in single precision alone: "
            f"load the encoder with precision='float32'. {_OTHERWISE}"
        ) from error
    for n in (len(inputs[0]), 1):
        x = inputs[0][:n]
        found = session.run(["score"], {name: x.numpy()})[0]
        with torch.no_grad():
            expected = module(x, inputs[1])[0].numpy()
        if not np.allclose(found, expected, rtol=10 * _AGREES, atol=10 * _AGREES):
            raise ExportError(
                f"the exported model scores {found.tolist()}, and torch {expected.tolist()}, so it is not written. "
                f"{_OTHERWISE}"
            )
