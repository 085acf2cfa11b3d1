import json
import os
import re
import shutil
from inspect import signature
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from oracles import conv_net, random_images
from pyod.models.ecod import ECOD
from safetensors.numpy import load_file, save
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KernelDensity

from skjepa import EmbeddingDetector, JEPAScoreDetector, KNNDetector, MahalanobisDetector, VectorJEPA, load_encoder
from skjepa.encoders.encoder import FingerprintError, _Recipe
from skjepa.encoders.loading import BUNDLED
from skjepa.persistence.folder import (
    ARRAY_FILE,
    LARGEST_JSON,
    OBJECT_FILE,
    NotHereError,
    NotPortableError,
    _digest,
    portable,
    read_folder,
    write_folder,
)

RNG = np.random.default_rng(0)
ROWS, FRESH = RNG.normal(size=(80, 5)), RNG.normal(size=(30, 5))
JEPA = VectorJEPA(n_components=4, widths=(8,), n_steps=5)
CLASSES = np.repeat([0, 1], 40)

DETECTORS = {
    "default": JEPAScoreDetector(random_state=3),
    "folds": JEPAScoreDetector(JEPA, calibration=3, target_fpr=0.1),
    "few rows": JEPAScoreDetector(VectorJEPA(n_steps=0)),
    "density, gaussian": JEPAScoreDetector(JEPA, formula="density", reference="gaussian", calibration=0.5),
    "jepa": JEPAScoreDetector(JEPA, formula="jepa", floor=1e-3, rank=3),
    "mahalanobis": MahalanobisDetector(normalize=True, calibration=4, target_fpr=0.1),
    "relative": MahalanobisDetector(relative=True),
    "knn": KNNDetector(n_neighbors=3, metric="manhattan", calibration=0.3),
}


@pytest.fixture
def saved(tmp_path):
    detector = KNNDetector(calibration=0.5).fit(ROWS)
    return detector.save(tmp_path / "detector")


@pytest.mark.parametrize("name", DETECTORS)
def test_round_trip_is_exact(name, tmp_path):
    detector = DETECTORS[name].fit(ROWS, CLASSES)
    again = type(detector).load(detector.save(tmp_path / "detector"))
    np.testing.assert_array_equal(again.score_samples(FRESH), detector.score_samples(FRESH))
    np.testing.assert_array_equal(again.predict(ROWS), detector.predict(ROWS))
    assert again.offset_ == detector.offset_
    assert str(again.get_params()) == str(detector.get_params())
    if detector.calibration is not None:
        np.testing.assert_array_equal(again.p_values(FRESH), detector.p_values(FRESH))
    if isinstance(detector, JEPAScoreDetector):
        assert again.diagnose().to_dict() == detector.diagnose().to_dict()


