"""Compute the singular values of a batch of Jacobians, the only numbers that are kept of them."""

import torch
from torch import Tensor

# float64 entries converted at once (4 MiB). A copy that stays in the cache takes little time compared with the product;
# a copy of everything would take as long as a backward pass.
_CHUNK_ENTRIES = 2**19
_CHUNK_ENTRIES_ON_GPU = 2**24  # 128 MiB: few kernels


def singular_values(jacobians: Tensor) -> Tensor:
    """Compute the singular values of each matrix of a batch, in descending order.

    A float64 Jacobian is passed to `torch.linalg.svdvals`. For a narrower type the eigenvalues of the smaller Gram
    matrix (J J^T or J^T J) are computed in float64, which is faster and as precise as the Jacobian itself. A float32
    Gram matrix would not be: squaring the condition number changes log-volumes by tenths of a nat or more.

    Parameters
    ----------
    jacobians : Tensor of shape (B, K, D)

    Returns
    -------
    Tensor of shape (B, min(K, D)), float64, on the CPU
        NaN for a matrix that is not finite, for which LAPACK would raise for the whole batch, or never return.

    Examples
    --------
    >>> import torch
    >>> singular_values(torch.tensor([[[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]])).tolist()
    [[4.0, 3.0]]
    """
    if jacobians.dtype == torch.float64:
        finite = torch.isfinite(jacobians).flatten(1).all(dim=1)
        return _where(finite, torch.linalg.svdvals(_zeroed(jacobians, finite)))
    wide = jacobians if jacobians.shape[1] <= jacobians.shape[2] else jacobians.mT
    gram = gram_matrices(wide)
    finite = torch.isfinite(gram).flatten(1).all(dim=1)  # float64 can hold the square of every finite float32
    return _where(finite, torch.linalg.eigvalsh(_zeroed(gram, finite)).clamp_min(0).sqrt().flip(-1))


def _zeroed(matrices: Tensor, finite: Tensor) -> Tensor:
    return matrices if finite.all() else torch.where(finite[:, None, None], matrices, 0)


def _where(finite: Tensor, sigma: Tensor) -> Tensor:
    return torch.where(finite[:, None].to(sigma.device), sigma, torch.nan).cpu()


def gram_matrices(jacobians: Tensor) -> Tensor:
    """Compute J J^T in float64, (B, K, K), from Jacobians (B, K, D), summed over chunks of columns."""
    wide = jacobians.cpu() if jacobians.device.type == "mps" else jacobians  # no float64 there
    n_samples, n_rows, n_columns = wide.shape
    gram = wide.new_zeros(n_samples, n_rows, n_rows, dtype=torch.float64)
    together = n_samples if wide.is_cuda else 1
    step = max(1, (_CHUNK_ENTRIES_ON_GPU if wide.is_cuda else _CHUNK_ENTRIES) // (together * n_rows))
    buffer = wide.new_empty(together, n_rows, min(step, n_columns), dtype=torch.float64)
    for some, total in zip(wide.split(together), gram.split(together), strict=True):
        for columns in some.split(step, dim=2):
            chunk = buffer[..., : columns.shape[2]].copy_(columns)
            total.baddbmm_(chunk, chunk.mT)
    return gram
