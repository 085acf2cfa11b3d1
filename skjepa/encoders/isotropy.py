"""How far embeddings are from the isotropic Gaussian that the theory asks for, and the linear part of the remedy."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embedding_statistics(embeddings: Tensor, *, seed: int = 0) -> dict[str, float]:
    """How far a sample of embeddings is from an isotropic Gaussian.

    Parameters
    ----------
    embeddings : Tensor of shape (n_samples, n_components)
    seed : int
        Of the 256 random directions for the normality statistic.

    Returns
    -------
    dict
        ``n_components`` K; ``eigenvalue_max``, ``eigenvalue_median``, ``eigenvalue_min`` of the covariance;
        ``participation_ratio`` (sum l)^2 / sum l^2 in [1, K], zero if nothing varies; ``normality``, the mean
        Epps-Pulley statistic of projections, centred and scaled together, over n_samples: zero for an isotropic
        Gaussian but for about 1 / n_samples of sampling noise.
    """
    z = embeddings.double()
    n, k = z.shape
    z = z - z.mean(0)
    eigenvalues = torch.linalg.eigvalsh(z.T @ z / (n - 1)).clamp_min(0)
    total = eigenvalues.sum()
    directions = unit_directions(k, 256, torch.Generator().manual_seed(seed)).to(z)
    scaled = z / (total / k).sqrt().clamp_min(1e-12)
    return {
        "n_components": float(k),
        "eigenvalue_max": eigenvalues[-1].item(),
        "eigenvalue_median": eigenvalues.median().item(),
        "eigenvalue_min": eigenvalues[0].item(),
        "participation_ratio": (total**2 / eigenvalues.square().sum().clamp_min(1e-300)).item(),
        "normality": epps_pulley(scaled @ directions).mean().item() / n,
    }


@torch.no_grad()
def whiten_head(head: nn.Linear, outputs: Tensor) -> float:
    """Compose a linear head with the map that gives its outputs zero mean and covariance I.

    SIGReg prescribes this covariance but feels a small departure from it only weakly, since a random projection
    averages over the components; what is left after training is corrected in closed form. With Sigma the covariance
    of the outputs, the head is multiplied by Sigma^(-1/2): all log-volumes shift by the same constant
    -1/2 log det Sigma, so the unfloored JEPA-SCORE ranks as before, and distances between outputs become Mahalanobis
    distances.

    Parameters
    ----------
    head : nn.Linear
        K outputs. Changed in place.
    outputs : Tensor of shape (n_samples, K)
        What it gives for unaugmented training samples, n_samples > K.

    Returns
    -------
    float
        Participation ratio of the outputs before the correction.

    Raises
    ------
    ValueError
        If the outputs have collapsed: an eigenvalue of Sigma under 1e-6 of the largest, which this would blow up.
    """
    z = outputs.double()
    centre = z.mean(0)
    eigenvalues, vectors = torch.linalg.eigh((z - centre).T @ (z - centre) / (len(z) - 1))
    low, high = eigenvalues[0].item(), eigenvalues[-1].item()
    if low <= 1e-6 * high:
        raise ValueError(f"collapsed outputs: covariance eigenvalues from {low:.1e} to {high:.1e}")
    whitening = vectors @ torch.diag(eigenvalues.rsqrt()) @ vectors.T
    head.bias.copy_(whitening @ (head.bias.double() - centre))
    head.weight.copy_(whitening @ head.weight.double())
    return (eigenvalues.sum() ** 2 / eigenvalues.square().sum()).item()


def unit_directions(n_components: int, n_directions: int, generator: torch.Generator) -> Tensor:
    """Directions uniform on the unit sphere, as columns: shape (n_components, n_directions), float32."""
    return F.normalize(torch.randn(n_components, n_directions, generator=generator), dim=0)


def epps_pulley(samples: Tensor, *, n_points: int = 17, t_max: float = 5.0) -> Tensor:
    """Epps-Pulley distance of one-dimensional samples from the standard normal law.

    With phi_N the empirical characteristic function,

    .. math:: N \\int |\\phi_N(t) - e^{-t^2/2}|^2 \\, e^{-t^2/2} \\, dt

    by the trapezoidal rule on [0, t_max], doubled since the integrand is even. Location and scale are not estimated:
    a shifted or scaled normal sample is a departure too.

    Parameters
    ----------
    samples : Tensor of shape (n_samples, *)
        One sample along the first axis per trailing index.
    n_points : int
        Quadrature points. Differences between samples are resolved up to about 2 pi (n_points - 1) / t_max.
    t_max : float
        End of the integration range; the Gaussian window leaves 6e-7 of its mass beyond 5.

    Returns
    -------
    Tensor of shape (*,)
        Non-negative. Of order 1 for N(0, 1) samples of any size, growing like n_samples for any other law.

    References
    ----------
    Epps and Pulley (1983), Biometrika 70(3); LeJEPA, arXiv 2511.08544, section 4.
    """
    t = torch.linspace(0.0, t_max, n_points, dtype=samples.dtype, device=samples.device)
    weight = torch.full_like(t, 2 * t_max / (n_points - 1))
    weight[0] = weight[-1] = t_max / (n_points - 1)
    target = torch.exp(-t.square() / 2)
    angle = samples.unsqueeze(-1) * t
    distance = (angle.cos().mean(0) - target).square() + angle.sin().mean(0).square()
    return samples.shape[0] * (distance @ (weight * target))