def test_names_of_columns_come_back(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(ROWS, columns=list("abcde"))
    again = KNNDetector.load(KNNDetector().fit(frame).save(tmp_path / "detector"))
    assert again.feature_names_in_.tolist() == list("abcde")
    with pytest.raises(ValueError, match="feature names should match"):
        again.predict(frame[list("edcba")])


class TestEncoders:
    X = random_images(8)

    def test_a_named_one_is_written_as_its_name(self, tmp_path):
        detector = JEPAScoreDetector(contamination=0.2).fit(self.X)
        again = JEPAScoreDetector.load(detector.save(tmp_path / "detector"))
        assert (tmp_path / "detector" / ARRAY_FILE).stat().st_size < 300_000  # the weights lie in the package
        np.testing.assert_array_equal(again.score_samples(self.X), detector.score_samples(self.X))

    def test_one_of_a_module_is_asked_for(self, tmp_path):
        encoder = load_encoder(conv_net(), image_size=32)
        path = JEPAScoreDetector(encoder).fit(self.X).save(tmp_path / "detector")
        with pytest.raises(ValueError, match="give it as encoder="):
            JEPAScoreDetector.load(path)
        again = JEPAScoreDetector.load(path, encoder=load_encoder(conv_net(), image_size=32))
        assert again.encoder is again.encoder_
        np.testing.assert_array_equal(again.predict(self.X), JEPAScoreDetector(encoder).fit(self.X).predict(self.X))
        with pytest.raises(FingerprintError, match="is not the one that was saved"):
            JEPAScoreDetector.load(path, encoder=load_encoder(conv_net(seed=1), image_size=32))

    def test_other_weights_under_the_same_name_are_refused(self, tmp_path):
        path = JEPAScoreDetector().fit(self.X).save(tmp_path / "detector")
        text = (path / OBJECT_FILE).read_text()
        found = json.loads(text)["object"]["state"]["encoder_"]["state"]["fingerprint"]
        document = json.loads(text.replace(found, "0" * len(found)))
        document["sha256"] = _digest(document["object"], (path / ARRAY_FILE).read_bytes())
        (path / OBJECT_FILE).write_text(json.dumps(document))
        with pytest.raises(FingerprintError, match="expected 000000000000"):
            JEPAScoreDetector.load(path)

    def test_all_that_load_encoder_takes_is_written(self):
        assert set(signature(load_encoder).parameters) == set(_Recipe.__annotations__)

    def test_what_a_gpu_saved_loads_without_one(self, tmp_path):
        detector = JEPAScoreDetector(JEPA).fit(ROWS)
        detector.device = "cuda:7"
        again = JEPAScoreDetector.load(detector.save(tmp_path / "detector"))
        assert again.device == "auto"
        assert np.isfinite(again.score_samples(FRESH)).all()


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (JEPAScoreDetector(JEPA, reference=KernelDensity()), r"JEPAScoreDetector\.reference is KernelDensity"),
        (EmbeddingDetector(ECOD()), r"EmbeddingDetector\.detector is ECOD"),
        (KNNDetector(random_state=np.random.RandomState(0)), r"KNNDetector\.random_state"),
    ],
)
def test_what_only_pickle_could_write_is_named(detector, message, tmp_path):
    with pytest.raises(NotPortableError, match=message):
        detector.fit(ROWS).save(tmp_path / "detector")
    assert not list(tmp_path.iterdir())


