"""Results that were once wrong without a word, by kind; docs/guide/reliability.md has them as a table.

Each is held against an oracle of its own: the value by plain torch, another order, another format, or new normal data.
"""

import copy
import sys
import threading
import types
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from pyod.models.knn import KNN
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.svm import OneClassSVM
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from skjepa import (
    EmbeddingDetector,
    Extraction,
    JEPAScoreDetector,
    KNNDetector,
    MahalanobisDetector,
    VectorJEPA,
    embed,
    extract,
    extract_layers,
    jepa_score,
    load_encoder,
)
from skjepa.data import as_source, read_image
from skjepa.encoders import EncoderError
from skjepa.encoders.derivative import derivative_error
from skjepa.evaluation.benchmark import default_detectors
from skjepa.extraction import SettingsMismatchError
from skjepa.inspection.diagnosis import near_copies
from skjepa.jacobian import jacobian
from skjepa.jacobian.precision import arithmetic
from skjepa.jacobian.repeated_backward import _ManyPasses, prepared
from skjepa.scores import GaussianDensity


def flagged(detector, X) -> float:
    return float((detector.predict(X) == -1).mean())


def auroc(detector, normal, odd) -> float:
    scores = np.concatenate([detector.score_samples(normal), detector.score_samples(odd)])
    return float(roc_auc_score(np.repeat([1, 0], [len(normal), len(odd)]), scores))


class TestFitSamples:
    @pytest.mark.parametrize("seed", range(4))
    def test_linear_encoders_take_no_new_sample_for_one_of_the_fit(self, seed):
        torch.manual_seed(seed)
        X = np.random.default_rng(0).normal(size=(200, 6))
        assert flagged(JEPAScoreDetector(load_encoder(nn.Linear(6, 16))).fit(X), X + 50) == 1

    def test_one_junk_row_hides_nothing(self):
        rng = np.random.default_rng(1)
        Y = rng.normal(size=(300, 5))
        Y[0] = 1e9
        detector = JEPAScoreDetector().fit(Y)
        assert flagged(detector, rng.normal(size=(100, 5)) + 6) > 0.9
        assert flagged(detector, rng.normal(size=(300, 5))) < 0.25

    @pytest.mark.parametrize(
        "detector",
        [
            KNN(n_neighbors=1),
            LocalOutlierFactor(n_neighbors=2, novelty=True),
            KernelDensity(bandwidth=0.3),
            OneClassSVM(gamma=2),
            None,
        ],
    )
    def test_neighbours_leave_a_fit_sample_out_of_its_own(self, detector):
        X, new = np.random.default_rng(0).normal(size=(500, 4)), np.random.default_rng(1).normal(size=(1000, 4))
        made = KNNDetector(n_neighbors=1) if detector is None else EmbeddingDetector(detector)
        made.fit(X)
        assert 0.04 < flagged(made, new) < 0.2
        assert flagged(made, X) == 0.1  # the fit samples, known again


@pytest.mark.parametrize(("n", "d"), [(20, 2), (20, 100), (20, 500), (50, 50), (100, 200), (200, 500), (500, 300)])
def test_few_rows_against_many_features(n, d):
    found = []
    # In two dimensions the best score there is, the length of a row, has from 0.72 to 0.87 by the draw: a mean of ten.
    for seed in range(10 if d == 2 else 1):
        rng = np.random.default_rng(seed)
        X, normal, odd = rng.normal(size=(n, d)), rng.normal(size=(300, d)), 2 * rng.normal(size=(100, d))
        detector = JEPAScoreDetector().fit(X)
        found.append((auroc(detector, normal, odd), flagged(detector, normal)))
    area, share = np.mean(found, axis=0)
    assert area > (0.75 if d == 2 else 0.95)
    assert share < 0.35


def test_a_network_for_few_rows_is_trained_with_a_warning():
    X = np.random.default_rng(0).normal(size=(60, 200))
    with pytest.warns(UserWarning, match=r"60 distinct rows.*may overfit"):
        VectorJEPA(n_steps=5).fit(X)
    assert VectorJEPA().fit(X).history_ == []


