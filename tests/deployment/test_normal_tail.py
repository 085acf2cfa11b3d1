import numpy as np
import torch
from scipy.stats import norm

from skjepa.deployment.normal_tail import minus_log_upper_tail


def test_is_that_of_scipy():
    x = np.concatenate([np.linspace(-6, 40, 4001), [0.46875 * 2**0.5, 4 * 2**0.5, 1e3, 1e8]])
    np.testing.assert_allclose(minus_log_upper_tail(torch.tensor(x)).numpy(), -norm.logsf(x), rtol=1e-12)


def test_is_finite_and_small_where_nothing_is_unusual():
    found = minus_log_upper_tail(torch.tensor([-1e8, -40.0, -8.0], dtype=torch.float64)).numpy()
    np.testing.assert_allclose(found, -norm.logsf([-1e8, -40.0, -8.0]), atol=1e-15)