class TestFolders:
    def test_unfitted(self, tmp_path):
        with pytest.raises(NotFittedError):
            KNNDetector().save(tmp_path / "detector")

    def test_a_saved_detector_is_replaced_and_nothing_else(self, saved, tmp_path):
        MahalanobisDetector().fit(ROWS).save(saved)
        assert isinstance(MahalanobisDetector.load(saved), MahalanobisDetector)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("years of work")
        (tmp_path / "link").symlink_to(saved)
        for name in ("other", "link"):
            with pytest.raises(FileExistsError, match="is not a saved detector"):
                KNNDetector().fit(ROWS).save(tmp_path / name)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["detector", "link", "other"]

    def test_no_pickle_inside(self, saved):
        assert {path.name for path in saved.iterdir()} == {OBJECT_FILE, ARRAY_FILE}
        json.loads((saved / OBJECT_FILE).read_text())

    def test_another_class(self, saved):
        with pytest.raises(ValueError, match="holds a KNNDetector, not a MahalanobisDetector"):
            MahalanobisDetector.load(saved)

    @pytest.mark.parametrize("version", [1, 99])
    def test_another_format(self, version, saved):
        document = json.loads((saved / OBJECT_FILE).read_text())
        (saved / OBJECT_FILE).write_text(json.dumps(document | {"format": version}))
        with pytest.raises(
            ValueError, match=f"has format {version}; this version of skjepa reads format 2: fit and save again"
        ):
            KNNDetector.load(saved)

    def test_missing(self, saved, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder"):
            KNNDetector.load(tmp_path / "nowhere")
        (saved / ARRAY_FILE).unlink()
        with pytest.raises(ValueError, match=r"has no file arrays\.safetensors"):
            KNNDetector.load(saved)

    def test_a_link_out_of_the_folder(self, saved, tmp_path):
        os.rename(saved / ARRAY_FILE, tmp_path / "elsewhere")
        (saved / ARRAY_FILE).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match="is not a saved detector"):
            KNNDetector.load(saved)

    @pytest.mark.parametrize("name", [OBJECT_FILE, ARRAY_FILE])
    def test_damage(self, name, saved):
        whole = (saved / name).read_bytes()
        for bad in (whole[: len(whole) // 2], b"", b"\x80\x04K\x01."):
            (saved / name).write_bytes(bad)
            with pytest.raises(ValueError, match="is damaged"):
                KNNDetector.load(saved)

    def test_a_number_changed_by_hand_is_found(self, saved):
        text = (saved / OBJECT_FILE).read_text()
        changed = re.sub(r'"offset_": (-?[0-9.e+-]+)', '"offset_": 123.5', text)
        assert changed != text
        (saved / OBJECT_FILE).write_text(changed)
        with pytest.raises(ValueError, match=r"is damaged: object\.json or arrays\.safetensors is not the file"):
            KNNDetector.load(saved)

    @pytest.mark.parametrize("name", ["os.system", "Popen", "builtins.eval", "Pipeline"])
    def test_no_class_but_ours_is_made(self, name, saved):
        text = (saved / OBJECT_FILE).read_text()
        (saved / OBJECT_FILE).write_text(text.replace('"NearestRows"', json.dumps(name)))
        with pytest.raises(ValueError, match="is damaged"):
            KNNDetector.load(saved)


def forged(path, change):
    """The folder after a change of its tree and of its arrays, with a right checksum."""
    document, arrays = json.loads((path / OBJECT_FILE).read_text()), load_file(path / ARRAY_FILE)
    change(document["object"]["state"], arrays)
    packed = save(arrays)
    document["sha256"] = _digest(document["object"], packed)
    (path / ARRAY_FILE).write_bytes(packed)
    (path / OBJECT_FILE).write_text(json.dumps(document))


class TestForgery:
    """The checksum is right: whoever writes a folder writes that, too. tests/faults tries thousands of these."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state, arrays: state.pop("offset_"), r"KNNDetector lacks offset_"),
            (lambda state, arrays: state.update(predict=1), r"KNNDetector has no attribute predict"),
            (lambda state, arrays: state.update(offset_="x"), r"KNNDetector\.offset_ is 'x', must be float"),
            (lambda state, arrays: state.update(n_features_in_=6), r"models_\[0\] has d = 5, which is 6 elsewhere"),
            (
                lambda state, arrays: state["models_"][0]["state"].update(metric="no"),
                r"models_\[0\] cannot be .*metric",
            ),
            (lambda state, arrays: state["models_"][0]["state"].update(n_neighbors=999), r"models_\[0\] cannot be"),
            (lambda state, arrays: state["models_"].clear(), r"there are 0 models, and scores of 1 folds"),
            (lambda state, arrays: arrays.popitem(), r"an unknown entry: \{'\$array'"),
            (lambda state, arrays: arrays.update({k: a[None] for k, a in arrays.items()}), r"has shape"),
        ],
    )
    def test_folder_and_attribute_are_named(self, change, message, saved):
        forged(saved, change)
        with pytest.raises(ValueError, match=rf"{saved} is damaged or forged: .*{message}"):
            KNNDetector.load(saved)

    def test_sizes_that_would_exhaust_memory(self, tmp_path):
        path = JEPAScoreDetector(JEPA).fit(ROWS).save(tmp_path / "detector")

        def widen(state, arrays):
            state["encoder_"]["state"]["module"]["state"].update(widths={"$tuple": [10**9, 10**9]})

        forged(path, widen)
        with pytest.raises(ValueError, match=r"encoder_\.module cannot be what was saved"):
            JEPAScoreDetector.load(path)

    def test_a_long_object_file_is_not_read(self, saved):
        with open(saved / OBJECT_FILE, "r+b") as file:
            file.truncate(LARGEST_JSON + 1)  # a hole, no bytes on the disk
        with pytest.raises(ValueError, match=r"object\.json has 67108865 bytes; at most 67108864"):
            KNNDetector.load(saved)

    @pytest.mark.parametrize(
        "text", ["[" * 10**6, '{"object": ' + "[" * 900 + "]" * 900 + "}", "NaN", '{"format": NaN}']
    )
    def test_json_that_is_too_deep_or_none(self, text, saved):
        (saved / OBJECT_FILE).write_text(text)
        with pytest.raises(ValueError, match=f"{saved} is damaged"):
            KNNDetector.load(saved)

    @pytest.mark.parametrize(
        ("recipe", "named"),
        [
            ({"source": "/etc/passwd"}, "'/etc/passwd'"),
            ({"source": "encoder.safetensors"}, "'encoder.safetensors'"),
            ({"source": "local-dir:/home"}, "'local-dir:/home'"),
            ({"source": "hf-hub:someone/model"}, "'hf-hub:someone/model'"),
            ({"weights": "/elsewhere/weights.bin"}, "'bundled' with weights '/elsewhere/weights.bin'"),
        ],
    )
    def test_an_encoder_elsewhere_is_not_looked_for(self, recipe, named, tmp_path, monkeypatch):
        path = JEPAScoreDetector().fit(TestEncoders.X).save(tmp_path / "detector")
        forged(path, lambda state, arrays: state["encoder_"]["state"]["recipe"].update(recipe))
        given = load_encoder("bundled")
        monkeypatch.setattr("skjepa.encoders.encoder.load_encoder", lambda *args, **options: pytest.fail("looked for"))
        with pytest.raises(NotHereError, match=f"names its encoder as {named}; paths .* give it as encoder="):
            JEPAScoreDetector.load(path)
        assert JEPAScoreDetector.load(path, encoder=given).encoder_ is given

    def test_nor_is_one_named_as_a_parameter(self, tmp_path):
        path = KNNDetector().fit(ROWS).save(tmp_path / "detector")
        encoder = load_encoder("bundled")
        path = JEPAScoreDetector(encoder).fit(JEPAScoreDetector(encoder).extract(TestEncoders.X)).save(path)
        forged(path, lambda state, arrays: state.update(encoder="hf-hub:someone/model"))
        with pytest.raises(NotHereError, match="hf-hub:someone/model"):
            JEPAScoreDetector.load(path)
        assert JEPAScoreDetector.load(path, encoder=encoder).encoder is encoder

    def test_an_encoder_in_a_file_is_given_by_its_path(self, tmp_path):
        shutil.copy(BUNDLED, tmp_path / "own.safetensors")
        detector = JEPAScoreDetector(load_encoder(tmp_path / "own.safetensors")).fit(TestEncoders.X)
        path = detector.save(tmp_path / "detector")
        with pytest.raises(NotHereError, match=r"own\.safetensors"):
            JEPAScoreDetector.load(path)
        again = JEPAScoreDetector.load(path, encoder=str(tmp_path / "own.safetensors"))
        np.testing.assert_array_equal(again.score_samples(TestEncoders.X), detector.score_samples(TestEncoders.X))


def test_what_could_not_be_read_is_not_written(tmp_path):
    detector = JEPAScoreDetector(JEPA).fit(ROWS)
    detector.on_error = "ignore"
    with pytest.raises(NotPortableError, match=r"JEPAScoreDetector\.on_error is 'ignore', must be Literal"):
        detector.save(tmp_path / "detector")
    assert not list(tmp_path.iterdir())


@portable
class Box:
    content: Any

    def __init__(self, content):
        self.content = content


leaves = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text()
leaves |= arrays(st.sampled_from([np.float64, np.int64, np.float32, bool]), array_shapes(min_side=0))
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text().filter(lambda key: not key.startswith("$")), inner)
        | inner.map(Box)
    ),
    max_leaves=10,
)


def same(a, b):
    if isinstance(a, Box):
        return type(b) is Box and same(a.content, b.content)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@settings(max_examples=60, deadline=None)
@given(trees)
def test_any_tree_comes_back_as_it_was(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("tree") / "saved"
    assert same(read_folder(write_folder(Box(tree), folder, versions={})).content, tree)
