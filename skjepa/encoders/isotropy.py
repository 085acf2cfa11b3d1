"""Measure how far embeddings are from the isotropic Gaussian of the theory, and whiten them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embedding_statistics(embeddings: Tensor, *, seed: int = 0) -> dict[str, float]:
    """Measure how far embeddings are from an isotropic Gaussian.

    Parameters
    ----------
    embeddings : Tensor of shape (n_samples, n_components)
    seed : int
        Seed of the 256 random directions of the normality statistic.

    Returns
    -------
    dict
        - ``n_components``: number K of outputs;
        - ``eigenvalue_max``, ``eigenvalue_median``, ``eigenvalue_min``: eigenvalues of the covariance;
        - ``participation_ratio``: (sum l)^2 / sum l^2 of the eigenvalues l, in [1, K]; higher = more isotropic; 0 if
          nothing varies;
        - ``normality``: mean Epps-Pulley statistic of random projections, divided by n_samples, after centring and
          scaling all outputs together; 0 for an isotropic Gaussian, up to sampling noise of about 1 / n_samples.
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
    """Change a linear head so that its outputs have zero mean and unit covariance.

    The SIGReg loss aims at this covariance but reacts weakly to small deviations, since a random projection averages
    over the components. The rest is corrected here in closed form: with Sigma the covariance of the outputs, the head
    is multiplied by Sigma^(-1/2). All log-volumes shift by the same constant -1/2 log det Sigma, so a JEPA-SCORE
    without floor keeps its ranking, and distances between outputs become Mahalanobis distances.

    Parameters
    ----------
    head : nn.Linear
        Linear layer with K outputs, changed in place.
    outputs : Tensor of shape (n_samples, K)
        Its outputs for unaugmented training samples, n_samples > K.

    Returns
    -------
    float
        Participation ratio of the outputs before the correction.

    Raises
    ------
    ValueError
        If the outputs have collapsed: an eigenvalue of Sigma is below 1e-6 of the largest.
    """
    z = outputs.double()
    centre = z.mean(0)
    eigenvalues, vectors = torch.linalg.eigh((z - centre).T @ (z - centre) / (len(z) - 1))
    low, high = eigenvalues[0].item(), eigenvalues[-1].item()
    if low <= 1e-6 * high:
        raise ValueError(f"the outputs have collapsed: covariance eigenvalues from {low:.1e} to {high:.1e}")
    whitening = vectors @ torch.diag(eigenvalues.rsqrt()) @ vectors.T
    head.bias.copy_(whitening @ (head.bias.double() - centre))
    head.weight.copy_(whitening @ head.weight.double())
    return (eigenvalues.sum() ** 2 / eigenvalues.square().sum()).item()


def unit_directions(n_components: int, n_directions: int, generator: torch.Generator) -> Tensor:
    """Draw directions uniform on the unit sphere, as columns of (n_components, n_directions), float32."""
    return F.normalize(torch.randn(n_components, n_directions, generator=generator), dim=0)


def epps_pulley(samples: Tensor, *, n_points: int = 17, t_max: float = 5.0) -> Tensor:
    """Compute the Epps-Pulley distance of one-dimensional samples from the standard normal distribution.

    With phi_N the empirical characteristic function,

    .. math:: N \\int |\\phi_N(t) - e^{-t^2/2}|^2 \\, e^{-t^2/2} \\, dt

    by the trapezoidal rule on [0, t_max], doubled since the integrand is even. Location and scale are not estimated:
    a shifted or scaled normal sample has a positive distance.

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
        Non-negative. Of order 1 for N(0, 1) samples of any size; grows like n_samples for any other distribution.

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