class TestCopies:
    ROWS = np.random.default_rng(0).normal(size=(200, 6))
    NEW = np.random.default_rng(1).normal(size=(600, 6))

    @pytest.mark.parametrize("make", [JEPAScoreDetector, KNNDetector, MahalanobisDetector])
    def test_exact_copies_count_once(self, make):
        once = make().fit(self.ROWS)
        often = make().fit(np.tile(self.ROWS, (5, 1)))
        assert often.n_samples_fit_ == 200
        np.testing.assert_allclose(often.score_samples(self.NEW), once.score_samples(self.NEW))
        assert flagged(often, self.NEW) < 0.2

    @pytest.mark.parametrize("make", [JEPAScoreDetector, KNNDetector, MahalanobisDetector])
    def test_one_more_row_does_not_change_that(self, make):
        others = self.NEW[:1]
        once = make().fit(np.concatenate([self.ROWS, others]))
        often = make().fit(np.concatenate([np.tile(self.ROWS, (5, 1)), others]))
        assert often.n_samples_fit_ == 201
        np.testing.assert_allclose(often.score_samples(self.NEW), once.score_samples(self.NEW))

    def test_equal_rows_that_few_values_bring_about_count_as_often_as_they_occur(self):
        X = np.random.default_rng(0).poisson(2.0, size=(300, 4)).astype(float)
        how_often = np.bincount(np.unique(X, axis=0, return_counts=True)[1])
        assert how_often[1] > how_often[2] > 0
        for make in (JEPAScoreDetector, KNNDetector, MahalanobisDetector):
            assert make().fit(X).n_samples_fit_ == 300
        made = extract(load_encoder(nn.Identity()), X, method="forward")
        assert MahalanobisDetector().fit(made).n_samples_fit_ == 300

    def test_near_copies_are_said(self):
        X = np.repeat(self.ROWS, 2, axis=0) + 1e-3 * np.random.default_rng(2).normal(size=(400, 6))
        with pytest.warns(UserWarning, match="near copies of a few others"):
            detector = JEPAScoreDetector().fit(X)
        assert "near copies" in [finding.name for finding in detector.diagnose().findings]
        assert near_copies(self.ROWS) < 0.05

    def test_groups_stay_together(self):
        series = np.repeat(np.arange(200), 4)
        X = self.ROWS[series] + 1e-3 * np.random.default_rng(2).normal(size=(800, 6))
        for seed in range(3):
            detector = KNNDetector(n_neighbors=1, target_fpr=0.1, calibration=0.5, random_state=seed)
            assert flagged(detector.fit(X, groups=series), self.NEW) < 0.2  # and no warning
            with pytest.warns(UserWarning, match="near copies"):
                detector.fit(X)
            assert flagged(detector, self.NEW) > 0.5
        with pytest.raises(ValueError, match="groups must hold one value per sample: X has 800 samples, groups 3"):
            KNNDetector().fit(X, groups=[1, 2, 3])

    @pytest.mark.parametrize(("n", "noise"), [(2, 1e-3), (5, 1e-3), (20, 1e-2), (30, 1e-3)])
    def test_near_copies_however_many(self, n, noise):
        rng = np.random.default_rng(3)
        X = np.repeat(self.ROWS, n, axis=0)
        assert near_copies(X + noise * rng.normal(size=X.shape)) > 0.9
        for other in (rng.normal(size=(300, 2)), rng.exponential(size=(300, 3)), rng.uniform(size=(300, 1))):
            assert near_copies(other) < 0.1
        with pytest.warns(UserWarning, match="near copies"):
            KNNDetector().fit(X + noise * rng.normal(size=X.shape))

    def test_groups_joined_by_a_copy_are_one(self):
        X, groups = np.concatenate([self.ROWS, self.ROWS]), np.repeat([0, 1], 200)
        with pytest.raises(ValueError, match="at least 3 different samples or groups; got 1"):
            KNNDetector(calibration=0.5).fit(X, groups=groups)

    def test_minus_zero_is_zero(self):
        X = np.where(self.ROWS > 0, 0.0, self.ROWS)
        assert KNNDetector().fit(np.concatenate([X, np.where(X == 0, -0.0, X)])).n_samples_fit_ == len(
            np.unique(X, axis=0)
        )

    def test_an_extraction_carries_contents(self, tmp_path):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
        for name in ("a.png", "b.png", "c.png"):
            (picture if name != "c.png" else picture.rotate(90)).save(tmp_path / name)
        made = extract("bundled", tmp_path, method="sketch", n_directions=1)
        assert made.contents[0] == made.contents[1] != made.contents[2] != ""
        again = Extraction.load(made.save(tmp_path / "kept"))
        joined = Extraction.concat([again[1:], again[:1]])
        assert joined.contents.tolist() == made.contents[[1, 2, 0]].tolist()


class FrozenPart(nn.Module):
    def __init__(self, n_components):
        super().__init__()
        self.a, self.b = nn.Linear(3, n_components), nn.Linear(n_components, n_components)

    def forward(self, x):
        with torch.no_grad():
            length = x.norm(dim=1, keepdim=True)
            frozen = torch.tanh(self.a(x / (1 + length)))
        return self.b(frozen) + 0.01 * x.sum(1, keepdim=True)


class Rounded(nn.Linear):
    """A straight-through estimator."""

    def forward(self, x):
        return super().forward(x + (torch.round(x) - x).detach())


