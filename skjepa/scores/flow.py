"""Learn an explicit likelihood of embeddings by a normalising flow, which needs the package zuko."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from skjepa._utils.randomness import own_random_numbers
from skjepa._utils.validation import check_integer, check_number, seed_from

_SHARE_HELD_OUT = 0.1


class FlowDensity(BaseEstimator):
    """Estimate log q(z) by a masked autoregressive flow, in nats; higher = denser.

    Use it as `reference` of a `JEPAScoreDetector`, or alone inside an `EmbeddingDetector`. Rows are standardised first.
    Training stops when the likelihood of held-out rows no longer rises. It needs the package zuko (Papamakarios et al.,
    2017).

    Parameters
    ----------
    n_transforms : int
        Number of autoregressive transforms.
    hidden : int
        Width of the two hidden layers in each transform.
    learning_rate : float
        Learning rate of Adam.
    max_epochs, patience : int
        Largest number of passes over the rows, and number of passes without improvement after which training stops.
    batch_size : int
    random_state : int, optional
        Seeds the weights, the batches and the choice of held-out rows. None means 0.

    Attributes
    ----------
    flow_ : zuko.lazy.Flow
        The flow with the weights of the best epoch.
    history_ : list of float
        Mean log q of the held-out rows after each epoch, in nats of the standardised rows.
    n_features_in_ : int
        Number of columns.
    """

    def __init__(
        self,
        *,
        n_transforms: int = 3,
        hidden: int = 64,
        learning_rate: float = 2e-3,
        max_epochs: int = 200,
        patience: int = 10,
        batch_size: int = 128,
        random_state: Any = None,
    ) -> None:
        self.n_transforms = n_transforms
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.max_epochs = max_epochs
        self.patience = patience
        self.batch_size = batch_size
        self.random_state = random_state

    def fit(self, Z: ArrayLike, y: object = None) -> "FlowDensity":
        """Learn from rows (n_samples, n_features), at least ten.

        Raises
        ------
        ValueError, TypeError
            Bad data or parameters.
        ModuleNotFoundError
            zuko is not installed; the message shows how to install it.
        """
        rows = np.asarray(Z, dtype=np.float64)
        self._check(rows)
        self.n_features_in_ = rows.shape[1]
        self._location = rows.mean(axis=0)
        deviation = rows.std(axis=0)
        self._scale = np.where(deviation > 0, deviation, 1.0)
        seed = seed_from(self.random_state)
        order = np.random.default_rng(seed).permutation(len(rows))
        held_out, learned = np.split(self._standardised(rows)[order], [max(1, round(_SHARE_HELD_OUT * len(rows)))])
        with own_random_numbers(seed):
            self._train(_tensor(learned), _tensor(held_out))
        return self

    def score_samples(self, Z: ArrayLike) -> NDArray[np.float64]:
        """Return log q(z) in nats, (n_samples,)."""
        check_is_fitted(self)
        z = _tensor(self._standardised(np.asarray(Z, dtype=np.float64)))
        with torch.no_grad():
            values = self.flow_().log_prob(z)
        return values.double().numpy() - float(np.log(self._scale).sum())

    def _standardised(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return (rows - self._location) / self._scale

    def _train(self, learned: torch.Tensor, held_out: torch.Tensor) -> None:
        flow = _zuko().flows.MAF(self.n_features_in_, transforms=self.n_transforms, hidden_features=(self.hidden,) * 2)
        optimiser = torch.optim.Adam(flow.parameters(), lr=self.learning_rate)
        best, kept, since = -np.inf, deepcopy(flow.state_dict()), 0
        self.history_: list[float] = []
        for _ in range(self.max_epochs):
            for batch in torch.randperm(len(learned)).split(self.batch_size):
                optimiser.zero_grad()
                (-flow().log_prob(learned[batch]).mean()).backward()
                torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
                optimiser.step()
            with torch.no_grad():
                reached = float(flow().log_prob(held_out).mean())
            self.history_.append(reached)
            since += 1
            if reached > best:
                best, kept, since = reached, deepcopy(flow.state_dict()), 0
            if since >= self.patience:
                break
        flow.load_state_dict(kept)
        self.flow_ = flow

    def _check(self, rows: NDArray[np.float64]) -> None:
        for name in ("n_transforms", "hidden", "max_epochs", "patience", "batch_size"):
            check_integer(name, getattr(self, name), minimum=1)
        check_number("learning_rate", self.learning_rate, above=0.0)
        if rows.ndim != 2 or len(rows) < 10:
            raise ValueError(f"FlowDensity needs at least ten rows, shape (n, d); got an array of shape {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("the rows hold NaN or infinity: drop those rows, or fill the values in")


def _tensor(rows: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(rows).float()


def _zuko() -> Any:
    try:
        import zuko
    except ModuleNotFoundError:
        raise ModuleNotFoundError("FlowDensity needs zuko: pip install 'skjepa[benchmark]'") from None
    return zuko
