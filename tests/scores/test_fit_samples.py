import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skjepa.scores.fit_samples import SeenSamples

RNG = np.random.default_rng(0)


def sample(n=50, k=4):
    return RNG.normal(size=(n, k)), RNG.normal(size=n)


def nothing(mask):
    raise AssertionError("all samples are known")


@given(st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
def test_a_seen_sample_is_known_at_any_scale_but_for_rounding(scale, offset):
    z, s = sample()
    z = scale * (z + offset)
    seen = SeenSamples(z, s, {"density": np.arange(50.0)})
    shaken = z * (1 + 1e-7 * RNG.uniform(-1, 1, size=z.shape))
    recalled = seen.recall(shaken[::-1], s[::-1], nothing)
    np.testing.assert_array_equal(recalled["density"], np.arange(50.0)[::-1])


@pytest.mark.parametrize(("dz", "ds"), [(0.01, 0.0), (0.0, 0.01)])
def test_of_others_is_asked_for_new_samples_alone(dz, ds):
    z, s = sample()
    seen = SeenSamples(z, s, {"density": np.arange(50.0)})
    new = np.arange(50) % 3 == 0
    asked = []

    def of_others(mask):
        asked.append(mask)
        return {"density": -1.0 - np.flatnonzero(mask)}

    recalled = seen.recall(z + dz * new[:, np.newaxis], s + ds * new, of_others)
    np.testing.assert_array_equal(asked, [new])
    np.testing.assert_array_equal(recalled["density"], np.where(new, -1.0 - np.arange(50), np.arange(50)))


@pytest.mark.parametrize("z", [np.zeros((5, 3)), np.ones((5, 1))])
def test_embeddings_that_do_not_vary(z):
    seen = SeenSamples(z, np.zeros(5), {"density": np.arange(5.0)})
    assert np.isin(seen.recall(z, np.zeros(5), nothing)["density"], np.arange(5.0)).all()


def learned(in_sample, out_of_fold, weights):
    z, s = sample()
    return SeenSamples.learn(z, s, in_sample, out_of_fold, weights).values


def test_values_keep_their_order_and_are_distributed_as_of_unseen_samples():
    in_sample, out_of_fold = {"density": RNG.normal(50, 1, size=50)}, {"density": RNG.normal(size=50)}
    values = learned(in_sample, out_of_fold, {"density": 1.0})["density"]
    np.testing.assert_array_equal(np.argsort(values), np.argsort(in_sample["density"]))
    np.testing.assert_allclose(np.sort(values), np.sort(out_of_fold["density"]))
    assert np.ptp(learned({"density": np.zeros(50)}, out_of_fold, {"density": 1.0})["density"]) == 0


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10))
def test_so_does_their_sum(seed, weight):
    rng = np.random.default_rng(seed)
    in_sample, out_of_fold = (
        {name: rng.normal(mean, rng.uniform(0.5, 2), size=50) for name in ("volume", "density", "direction")}
        for mean in (9, 0)
    )
    weights = {"volume": 0.5, "density": weight, "direction": 2.0}

    def total(values):
        return sum(weights[name] * value for name, value in values.items())

    values = learned(in_sample, out_of_fold, weights)
    np.testing.assert_array_equal(np.argsort(total(values)), np.argsort(total(in_sample)))
    np.testing.assert_allclose(np.sort(total(values)), np.sort(total(out_of_fold)))
    np.testing.assert_array_equal(np.argsort(values["direction"]), np.argsort(in_sample["direction"]))


def test_a_density_that_does_not_count_carries_nothing():
    in_sample = {"density": np.zeros(50), "direction": RNG.normal(size=50)}
    weights = {"density": 0.0, "direction": 1.0}
    np.testing.assert_array_equal(learned(in_sample, in_sample, weights)["density"], 0)