class Detached(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.tanh(super().forward(x)).detach()


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x**2

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Custom(nn.Linear):
    def forward(self, x):
        return super().forward(WrongBackward.apply(x))


class TestDerivatives:
    @pytest.mark.parametrize("n_components", [2, 8])  # K below D, K above D: reverse mode, forward mode
    def test_what_runs_without_gradients_is_differentiated(self, n_components):
        torch.manual_seed(0)
        module, x = FrozenPart(n_components).double(), torch.randn(1, 3, dtype=torch.float64)
        steps = 1e-6 * torch.eye(3, dtype=torch.float64)
        with torch.no_grad():
            true = torch.stack([(module(x + step) - module(x - step))[0] / 2e-6 for step in steps], dim=1)
        for mode in ("reverse", "forward"):
            torch.testing.assert_close(jacobian(module, x, mode=mode)[1][0], true, rtol=1e-6, atol=1e-8)
        measured = extract(load_encoder(module, precision="float64"), x.numpy()).singular_values[0, 0]
        np.testing.assert_allclose(measured, torch.linalg.svdvals(true), rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("module", [Rounded(4, 3), Detached(4, 3), Custom(4, 3), Custom(4, 9)])
    @pytest.mark.parametrize("precision", ["float32", "float64"])
    def test_another_derivative_than_the_outputs_is_refused(self, module, precision):
        encoder = load_encoder(copy.deepcopy(module), precision=precision)
        with pytest.raises(EncoderError, match="differs from finite differences of its output"):
            extract(encoder, np.random.default_rng(0).normal(size=(5, 4)))
        assert embed(encoder, np.zeros((2, 4))).shape == (2, module.out_features)  # values are right

    @pytest.mark.parametrize("scale", [1.0, 100.0, 1000.0])
    def test_a_small_wrong_part_beside_a_large_right_one(self, scale):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

            def forward(self, x):
                return torch.cat([scale * torch.tanh(self.a(x)), torch.tanh(self.b(x)).detach()], 1)

        with pytest.raises(EncoderError, match="differs from finite differences of its output"):
            extract(load_encoder(Net(), precision="float64"), np.zeros((2, 6)))

    @pytest.mark.parametrize("precision", ["float32", "float64"])
    def test_data_far_from_zero(self, precision):
        """Random inputs alone would tell nothing: there both encoders are flat."""

        class Far(nn.Linear):
            def forward(self, x):
                return torch.tanh(super().forward((x - 1000) / 100) + self.more(x))

            def more(self, x):
                return 0

        class FarAndDetached(Far):
            def more(self, x):
                return super(Far, self).forward((x - 1000) / 100).detach()

        torch.manual_seed(0)
        X = 1000 + 100 * np.random.default_rng(0).normal(size=(3, 6))
        assert np.isfinite(jepa_score(load_encoder(Far(6, 4), precision=precision), X)).all()
        with pytest.raises(EncoderError, match="differs from finite differences of its output"):
            jepa_score(load_encoder(FarAndDetached(6, 4), precision=precision), X)

    @pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "ghostnet_100"])
    @pytest.mark.parametrize("colour", [0, 127, None])
    def test_families_pass_on_pictures_of_one_colour_too(self, name, colour):
        size = {"img_size": 64} if "vit" in name else {}
        module = timm.create_model(name, num_classes=0, **size).eval()
        images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
        images = images if colour is None else np.full_like(images, colour)
        made = extract(load_encoder(module, image_size=64), images, method="sketch", n_directions=1)
        assert np.isfinite(made.singular_values).all()

    def test_smooth_and_piecewise_networks_pass(self):
        torch.manual_seed(0)
        for activation in (nn.Tanh(), nn.ReLU(), nn.GELU()):
            net = nn.Sequential(nn.Linear(20, 64), activation, nn.Linear(64, 64), activation, nn.Linear(64, 8))
            assert derivative_error(net, torch.randn(20)) < 0.02


