"""The suites of curation and of one class against nine."""

import numpy as np
import pytest
from oracles import conv_net, random_images
from PIL import Image

from benchmarks.accuracy import curation, junk, one_class
from skjepa import KNNDetector, MahalanobisDetector, load_encoder
from skjepa.data.sources import as_source
from skjepa.data.splits import repeats


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """CIFAR-10 of two classes, and three sets of junk; every image is another."""
    folder = tmp_path_factory.mktemp("data")
    pictures = iter(random_images(260, side=8))
    for place, n in {"cifar10/train": 60, "cifar10/test": 20}.items():
        for name in ("cat", "dog"):
            (folder / place / name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(next(pictures)).save(folder / place / name / f"{i}.png")
    for name in ("mnist", "fashion_mnist", "tiny_imagenet"):
        (folder / name).mkdir()
        for i in range(20):
            Image.fromarray(next(pictures)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def pool(data):
    return junk.Pool(data, junk.Sizes(run=40, reference=30, test=10, runs=2), seed=0)


def test_runs_share_no_image_and_hold_the_junk_asked_for(pool):
    mixes = {share: [pool.mix(run, share) for run in range(2)] for share in (0.0, 0.1, 0.3)}
    for share, runs in mixes.items():
        for mix in runs:
            assert len(mix.places) == len(mix.labels) == 40
            assert mix.is_junk.mean() == pytest.approx(share)
            assert (mix.labels[~mix.is_junk] == pool.labels[mix.places[~mix.is_junk]]).all()
            assert set(mix.labels) == {0, 1}
    [one, other] = mixes[0.3]
    assert not set(one.places) & set(other.places)
    assert not set(pool.reference) & {*one.places, *other.places, *mixes[0.0][0].places, *mixes[0.0][1].places}
    assert set(mixes[0.1][0].places[mixes[0.1][0].is_junk]) < set(one.places[one.is_junk])
    alone = pool.one_kind(1, "uniform noise")
    assert alone.is_junk.sum() == 3
    assert set(alone.places[alone.is_junk]) == set(other.places[-3:])
    assert len(set(alone.places)) == 40
    used = [pool.images[i] for i in np.unique([*one.places, *other.places, *pool.reference])]
    assert len(used) == 110
    assert repeats({"fit": as_source(used), "test": as_source(pool.test)}) == []
    assert len({image.tobytes() for image in used}) == 110


def test_removal_is_judged_by_who_is_ranked_last(pool):
    mix = pool.mix(0, 0.3)
    best = -1.0 * mix.is_junk + np.linspace(0, 0.1, 40)
    found = curation.removed({"best": best, "worst": -best}, mix)
    assert found["best"]["auroc"] == found["best"]["precision"] == 1
    assert set(found["best"]["recall_by_kind"].values()) == {1}
    assert found["best"]["by_share_kept"]["0.5"] == {"precision": pytest.approx(12 / 20), "recall": 1}
    assert found["best"]["by_share_kept"]["0.7"] == {"precision": 1, "recall": 1}
    assert found["worst"]["auroc"] == found["worst"]["precision"] == 0
    assert found["worst"]["by_share_kept"]["0.7"] == {"precision": 0, "recall": 0}


def test_a_probe_gains_by_what_is_left_out(pool):
    rng = np.random.default_rng(0)
    mix = pool.mix(0, 0.3)
    features = rng.normal(size=(len(pool.images), 2))
    clean = mix.places[~mix.is_junk]
    features[clean, 0] += 6.0 * mix.labels[~mix.is_junk]
    places = mix.places[mix.is_junk]
    # Junk lies where the other class does.
    features[places, 0] += 6.0 * (1 - mix.labels[mix.is_junk])
    test = np.repeat([[0.0, 0.0], [6.0, 0.0]], 50, axis=0) + rng.normal(size=(100, 2)), np.repeat([0, 1], 50)
    ids = np.arange(40).astype(str)
    scores = {curation.JOINT: -1.0 * mix.is_junk, curation.JEPA: 1.0 * mix.is_junk, curation.RANDOM: rng.random(40)}
    found = curation.probed(scores, ids, mix, features, test)
    rows = found["0.7"]
    assert rows[curation.RANDOM]["over_random"] == 0
    assert rows[curation.JOINT]["over_random"] > 0.1
    assert rows[curation.JOINT]["rarest_class_kept"] == 1
    assert found["0.3"][curation.JEPA]["accuracy"] < 0.1
    per_class = [name for name in rows if name.endswith("per class")]
    assert per_class
    assert all(rows[name]["rarest_class_kept"] > 0.4 for name in per_class)


def test_means_and_intervals_over_runs():
    found = curation.summary([{"a": {"b": 1.0}}, {"a": {"b": 3.0}}])["a"]["b"]
    assert found["mean"] == 2
    assert found["high"] - 2 == pytest.approx(12.706, abs=1e-3)  # t of one degree of freedom, standard error 1
    assert found["low"] == pytest.approx(4 - found["high"])


def test_each_class_in_turn_is_normal(data):
    classes = one_class.read_classes(data / "cifar10", one_class.Sizes(fit=20, calibration=5, test=10), seed=0)
    assert {name: {split: len(part) for split, part in parts.items()} for name, parts in classes.items()} == {
        name: {"fit": 20, "calibration": 5, "test": 10} for name in ("cat", "dog")
    }
    groups = {f"{name} {split}": as_source(part) for name, parts in classes.items() for split, part in parts.items()}
    contents = [image.tobytes() for parts in classes.values() for part in parts.values() for image in part]
    assert len(set(contents)) == len(contents) == sum(map(len, groups.values()))
    rivals = {"kNN": KNNDetector(), "Mahalanobis": MahalanobisDetector()}
    common = {"encoder": load_encoder(conv_net(), image_size=32), "random_state": 0}
    found = one_class.judged(classes, common, rivals)
    assert set(found["classes"]["cat"]["kNN"]) == {"all", "dog"}
    assert found["classes"]["cat"]["kNN"]["all"] == found["classes"]["cat"]["kNN"]["dog"]
    means = [found["classes"][name]["Mahalanobis"]["all"] for name in ("cat", "dog")]
    assert found["detectors"]["Mahalanobis"]["mean"] == pytest.approx(np.mean(means))
    assert set(found["false_positives"]["kNN"]) == {"0.01", "0.05", "0.1"}


def test_the_lead_over_classes_is_tested():
    rng = np.random.default_rng(0)
    rows = {str(i): {"ours": 0.8 + 0.01 * i, "theirs": 0.7, "chance": rng.random()} for i in range(10)}
    found = one_class.compared(rows, "ours")
    assert found["theirs"]["reference_ahead_on"] == 10
    assert found["theirs"]["reference_ahead_by"] == pytest.approx(0.145)
    assert found["theirs"]["adjusted_p_value"] == pytest.approx(2 * 2 / 2**10)  # all ten signs alike, two rivals
    assert found["ours"]["low"] < found["ours"]["mean"] == pytest.approx(0.845)
    assert "adjusted_p_value" not in found["ours"]
