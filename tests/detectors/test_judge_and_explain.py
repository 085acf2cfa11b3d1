"""One pass for a judgement and its explanation."""

import numpy as np
import pytest
from oracles import random_images

from skjepa import JEPAScoreDetector, VectorJEPA


@pytest.mark.parametrize("kind", ["images", "tiles", "rows", "folds"])
def test_as_judge_and_explain(kind, monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 5))
    if kind == "rows":
        detector, X = JEPAScoreDetector(calibration=0.3).fit(rows), rows[:4] + 3
    elif kind == "folds":
        jepa = VectorJEPA(n_components=3, random_state=0)
        detector, X = JEPAScoreDetector(jepa, calibration=2).fit(rows), rows[:4] + 3
    else:
        settings = {"tiles": 32} if kind == "tiles" else {}
        side = 48 if kind == "tiles" else 32
        images = rng.integers(0, 256, size=(16, side, side, 3), dtype=np.uint8)
        detector, X = JEPAScoreDetector(method="forward", calibration=0.3, **settings).fit(images), images[:3]
    alone, explained = detector.judge(X), detector.explain(X)
    passes = []
    terms_of = detector._terms_of
    monkeypatch.setattr(detector, "_terms_of", lambda X: (passes.append(1), terms_of(X))[1])
    judged, told = detector.judge_and_explain(X)
    assert passes == [1]
    np.testing.assert_array_equal(judged.scores, alone.scores)
    np.testing.assert_array_equal(judged.p_values, alone.p_values)
    assert list(judged.reasons) == list(alone.reasons)
    for name, values in explained.parts.items():
        np.testing.assert_array_equal(told.parts[name], values)
    assert (told.columns is None) == (explained.columns is None)


def test_of_images_that_cannot_be_read(tmp_path):
    from PIL import Image

    for i, image in enumerate(random_images(12)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    detector = JEPAScoreDetector(method="forward", on_error="skip").fit(tmp_path)
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="3.png"):
        judged, told = detector.judge_and_explain(tmp_path)
    broken = judged.ids.tolist().index("3.png")
    assert np.isnan(judged.scores[broken])
    assert "3.png" in judged.reasons[broken] or "read" in judged.reasons[broken]
    assert len(told) == 12