class Plain(nn.Module):
    gain = 1.0

    def __init__(self, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.settings, self._hidden, self.steps, self.offset = {"scale": scale}, 1.0, [1.0], torch.zeros(6)

    def forward(self, x):
        y = self.linear(x)
        for step in self.steps:
            y = y * step
        return torch.tanh(y * self._hidden + self.offset) * self.settings["scale"] * self.gain


def _half(module, inputs, output):
    return output / 2


CHANGES = {
    "dict": lambda module: module.settings.update(scale=5.0),
    "list": lambda module: module.steps.append(2.0),
    "private": lambda module: setattr(module, "_hidden", 3.0),
    "tensor": lambda module: module.offset.add_(1.0),
    "class attribute": lambda module: setattr(module, "gain", 2.0),
    "hook": lambda module: module.linear.register_forward_hook(_half),
    "hook of a lambda": lambda module: module.linear.register_forward_hook(lambda m, i, o: 3 * o),
    "forward": lambda module: setattr(module, "forward", types.MethodType(lambda self, x: self.linear(x), module)),
    "forward of a layer": lambda module: setattr(module.linear, "forward", lambda x: x[:, :1].expand(-1, 6)),
}


class TestFingerprint:
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_whatever_changes_the_output_changes_it(self, change, tmp_path):
        X = np.random.default_rng(0).normal(size=(5, 4))
        one, other = Plain(), Plain()
        other.load_state_dict(one.state_dict())
        first, second = load_encoder(one), load_encoder(other)
        assert first.fingerprint == second.fingerprint
        extract(first, X, store=tmp_path / "store")
        change(other)
        assert not np.allclose(embed(second, X), embed(first, X))
        assert first.fingerprint != second.fingerprint
        with pytest.raises(SettingsMismatchError):
            extract(second, X, store=tmp_path / "store")

    def test_edited_class(self, monkeypatch):
        encoder = load_encoder(Plain())
        before = encoder.fingerprint
        monkeypatch.setattr(Plain, "forward", lambda self, x: self.linear(x))
        assert encoder.fingerprint != before

    def test_what_a_hook_collects_does_not_move_it(self):
        module, seen = Plain(), []
        module.linear.register_forward_hook(lambda m, i, output: seen.append(output))
        encoder = load_encoder(module)
        before = encoder.fingerprint
        embed(encoder, np.zeros((2, 4)))
        assert seen
        assert encoder.fingerprint == before

    def test_what_cannot_be_described_is_good_for_one_session(self):
        made = [Plain(), Plain()]
        made[1].load_state_dict(made[0].state_dict())
        for module in made:
            module.stream = (i for i in range(3))
        with pytest.warns(UserWarning, match="stream of the encoder 'Plain' cannot be described"):
            prints = [load_encoder(module).fingerprint for module in made]
        assert prints[0] != prints[1]


def run_together(*functions) -> list:
    """What each returns, all at once."""
    results = [None] * len(functions)

    def run(i):
        results[i] = functions[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


SETTINGS = {"scale": 1.0}
SHIFT = 0.0


class ByGlobals(nn.Linear):
    steps = (1.0,)

    def forward(self, x):
        return super().forward(x) * SETTINGS["scale"] * self.steps[0]


def shifted(module, x):
    return module(x) + SHIFT


class Scaling:
    """A hook with a number of its own."""

    def __init__(self, k):
        self.k = k

    def hook(self, module, inputs, output):
        return output * self.k


class TestFingerprintOfWhatLiesOutside:
    def prints(self, monkeypatch, make, *change):
        encoder = make()
        before, values = encoder.fingerprint, embed(encoder, np.ones((1, 4)))
        (monkeypatch.setitem if isinstance(change[0], dict) else monkeypatch.setattr)(*change)
        assert not np.allclose(embed(encoder, np.ones((1, 4))), values)
        return before, encoder.fingerprint

    def test_globals_and_class_attributes(self, monkeypatch):
        def make():
            return load_encoder(ByGlobals(4, 3))

        this = sys.modules[__name__]
        for change in ((SETTINGS, "scale", 2.0), (ByGlobals, "steps", (3.0,))):
            before, after = self.prints(monkeypatch, make, *change)
            assert before != after
        linear = nn.Linear(4, 3)
        before, after = self.prints(monkeypatch, lambda: load_encoder(linear, output=shifted), this, "SHIFT", 1.0)
        assert before != after

    def test_what_is_shared(self):
        a, b = nn.Linear(4, 4), nn.Linear(4, 4)
        made = [nn.Sequential(a, nn.Tanh(), b, nn.Tanh(), last) for last in (a, b)]
        assert len({load_encoder(module).fingerprint for module in made}) == 2
        tied = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)]
        tied[1].load_state_dict(tied[0].state_dict())
        for module, i in zip(tied, (0, 1), strict=True):
            with torch.no_grad():
                module[1].weight.copy_(module[0].weight)
            module[2].weight = module[i].weight
        assert len({load_encoder(module).fingerprint for module in tied}) == 2

    def test_numbers_of_hooks(self):
        def by_closure(k):
            settings = {"k": k}
            return lambda module, inputs, output: output * settings["k"]

        for make in (lambda k: Scaling(k).hook, by_closure):
            prints = []
            for k in (2.0, 3.0):
                module = nn.Linear(4, 3)
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
                module.register_forward_hook(make(k))
                prints.append(load_encoder(module).fingerprint)
            assert prints[0] != prints[1]


class TestThreads:
    def test_random_views(self):
        torch.manual_seed(0)
        images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
        net = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2))
        encoder = load_encoder(net, image_size=32)

        def measure():
            return extract(encoder, images, views=4, random_state=0, memory_budget=10**9).singular_values

        alone = measure()
        for together in run_together(*[measure] * 4):
            np.testing.assert_allclose(together, alone, rtol=1e-5)

    def test_two_encoders_of_one_module(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.BatchNorm1d(32), nn.Linear(32, 8))
        net(torch.rand(64, 3, 8, 8))
        net.train()
        one = load_encoder(net, image_size=8)
        other = load_encoder(net, image_size=8, mean=(0.4,) * 3, std=(0.3,) * 3, precision="float64")
        X = np.random.default_rng(0).random((200, 8, 8, 3))
        right = embed(one, X)
        _, found = run_together(
            lambda: [embed(other, X[:3]) for _ in range(60)], lambda: [embed(one, X) for _ in range(30)]
        )
        for values in found:
            np.testing.assert_allclose(values, right, atol=1e-5)
        assert net.training
        assert all(part.training for part in net.modules())

    def test_arithmetic_nests(self):
        switch = torch.backends.cuda.matmul
        before = switch.fp32_precision
        with arithmetic("tf32"):
            with arithmetic("float32"):
                assert switch.fp32_precision == "ieee"
            assert switch.fp32_precision == "tf32"
        assert switch.fp32_precision == before

    def test_arithmetic_of_another_thread_is_waited_for(self):
        seen = []

        def use(precision, products):
            for _ in range(200):
                with arithmetic(precision):
                    seen.append(torch.backends.cuda.matmul.fp32_precision == products)

        run_together(lambda: use("tf32", "tf32"), lambda: use("float32", "ieee"))
        assert all(seen)


