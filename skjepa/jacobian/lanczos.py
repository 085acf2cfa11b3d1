"""Estimate the log-volume without forming the Jacobian, by stochastic Lanczos quadrature."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from skjepa._utils.validation import check_integer, check_number
from skjepa.jacobian.rows import first_forward_pass

_BREAKDOWN = 1e-12  # share of the largest coefficient; below, the Krylov space is exhausted and the rest is noise


def lanczos_log_volume(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    damping: float,
    n_probes: int = 8,
    n_steps: int = 16,
    seed: int = 0,
    probes: Tensor | None = None,
) -> Tensor:
    r"""Estimate the damped log-volume without forming the Jacobian J.

    The damped log-volume is ``sum_k 1/2 log(sigma_k^2 + damping^2)`` over R = min(K, D) singular values, for K outputs
    and D inputs per sample. Use it where K passes or the memory of J are too expensive. It is not JEPA-SCORE, which
    clips each singular value at a floor: with the damping as floor, it exceeds the clipped sum by 0 to R log(2) / 2.

    Each probe v of random signs estimates v^T log(J J^T + damping^2) v / 2 by Gauss quadrature. It takes `n_steps`
    products with J J^T (J^T J if D < K), each of one reverse and one forward pass. With ``n_steps`` = R the mean over
    probes is an unbiased estimate. With fewer steps there is a quadrature error, which falls geometrically in
    `n_steps`, faster for larger damping.

    Parameters
    ----------
    function : callable
        Maps ``(B, *input_shape)`` to ``(B, K)``, each row from its own sample only; must support forward mode.
    x : Tensor of shape ``(B, *input_shape)``
    damping : float
        Positive number that replaces the floor and keeps log 0 finite.
    n_probes, n_steps : int
        Numbers of probes and of products per probe, 2 x n_probes x n_steps passes in all. More probes lower the
        variance, more steps the quadrature error.
    seed : int
        Seed of the probes, which are the same for all samples, so that batch size and order change no estimate.
    probes : Tensor of shape (n_probes, R), optional
        Probes to use instead of random ones; entries +1 or -1.

    Returns
    -------
    Tensor of shape (B, n_probes), float64
        One estimate per probe in nats; higher = denser = more normal. Take the mean as the score and its standard error
        from the spread.

    Raises
    ------
    ValueError, TypeError
        If the damping is not positive, a count is below 1, or probes do not have length R.

    References
    ----------
    Ubaru, Chen and Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.

    Examples
    --------
    >>> import torch
    >>> A = torch.diag(torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64))
    >>> x = torch.zeros(1, 3, dtype=torch.float64)
    >>> estimates = lanczos_log_volume(lambda x: x @ A, x, damping=1.0, n_probes=4, n_steps=3)
    >>> torch.allclose(estimates, torch.tensor([10.0 * 17.0], dtype=torch.float64).log() / 2)
    True
    """
    check_number("damping", damping, above=0.0)
    n_steps = check_integer("n_steps", n_steps, minimum=1)
    gram = _Gram(function, x)
    if probes is None:
        n_probes = check_integer("n_probes", n_probes, minimum=1)
        generator = torch.Generator().manual_seed(check_integer("seed", seed, minimum=0))
        probes = 2.0 * torch.randint(0, 2, (n_probes, gram.size), generator=generator) - 1
    elif probes.ndim != 2 or probes.shape[1] != gram.size:
        raise ValueError(f"probes must be of shape (n_probes, {gram.size}); got {tuple(probes.shape)}")
    estimates = [_quadrature(gram, probe, damping, min(n_steps, gram.size)) for probe in probes]
    return torch.stack(estimates, dim=1)


class _Gram:
    """Multiply batches of vectors (B, R) by J J^T, or by J^T J if that is smaller, without forming the matrix."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.function, self.x = function, x.detach()
        with torch.enable_grad():
            self.leaf = self.x.clone().requires_grad_(True)
            self.outputs = function(self.leaf)
        self.n_samples, self.n_components = self.outputs.shape
        self.on_outputs = self.n_components <= self.x[0].numel()
        self.size = min(self.n_components, self.x[0].numel())

    def __call__(self, vectors: Tensor) -> Tensor:
        vectors = vectors.to(self.outputs)
        product = self._forward(self._reverse(vectors)) if self.on_outputs else self._reverse(self._forward(vectors))
        return product.to("cpu", torch.float64)

    def _reverse(self, cotangents: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(self.outputs, self.leaf, cotangents, retain_graph=True)
        return gradient.flatten(1)

    def _forward(self, tangents: Tensor) -> Tensor:
        # Fused attention has no forward-mode rule, and torch warns about its own first call.
        with sdpa_kernel(SDPBackend.MATH), first_forward_pass():
            both: Any = torch.func.jvp(self.function, (self.x,), (tangents.view_as(self.x),))
        return both[1].detach()


def _quadrature(gram: _Gram, probe: Tensor, damping: float, n_steps: int) -> Tensor:
    """Estimate v^T log(G + damping^2) v / 2 for one probe v and every sample, (B,)."""
    start = probe.to("cpu", torch.float64)
    basis = [(start / start.norm()).expand(gram.n_samples, -1)]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for step in range(n_steps):
        product = gram(basis[-1])
        diagonal.append((product * basis[-1]).sum(1))
        spanned = torch.stack(basis, dim=1)
        for _ in range(2):  # twice, since rounding in the first pass brings back earlier directions
            product = product - torch.einsum("bsr,bs->br", spanned, torch.einsum("bsr,br->bs", spanned, product))
        length = product.norm(dim=1)
        scale = torch.stack([*diagonal, *beside]).abs().amax(0)
        length = torch.where(length > _BREAKDOWN * scale, length, 0)
        if step + 1 < n_steps:
            beside.append(length)
            # After a breakdown the space is exhausted: zero vectors have no weight in the sum.
            basis.append(torch.where(length[:, None] > 0, product / length.clamp_min(1e-300)[:, None], 0))
    tridiagonal = torch.diag_embed(torch.stack(diagonal, dim=1))
    if beside:
        off = torch.diag_embed(torch.stack(beside, dim=1), offset=1)
        tridiagonal = tridiagonal + off + off.mT
    values, vectors = torch.linalg.eigh(tridiagonal)
    weights = vectors[:, 0].square()
    return 0.5 * start.square().sum() * (weights * torch.log(values.clamp_min(0) + damping**2)).sum(1)
