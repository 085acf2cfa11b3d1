"""What the experiments of benchmarks/theory compute themselves: loss terms, intervals, saturation, bootstrap."""

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp
from sklearn.metrics import roc_auc_score

from benchmarks.theory.convergence import saturation, terms
from benchmarks.theory.toy import configuration, interval, make_toy, network
from benchmarks.theory.views_images import bootstrap_auroc, resamples
from skjepa.pretraining.losses import invariance, sigreg


def test_interval_is_that_of_the_t_test():
    values = [0.2, 0.5, 0.9, 0.4]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    found = interval(values)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("quality", "step"), [([0.1, 0.5, 0.9, 0.9], 4), ([0.9, 0.9, 0.9, 0.9], 1), ([0.9, 0.2, 0.885, 0.9], 4)]
)
def test_saturated_where_it_stays_near_its_last_value(quality, step):
    assert saturation([1, 2, 4, 8], quality) == step


def test_invariance_term_of_the_identity_is_half_the_variance_of_the_noise():
    toy = make_toy("rings", 0)
    found = terms(torch.nn.Identity(), "SIGReg", toy, configuration(11, 0))
    assert found["invariance"] == pytest.approx(0.1**2 / 2, rel=0.1)


def test_collapsed_embeddings_have_no_invariance_and_a_large_regulariser():
    toy, module = make_toy("moons", 0), network(2, 0)
    with torch.no_grad():
        module.head.weight.zero_()
    found = terms(module, "SIGReg", toy, configuration(11, 0))
    constant = module.head.bias.expand(len(toy.test), -1).detach()
    eye = torch.eye(constant.shape[1])
    assert found["invariance"] == pytest.approx(float(invariance(torch.stack([constant, constant]))), abs=1e-9)
    assert found["regulariser"] > 0.5 * float(sigreg(constant, eye)) > 100


def test_bootstrap_auroc_is_the_auroc_of_the_resampled_images():
    rng = np.random.default_rng(0)
    normal, foreign = rng.normal(1, 1, 12), np.round(rng.normal(0, 1, 9), 1)
    draws = resamples([12, 9], seed=0)
    found = bootstrap_auroc([normal, foreign], draws)
    labels, scores = np.repeat([1, 0], [12, 9]), np.concatenate([normal, foreign])
    for b in (0, 1, 7):
        weights = np.concatenate([draws[0][b] / 12, draws[1][b] / 9])
        assert found[b] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights))