class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.f = nn.Conv2d(3, 8, 3), nn.Linear(8 * 14 * 14, 5)

    def forward(self, x):
        return self.f(F.relu(self.c(x)).view(len(x), -1))


class PixelTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.o = nn.Linear(3, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.o(torch.tanh(self.l(x.permute(0, 2, 3, 1))).flatten(1, -2).mean(1))


def spectrum(module, X) -> np.ndarray:
    """Singular values by plain autograd, sample by sample."""
    x = torch.from_numpy(X).float().movedim(-1, 1).contiguous()
    rows = [torch.autograd.functional.jacobian(module, x[i : i + 1])[0].flatten(1) for i in range(len(x))]
    return np.stack([torch.linalg.svdvals(row.double()).numpy() for row in rows])


class TestModules:
    IMAGES = np.random.default_rng(0).random((3, 16, 16, 3))

    @pytest.mark.parametrize("make", [Viewing, PixelTokens])
    def test_a_users_module_keeps_its_layout(self, make):
        module = make().eval()
        measured = extract(load_encoder(module, image_size=16), self.IMAGES).singular_values[:, 0]
        np.testing.assert_allclose(measured, spectrum(module, self.IMAGES), rtol=1e-3, atol=1e-5)

    def test_caches_of_another_precision_do_not_stay(self):
        module = timm.create_model("levit_128s", num_classes=0).eval()
        x = torch.rand(1, 3, 224, 224)
        with torch.no_grad():
            before = module(x)
            embed(load_encoder(module, image_size=224, precision="float64"), np.zeros((1, 224, 224, 3)))
            torch.testing.assert_close(module(x), before)

    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_weights_that_a_hook_computes_come_back(self):
        module = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        nn.utils.weight_norm(module[0])
        module.calls = [0]
        x = torch.rand(2, 6)
        before = module(x).detach()
        found = embed(load_encoder(module, precision="float64"), x.double().numpy())
        np.testing.assert_allclose(found, before, atol=1e-6)
        assert module[0].weight.dtype == torch.float32
        assert torch.equal(module(x), before)

    @pytest.mark.parametrize(
        "wrap",
        [
            nn.DataParallel,
            torch.optim.swa_utils.AveragedModel,
            lambda module: torch.compile(module, backend="aot_eager"),
            lambda module: nn.Sequential(torch.compile(module, backend="aot_eager")),
            lambda module: nn.DataParallel(torch.compile(module, backend="aot_eager")),
        ],
        ids=["DataParallel", "average", "compiled", "compiled inside", "both"],
    )
    def test_wrappers_of_training(self, wrap):
        module = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 5)).eval()
        plain = jepa_score(load_encoder(module, image_size=16), self.IMAGES)
        np.testing.assert_allclose(jepa_score(load_encoder(wrap(module), image_size=16), self.IMAGES), plain, rtol=1e-4)

    def test_an_exported_program_and_a_script(self):
        module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
        batch = torch.export.Dim("batch", min=1, max=4096)
        program = torch.export.export(module, (torch.rand(4, 4),), dynamic_shapes=({0: batch},))
        X = np.random.default_rng(0).normal(size=(3, 4))
        np.testing.assert_allclose(
            jepa_score(load_encoder(program.module()), X), jepa_score(load_encoder(module), X), rtol=1e-4
        )
        with pytest.raises(TypeError, match=r"load_encoder\(program\.module\(\)"):
            load_encoder(program)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            script = torch.jit.script(module)
        with pytest.raises(TypeError, match=r"TorchScript.* give the module that it was made from"):
            load_encoder(script)

    def test_a_first_layer_in_place(self):
        made = [nn.Sequential(nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(768, 4)) for inplace in (False, True)]
        made[1].load_state_dict(made[0].state_dict())
        plain, in_place = (extract(load_encoder(module, image_size=16), self.IMAGES) for module in made)
        np.testing.assert_array_equal(in_place.singular_values, plain.singular_values)
        np.testing.assert_array_equal(in_place.embeddings, plain.embeddings)

    def test_a_layer_before_one_in_place(self):
        made = [
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(784, 3))
            for inplace in (False, True)
        ]
        made[1].load_state_dict(made[0].state_dict())
        plain, in_place = (embed(load_encoder(module, image_size=16, output="0"), self.IMAGES) for module in made)
        np.testing.assert_allclose(in_place, plain, rtol=1e-5)
        layers = [extract_layers(load_encoder(module, image_size=16), self.IMAGES, ["0"])["0"] for module in made]
        np.testing.assert_allclose(layers[1].singular_values, layers[0].singular_values, rtol=1e-4)

    def test_channels_last_of_a_users_layer(self):
        class Interleaved(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 7, 4, 4)
                self.turn = nn.Identity()

            def forward(self, x):
                return self.turn(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2))

        module = Interleaved()
        found = embed(load_encoder(module, image_size=16, output="turn"), self.IMAGES)
        np.testing.assert_allclose(found, embed(load_encoder(module, image_size=16), self.IMAGES), rtol=1e-5)

    def test_nested_state_comes_back(self):
        class Counting(nn.Linear):
            def __init__(self):
                super().__init__(4, 3)
                self.state = {"calls": {"n": 0}, "seen": [[]], "sums": np.zeros(2)}

            def forward(self, x):
                self.state["calls"]["n"] += 1
                self.state["seen"][0].append(1)
                self.state["sums"] += 1
                return super().forward(x)

        module = Counting()
        X = np.random.default_rng(0).normal(size=(30, 4))
        detector = JEPAScoreDetector(load_encoder(module)).fit(X)
        assert module.state["calls"] == {"n": 0}
        assert module.state["seen"] == [[]]
        assert module.state["sums"].tolist() == [0, 0]
        detector.predict(X)  # with the fingerprint of the fit

    def test_checkpointing_left_on(self):
        net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0, depth=2).eval()
        X = np.random.default_rng(0).random((2, 32, 32, 3))
        plain = extract(load_encoder(net, image_size=32), X, method="sketch", n_directions=4)
        net.set_grad_checkpointing(True)
        left_on = extract(load_encoder(net, image_size=32), X, method="sketch", n_directions=4)
        np.testing.assert_allclose(left_on.singular_values, plain.singular_values, rtol=1e-4)
        assert net.grad_checkpointing


