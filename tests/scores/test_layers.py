"""The chain of layers: its formula in plain NumPy, units, constants, and that what follows tells only what is new."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import normalize

from skjepa.scores.layers import LayerChain

RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(300, 6)) * [1, 10, 0.1, 1, 5, 2] + 4
LAYERS = {"a": FIRST, "b": np.tanh(FIRST @ RNG.normal(size=(6, 4))) + 0.1 * RNG.normal(size=(300, 4))}


def distance(fitted_on, rows):
    return LedoitWolf().fit(fitted_on).mahalanobis(rows)


@pytest.mark.parametrize("is_unit", [True, False])
def test_formula(is_unit):
    fit, new = ({name: rows[part] for name, rows in LAYERS.items()} for part in (slice(200), slice(200, None)))
    found = LayerChain(is_unit=is_unit).fit(fit).surprises(new)

    def u(rows, name):
        scaled = rows[name] / fit[name].std(axis=0)
        return normalize(scaled) if is_unit else scaled

    spread = {name: np.sqrt(u(fit, name).var(axis=0).sum()) for name in LAYERS}
    both = [np.hstack([u(rows, name) / spread[name] for name in LAYERS]) for rows in (fit, new)]
    np.testing.assert_allclose(found["a"], np.sqrt(distance(u(fit, "a"), u(new, "a"))), rtol=1e-6)
    np.testing.assert_allclose(found["b"], distance(*both) - distance(u(fit, "a"), u(new, "a")), rtol=1e-5, atol=1e-8)


def test_units_do_not_matter():
    scaled = {name: 1e3 * rows for name, rows in LAYERS.items()}
    for is_unit in (True, False):
        plain = LayerChain(is_unit=is_unit).fit(LAYERS).surprises(LAYERS)
        again = LayerChain(is_unit=is_unit).fit(scaled).surprises(scaled)
        for name in LAYERS:
            np.testing.assert_allclose(plain[name], again[name], rtol=1e-6)


def test_a_layer_that_breaks_with_the_one_before_is_surprising():
    layers = {"a": FIRST, "b": FIRST[:, :3] / FIRST[:, :3].std(axis=0) + 0.1 * RNG.normal(size=(300, 3))}
    chain = LayerChain(is_unit=False).fit(layers)
    usual = chain.surprises(layers)["b"]
    mixed = chain.surprises({"a": layers["a"], "b": layers["b"][::-1]})  # each is normal, not together
    assert np.median(mixed["b"]) > np.quantile(usual, 0.99)
    np.testing.assert_array_equal(mixed["a"], chain.surprises(layers)["a"])


def test_constant_channels():
    constant = {"a": np.column_stack([FIRST, np.full(300, 7.0)]), "b": np.zeros((300, 2))}
    chain = LayerChain(is_unit=True).fit(constant)
    assert all(np.isfinite(values).all() for values in chain.surprises(constant).values())
    moved = {"a": constant["a"] + np.eye(7)[6], "b": constant["b"]}
    assert np.median(chain.surprises(moved)["a"]) > np.median(chain.surprises(constant)["a"])


def test_huge_values_stay_numbers():
    chain = LayerChain(is_unit=False).fit(LAYERS)
    far = chain.surprises({name: np.full((1, rows.shape[1]), 1e300) for name, rows in LAYERS.items()})
    assert all(np.isfinite(values).all() for values in far.values())
    assert far["a"][0] > 1e10
