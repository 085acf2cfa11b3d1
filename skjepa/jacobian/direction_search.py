"""Learn by gradient descent the output directions that predict the full log-volume best."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

N_STEPS = 200
_RATE = 0.03
_SHARE_FITTED = 0.6
_RIDGE = 10.0


def telling_directions(
    grams: ArrayLike, embeddings: ArrayLike, log_volumes: ArrayLike, start: ArrayLike, *, floor: float, seed: int = 0
) -> NDArray[np.float64]:
    """Find m orthonormal directions U from which the log-volume is predicted best.

    A ridge regression predicts the log-volume from the embedding z, the log singular values of U^T J and their sum. At
    each of 200 steps the samples are split at random. The regression is solved on one part, and U follows the gradient
    (Adam) of its squared error on the other part, which limits overfitting. A step takes n K^2 m operations.

    Parameters
    ----------
    grams : array of shape (n, K, K)
        J J^T of every sample; float32 is precise enough.
    embeddings : array of shape (n, K)
        Embedding z of every sample.
    log_volumes : array of shape (n,)
        Log-volume of J of every sample, in nats.
    start : array of shape (K, m)
        Orthonormal directions to start from.
    floor : float
        Lower bound of the singular values of U^T J.
    seed : int
        Seed of the random splits.

    Returns
    -------
    array of shape (K, m), float64
        Orthonormal directions.

    Examples
    --------
    Here only the gradient of the first output varies between samples, and the log-volume with it:

    >>> rng = np.random.default_rng(0)
    >>> lengths = rng.uniform(0.1, 10, size=60)
    >>> grams = np.stack([np.diag([length, 1.0, 1.0]) for length in lengths])
    >>> start = np.ones((3, 1)) / np.sqrt(3)
    >>> U = telling_directions(grams, np.zeros((60, 3)), np.log(lengths) / 2, start, floor=1e-6)
    >>> bool(np.abs(U[0, 0]) > 0.99)
    True
    """
    G = torch.as_tensor(np.asarray(grams, dtype=np.float32))
    z = _standardised(torch.as_tensor(np.asarray(embeddings, dtype=np.float64)))
    target = _standardised(torch.as_tensor(np.asarray(log_volumes, dtype=np.float64)))
    free = torch.tensor(np.asarray(start), dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
    generator = torch.Generator().manual_seed(seed)
    n_fitted = max(1, int(_SHARE_FITTED * len(target)))
    with torch.inference_mode(False), torch.enable_grad():
        for _ in range(N_STEPS):
            order = torch.randperm(len(target), generator=generator)
            rows = torch.cat([z, _spectral(_orthonormal(free), G, floor)], dim=1)
            loss = _error(rows, target, order[:n_fitted], order[n_fitted:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return np.linalg.qr(free.detach().double().numpy())[0]


def _orthonormal(free: Tensor) -> Tensor:
    return torch.linalg.qr(free)[0]


def _spectral(U: Tensor, grams: Tensor, floor: float) -> Tensor:
    """Return log singular values of U^T J and their sum, standardised, (n, m + 1)."""
    squares = torch.linalg.eigvalsh((U.T @ grams @ U).double())
    logs = 0.5 * torch.log(squares.clamp_min(floor**2))
    return _standardised(torch.cat([logs, logs.sum(dim=1, keepdim=True)], dim=1))


def _error(rows: Tensor, target: Tensor, fitted: Tensor, judged: Tensor) -> Tensor:
    X = rows[fitted]
    weights = torch.linalg.solve(X.T @ X + _RIDGE * torch.eye(X.shape[1], dtype=X.dtype), X.T @ target[fitted])
    return (rows[judged] @ weights - target[judged]).square().mean()


def _standardised(values: Tensor) -> Tensor:
    centred = values - values.mean(dim=0)
    # Constant columns stay zero. The scale is detached, so that U cannot lower the error by changing it.
    spread = centred.detach().square().mean(dim=0).sqrt()
    return torch.where(spread > 1e-9, centred / spread.clamp_min(1e-9), 0)
