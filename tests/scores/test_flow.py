import sys

import numpy as np
import pytest
from scipy.stats import multivariate_normal, spearmanr
from sklearn.base import clone

from skjepa.scores.flow import FlowDensity


def test_a_gaussian_of_any_scale_is_learned_in_nats():
    rng = np.random.default_rng(0)
    covariance = np.array([[4.0, 1.0], [1.0, 0.5]])
    rows, new = (rng.multivariate_normal([10, -3], covariance, size=n) for n in (600, 300))
    flow = FlowDensity(n_transforms=1, hidden=8, max_epochs=40, learning_rate=0.02).fit(rows)
    truth = multivariate_normal([10, -3], covariance).logpdf(new)
    found = flow.score_samples(new)
    assert found.mean() == pytest.approx(truth.mean(), abs=0.1)
    assert spearmanr(found, truth).statistic > 0.95
    assert max(flow.history_) > flow.history_[0]


def test_the_same_seed_gives_the_same_flow_and_leaves_torch_alone():
    import torch

    rows = np.random.default_rng(0).normal(size=(50, 3))
    torch.manual_seed(1)
    before = torch.rand(1)
    torch.manual_seed(1)
    flow = FlowDensity(max_epochs=2, hidden=8).fit(rows)
    assert torch.rand(1) == before
    assert np.array_equal(clone(flow).fit(rows).score_samples(rows), flow.score_samples(rows))


def test_bad_rows_are_named(monkeypatch):
    with pytest.raises(ValueError, match="at least ten rows"):
        FlowDensity().fit(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="NaN"):
        FlowDensity().fit(np.full((20, 2), np.nan))
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        FlowDensity(hidden=0).fit(np.zeros((20, 2)))
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ModuleNotFoundError, match=r"skjepa\[benchmark\]"):
        FlowDensity().fit(np.random.default_rng(0).normal(size=(20, 2)))