class TestPreparedPasses:
    CONV = nn.Conv2d(3, 6, 3).requires_grad_(False)
    NORM = nn.BatchNorm2d(6).eval().requires_grad_(False)

    def before(self, x):
        h = self.CONV(x)
        h.register_hook(lambda gradient: gradient * 0.5)
        return self.NORM(h).flatten(1)[:, :2]

    def after(self, x):
        h = self.CONV(x)
        y = self.NORM(h)
        h.register_hook(lambda gradient: gradient * 0.5)
        return y.flatten(1)[:, :2]

    @pytest.mark.parametrize("function", [before, after])
    def test_hooks_between_are_heard(self, function):
        x = torch.rand(2, 3, 8, 8, requires_grad=True)
        expected, found = (
            torch.autograd.grad(g(x).sum(), x)[0]
            for g in (lambda v: function(self, v), prepared(lambda v: function(self, v)))
        )
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("stride", [2, (2,), [2], (2, 1)])
    @pytest.mark.parametrize("dilation", [1, (2,)])
    def test_sizes_as_torch_takes_them(self, stride, dilation):
        def function(x):
            return torch.tanh(F.conv2d(x, self.CONV.weight, stride=stride, dilation=dilation)).flatten(1)[:, :3]

        x = torch.rand(1, 3, 9, 9)
        expected = torch.autograd.functional.jacobian(function, x)[0].flatten(1)
        torch.testing.assert_close(jacobian(function, x, mode="reverse")[1][0], expected)

    def test_functions_that_differentiate_inside_or_checkpoint(self):
        linear = nn.Linear(3, 3).requires_grad_(False)
        functions = [
            lambda x: torch.func.vmap(torch.func.grad(lambda v: F.gelu(linear(v)).sum()))(x),
            lambda x: checkpoint(lambda v: F.gelu(linear(v)), x, use_reentrant=False),
        ]
        x = torch.rand(1, 3)
        for function in functions:
            expected = torch.autograd.functional.jacobian(function, x)[0, :, 0]
            torch.testing.assert_close(jacobian(function, x, mode="reverse")[1][0], expected)

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_batch_normalisation_of_one_sample(self, memory_format):
        """torch 2.14's own backward pass on the CPU is wrong there for some strides."""
        norm = nn.BatchNorm2d(6).eval().double().requires_grad_(False)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)

        def function(x):
            return norm(x[:, :, ::2].to(memory_format=memory_format)).flatten(1)

        def with_a_fallback(x):
            if _rules_are_on():
                raise RuntimeError("no rule works here")
            return function(x)

        x = torch.rand(1, 6, 4, 3, dtype=torch.float64)
        x.requires_grad_(True)
        u = torch.randn(1, 36, dtype=torch.float64)
        found, fallen_back = (
            torch.autograd.grad((prepared(g)(x) * u).sum(), x)[0].flatten() for g in (function, with_a_fallback)
        )
        with torch.no_grad():
            flat = [
                ((function(x + step) - function(x - step)) * u).sum() / 2e-6
                for step in 1e-6 * torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape)
            ]
        for gradient in (found, fallen_back):
            torch.testing.assert_close(gradient, torch.stack(flat), rtol=1e-6, atol=1e-8)


def _rules_are_on() -> bool:
    modes = torch.overrides._get_current_function_mode_stack()
    return bool(modes) and isinstance(modes[-1], _ManyPasses)


