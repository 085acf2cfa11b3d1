"""Isotropy: statistics of known laws, and whitening."""

import pytest
import torch

from skjepa.encoders.isotropy import embedding_statistics, whiten_head


def test_statistics_of_known_laws():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4_000, 4, dtype=torch.float64, generator=generator)
    gaussian = embedding_statistics(3 * z + 1)
    assert gaussian["participation_ratio"] == pytest.approx(4, abs=0.05)
    assert gaussian["normality"] < 2e-3
    assert gaussian["eigenvalue_max"] == pytest.approx(9, rel=0.1)
    stretched = embedding_statistics(z * torch.tensor([2.0, 1.0, 0.0, 0.0]))
    assert stretched["participation_ratio"] == pytest.approx(25 / 17, rel=0.05)
    assert embedding_statistics(z.sign())["normality"] > 10 * gaussian["normality"]
    assert embedding_statistics(torch.ones(5, 3))["participation_ratio"] == 0


def mlp() -> tuple[torch.nn.Module, torch.nn.Linear]:
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 8)
    return torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.SiLU(), head).double(), head


def log_volumes(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    rows = [torch.autograd.functional.jacobian(network, v) for v in x]
    return torch.linalg.svdvals(torch.stack(rows)).log().sum(1)


def test_whitening_gives_covariance_one_and_shifts_every_log_volume_alike():
    network, head = mlp()
    x = torch.randn(200, 12, dtype=torch.float64)
    before, outputs = log_volumes(network, x[:5]), network(x).detach()
    assert whiten_head(head, outputs) == pytest.approx(embedding_statistics(outputs)["participation_ratio"])
    after = network(x).detach()
    torch.testing.assert_close(torch.cov(after.T), torch.eye(8).double())
    torch.testing.assert_close(after.mean(0), torch.zeros(8).double())
    expected = -torch.logdet(torch.cov(outputs.T)) / 2
    torch.testing.assert_close(log_volumes(network, x[:5]) - before, expected.expand(5))


def test_whitening_refuses_collapsed_outputs():
    _, head = mlp()
    with pytest.raises(ValueError, match="the outputs have collapsed"):
        whiten_head(head, torch.randn(50, 1).expand(50, 8))
