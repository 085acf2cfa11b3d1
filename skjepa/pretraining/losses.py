"""Compute self-supervised losses of embeddings.

Every loss is to be minimised. `sigreg` is only a term against collapse and needs `invariance` beside it; `vicreg` and
`info_nce` are complete objectives for two views.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from skjepa.encoders.isotropy import epps_pulley


def invariance(views: Tensor) -> Tensor:
    """Compute the mean squared distance of the views' embeddings from their mean over views.

    .. math:: \\frac{1}{V N K} \\sum_{v,n,k} (z_{vnk} - \\bar z_{nk})^2

    Parameters
    ----------
    views : Tensor of shape (n_views, n_samples, n_components)

    Returns
    -------
    Tensor of shape ()
        Non-negative; zero when all views of every sample agree.

    References
    ----------
    LeJEPA, arXiv 2511.08544, section 5 (prediction of the views' centre).
    """
    return (views - views.mean(0)).square().mean()


def sigreg(embeddings: Tensor, directions: Tensor, *, n_points: int = 17, t_max: float = 5.0) -> Tensor:
    """Compute SIGReg, the mean Epps-Pulley statistic of embeddings over random projections.

    Parameters
    ----------
    embeddings : Tensor of shape (n_samples, n_components)
        One view of a batch; views are regularised separately because views of one sample are not independent.
    directions : Tensor of shape (n_components, n_directions)
        Unit columns, drawn again at every step (`unit_directions`).
    n_points, t_max : int, float
        Points and range of the quadrature, see `epps_pulley`.

    Returns
    -------
    Tensor of shape ()
        Non-negative; of order 1 for any batch size if the embeddings are N(0, I).

    References
    ----------
    LeJEPA, arXiv 2511.08544, section 4.
    """
    return epps_pulley(embeddings @ directions, n_points=n_points, t_max=t_max).mean()


def vicreg(
    first: Tensor, second: Tensor, *, invariance_weight=25.0, variance_weight=25.0, covariance_weight=1.0
) -> Tensor:
    """Compute the VICReg loss of two views: variance, invariance and covariance terms.

    Invariance is the mean squared difference; variance is a hinge on the unbiased standard deviation of each
    component at 1; covariance is the sum of squared off-diagonal entries of the covariance matrix over K. The hinge
    is averaged and the covariance summed over the two views, as in the published weights 25 / 25 / 1.

    Parameters
    ----------
    first, second : Tensor of shape (n_samples, n_components)
        Row i of both comes from the same sample. At least two samples.
    invariance_weight, variance_weight, covariance_weight : float

    Returns
    -------
    Tensor of shape ()

    References
    ----------
    VICReg, arXiv 2105.04906, Eq. 1 to 6.
    """
    total = invariance_weight * F.mse_loss(first, second)
    for z in (first, second):
        centred = z - z.mean(0)
        covariance = centred.T @ centred / (z.shape[0] - 1)
        deviation = (covariance.diagonal() + 1e-4).sqrt()
        total = total + variance_weight * F.relu(1 - deviation).mean() / 2
        off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
        total = total + covariance_weight * off_diagonal / z.shape[1]
    return total


def info_nce(first: Tensor, second: Tensor, *, temperature: float = 0.2) -> Tensor:
    """Compute the InfoNCE loss of two views, the normalised-temperature cross entropy of SimCLR.

    Each of the 2N unit-normalised embeddings is classified by cosine similarity over `temperature`: its other view
    should be the most similar of the 2N - 1 remaining embeddings.

    Parameters
    ----------
    first, second : Tensor of shape (n_samples, n_components)
        Row i of both comes from the same sample.
    temperature : float
        Positive.

    Returns
    -------
    Tensor of shape ()
        In nats; log(2N - 1) if all embeddings coincide.

    References
    ----------
    SimCLR, arXiv 2002.05709, Eq. 1.
    """
    n = first.shape[0]
    z = F.normalize(torch.cat([first, second]), dim=1)
    similarity = z @ z.T / temperature
    similarity = similarity.masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), -math.inf)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)
