"""Singular values of a batch of Jacobians. The Jacobians die here: only R = min(K, D) numbers a sample go on."""

import torch
from torch import Tensor

# float64 entries converted at once, so that the float64 copy of a float32 Jacobian never stands whole (128 MiB).
_CHUNK_ENTRIES = 2**24


def singular_values(jacobians: Tensor) -> Tensor:
    """Singular values of each matrix of a batch, in descending order.

    A float64 Jacobian goes through `torch.linalg.svdvals`. Anything narrower goes through the eigenvalues of its
    float64 Gram matrix on the smaller side: faster, and exact to the precision that the Jacobian itself has. (A float32
    Gram matrix is not: its squared condition number costs nats.)

    Parameters
    ----------
    jacobians : Tensor of shape (B, K, D)

    Returns
    -------
    Tensor of shape (B, min(K, D)), float64, on the CPU
        NaN for a matrix that is not finite: LAPACK would raise for the whole batch, or never return.

    Examples
    --------
    >>> import torch
    >>> singular_values(torch.tensor([[[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]])).tolist()
    [[4.0, 3.0]]
    """
    finite = torch.isfinite(jacobians).flatten(1).all(dim=1)
    if not finite.all():
        jacobians = torch.where(finite[:, None, None], jacobians, 0)
    if jacobians.dtype == torch.float64:
        sigma = torch.linalg.svdvals(jacobians)
    else:
        sigma = torch.linalg.eigvalsh(_gram(jacobians)).clamp_min(0).sqrt().flip(-1)
    return torch.where(finite[:, None].to(sigma.device), sigma, torch.nan).cpu()


def _gram(jacobians: Tensor) -> Tensor:
    """float64 Gram matrices on the smaller side, (B, R, R), summed over chunks of the longer side."""
    if jacobians.device.type == "mps":  # no float64 there
        jacobians = jacobians.cpu()
    wide = jacobians if jacobians.shape[1] <= jacobians.shape[2] else jacobians.mT
    n_samples, n_rows, n_columns = wide.shape
    gram = torch.zeros(n_samples, n_rows, n_rows, dtype=torch.float64, device=wide.device)
    step = max(1, _CHUNK_ENTRIES // (n_samples * n_rows))
    for start in range(0, n_columns, step):
        chunk = wide[:, :, start : start + step].to(torch.float64)
        gram.baddbmm_(chunk, chunk.mT)
    return gram