class TestPixels:
    def test_no_picture_is_scaled_by_its_own_content(self):
        grey = np.tile(np.arange(256, dtype=np.int32), (64, 1))
        brighter = grey.copy()
        brighter[0, 0] = 256
        with pytest.warns(UserWarning, match="less than half of the range"):
            source = as_source([Image.fromarray(grey), Image.fromarray(brighter)])
        with pytest.warns(UserWarning, match="less than half of the range"):
            a, b = (np.asarray(source.load(i)).astype(int) for i in range(2))
        assert np.abs(a - b)[1:].max() <= 1

    def test_twelve_bits_keep_their_levels(self, tmp_path):
        levels = np.tile((np.arange(256) * 16).astype(np.uint16), (64, 1))
        Image.fromarray(levels).save(tmp_path / "x.png")
        expected = np.rint(np.arange(256) * 16 / 4095 * 255)
        for X in (tmp_path, [tmp_path / "x.png"], [Image.fromarray(levels)]):
            source = as_source(X, value_range=(0, 4095))
            np.testing.assert_array_equal(np.asarray(source.load(0))[0, :, 0], expected)
        assert as_source(tmp_path, value_range=(0, 4095)).content(0) != as_source(tmp_path).content(0)
        with pytest.warns(UserWarning, match="value_range"):
            read_image(tmp_path / "x.png")
        for wrong in ((1, 1), (1, 2, 3), "12", (0, np.inf)):
            with pytest.raises(ValueError, match="value_range must be two"):
                as_source(tmp_path, value_range=wrong)

    def test_a_range_of_a_dataset(self):
        levels = np.tile((np.arange(256) * 16).astype(np.uint16), (8, 1))
        source = as_source(Pictures([Image.fromarray(levels)]), value_range=(0, 4095))
        assert len(np.unique(np.asarray(source.load(0)))) > 200

    def test_white_is_zero(self, tmp_path):
        values = np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (8, 1))
        Image.fromarray(65535 - values).save(tmp_path / "x.tif", tiffinfo={262: 0})
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "x.tif"))[0, :, 0], values[0] >> 8)

    def test_units_of_the_mean(self):
        with pytest.raises(ValueError, match=r"Divide mean and std of pixels in 0 \.\.\. 255 by 255"):
            load_encoder("bundled", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
        with pytest.raises(TypeError, match=r"mean must be three numbers.*got 0\.5: write \(0\.5, 0\.5, 0\.5\)"):
            load_encoder(nn.Flatten(), image_size=8, mean=0.5, std=0.5)

    def test_pages_of_a_file(self, tmp_path):
        pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
        with pytest.warns(UserWarning, match="several pages: only the first is read"):
            assert read_image(tmp_path / "x.tif").getpixel((0, 0)) == (255, 0, 0)


class TestFolders:
    def picture(self, path: Path, shade=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (shade, 0, 0)).save(path)

    def test_droppings_are_no_images(self, tmp_path):
        for name in ("0.png", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/0.png", ".hidden.png", "@eaDir/0.jpg"):
            self.picture(tmp_path / name)
        (tmp_path / "._0.png").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
        (tmp_path / "labels.csv").write_text("a,b\n")
        assert as_source(tmp_path).ids.tolist() == ["0.png"]

    @pytest.mark.parametrize("suffix", [".jp2", ".tga", ".qoi", ".pcx", ".PNG"])
    def test_what_pillow_reads_is_taken(self, tmp_path, suffix):
        self.picture(tmp_path / f"a{suffix}")
        assert len(as_source(tmp_path)) == 1
        assert as_source(tmp_path).load(0).size == (16, 16)

    def test_links_are_followed_but_not_round(self, tmp_path):
        self.picture(tmp_path / "far" / "e.png")
        self.picture(tmp_path / "set" / "a.png")
        (tmp_path / "set" / "more").symlink_to(tmp_path / "far")
        (tmp_path / "far" / "back").symlink_to(tmp_path / "set")
        assert as_source(tmp_path / "set").ids.tolist() == ["a.png", "more/e.png"]

    def test_what_is_passed_over_is_counted(self, tmp_path):
        self.picture(tmp_path / "a.png")
        for name in ("b.dcm", "c.dcm", "d.heic"):
            (tmp_path / name).write_bytes(b"x")
        with pytest.warns(UserWarning, match=r"3 files below .* are ignored.*2 with \.dcm, 1 with \.heic"):
            as_source(tmp_path)

    def test_two_names_that_look_alike(self, tmp_path):
        odd = tmp_path.joinpath(b"\xff.png".decode(errors="surrogateescape"))
        self.picture(odd, 1)
        self.picture(tmp_path / r"\xff.png", 2)
        source = as_source([odd, tmp_path / r"\xff.png"])
        assert len(set(source.ids)) == 2
        assert len(set(as_source(tmp_path).ids)) == 2

    def test_the_users_warnings_are_said_once(self, tmp_path, monkeypatch):
        said = []
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            monkeypatch.setattr(warnings, "showwarning", lambda message, *a, **k: said.append(str(message)))
            for i in range(10):
                self.picture(tmp_path / f"{i}.png")
                read_image(tmp_path / f"{i}.png")
                warnings.warn("of the user's", stacklevel=1)
        assert said == ["of the user's"]


class TestTables:
    def test_text_in_the_first_column(self):
        table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)) * [1, 100, 1], columns=list("abc"))
        table["a"] = table["a"].astype(str)  # numbers, read as text
        detector = JEPAScoreDetector(random_state=0).fit(table)
        assert detector.n_features_in_ == 3
        with pytest.raises(ValueError, match="feature names"):
            detector.predict(table[["a", "c", "b"]])

    @pytest.mark.parametrize("columns", [["kind", "a"], ["a", "kind"]])
    def test_words_are_refused_wherever_they_stand(self, columns):
        table = pd.DataFrame({"kind": ["x", "y"] * 30, "a": np.arange(60.0)})
        with pytest.raises(ValueError, match="could not convert string to float: 'x'"):
            KNNDetector().fit(table[columns])

    def test_a_constant_has_no_unit(self):
        rng = np.random.default_rng(0)
        for constant, changed in ((3.0, 3.1), (3e-9, 3.1e-9), (3e9, 3.1e9), (0.0, 1e-3)):
            X = np.column_stack([rng.normal(size=(100, 2)), np.full(100, constant)])
            new = rng.normal(size=(50, 3))
            new[:, 2] = changed
            for detector in (JEPAScoreDetector(), MahalanobisDetector()):
                assert flagged(detector.fit(X), new) == 1, (constant, detector)

    def test_broken_dependence(self):
        a, c = np.random.default_rng(0).normal(size=(2, 300))
        detector = MahalanobisDetector().fit(np.column_stack([a, a, c]))
        assert detector.predict([[1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]).tolist() == [-1, 1]

    def test_every_sensor_stood_still(self):
        X = np.ones((60, 2))
        for detector in (KNNDetector(), MahalanobisDetector()):
            assert detector.fit(X).predict([[1.0, 9.0], [1.0, 1.0]]).tolist() == [-1, 1]

    def test_far_from_zero(self):
        rng = np.random.default_rng(0)
        X, normal, odd = rng.normal(size=(300, 20)), rng.normal(size=(200, 20)), 1.6 * rng.normal(size=(200, 20))
        near, far = (auroc(KNNDetector().fit(X + shift), normal + shift, odd + shift) for shift in (0, 1e8))
        assert abs(near - far) < 1e-3

    def test_a_cell_that_overflows_is_named(self):
        X = np.random.default_rng(0).normal(size=(200, 3))
        X[0, 1] = 1.7e308
        with pytest.raises(ValueError, match="too large to square: column 1"):
            MahalanobisDetector().fit(X)

    def test_masked_cells(self):
        values = np.random.default_rng(0).normal(size=(200, 3))
        masked = np.ma.array(values, mask=values > 1.5)
        with pytest.raises(TypeError, match="masked"):
            MahalanobisDetector().fit(masked)
        with pytest.raises(TypeError, match="masked"):
            MahalanobisDetector().fit(list(masked))
        assert MahalanobisDetector().fit(np.ma.array(values)).n_features_in_ == 3  # nothing is masked


class Bytes(Dataset):
    """Pictures as torchvision decodes them."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return torch.from_numpy(self.images[i]).movedim(2, 0), 0


class Pictures(Bytes):
    def __getitem__(self, i):
        return self.images[i]


class TestForeignData:
    @pytest.mark.parametrize(
        ("X", "hint"),
        [
            (DataLoader(TensorDataset(torch.zeros(4, 3, 32, 32))), "give its dataset"),
            ({"x": 1}, "give an array, a list, a folder or a torch Dataset"),
        ],
        ids=["DataLoader", "dict"],
    )
    def test_what_to_give_instead(self, X, hint):
        for refuse in (JEPAScoreDetector().fit, as_source):
            with pytest.raises(TypeError, match=hint):
                refuse(X)

    def test_uint8_tensors_of_a_dataset(self):
        images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
        np.testing.assert_array_equal(embed("bundled", Bytes(images)), embed("bundled", images))

    def test_names_of_a_dataset_are_not_its_content(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), dtype=np.uint8)
        first, second = (
            extract("bundled", as_source(Bytes(part), ids=["a", "b", "c"]), store=tmp_path / "store") for part in images
        )
        assert not np.allclose(first.embeddings, second.embeddings)


class TestSmaller:
    def test_few_components_of_many(self):
        Z = np.random.default_rng(0).normal(size=(3000, 5))
        assert np.isfinite(GaussianDensity(2).fit(Z).score_samples(Z)).all()
        wide = np.random.default_rng(0).normal(size=(4, 30))
        assert GaussianDensity(6).fit(wide).components_.shape == (6, 30)

    def test_detectors_fitted_on_an_extraction_can_be_shown(self, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        JEPAScoreDetector().fit(extract("bundled", images, method="sketch")).save(tmp_path / "d")
        loaded = JEPAScoreDetector.load(tmp_path / "d")
        assert "fit" in dir(loaded)
        for name in dir(loaded):
            hasattr(loaded, name)  # no property ends in an error of another kind than AttributeError
        assert "JEPAScoreDetector" in loaded._repr_html_()

    def test_no_flow_without_zuko(self, monkeypatch):
        assert "flow" in default_detectors()
        monkeypatch.setattr("skjepa.evaluation.benchmark.find_spec", lambda name: None)
        assert "flow" not in default_detectors()
