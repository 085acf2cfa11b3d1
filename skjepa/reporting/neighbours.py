"""Find the nearest normal samples of a sample, and map all samples among the normal ones."""

import warnings
from importlib.util import find_spec

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

Points = NDArray[np.float64]


class Surroundings:
    """Hold the embeddings of normal samples, and find other samples' place among them.

    Parameters
    ----------
    embeddings : array of shape (n_normal, K)
        Rows of NaN are left out.
    ids : array of shape (n_normal,), str, optional
        Names of these samples. Without them no neighbours are named.
    """

    def __init__(self, embeddings: Points, ids: ArrayLike | None = None) -> None:
        known = np.isfinite(embeddings).all(axis=1)
        self.embeddings = np.asarray(embeddings, dtype=np.float64)[known]
        self.ids = None if ids is None else np.asarray(ids, dtype=np.str_)[known]
        if len(self.embeddings) < 2:
            raise ValueError(
                f"a map needs at least 2 normal samples that can be read; got {len(self.embeddings)}: give more of them"
            )

    def nearest(self, embeddings: Points, n_neighbors: int = 3) -> list[list[str]]:
        """Return the names of the normal samples nearest to each embedding, (n, K), the nearest first.

        A row of NaN gets no names.
        """
        if self.ids is None:
            return [[] for _ in embeddings]
        known = np.isfinite(embeddings).all(axis=1)
        names: list[list[str]] = [[] for _ in embeddings]
        if known.any():
            search = NearestNeighbors(n_neighbors=min(n_neighbors, len(self.ids))).fit(self.embeddings)
            found = search.kneighbors(embeddings[known], return_distance=False)
            for i, row in zip(np.flatnonzero(known), found, strict=True):
                names[i] = self.ids[row].tolist()
        return names

    def pca(self, embeddings: Points) -> tuple[Points, Points]:
        """Map the given embeddings, (n, 2), and the normal ones, (n_normal, 2), to the principal axes of the latter."""
        fitted = PCA(n_components=min(2, *self.embeddings.shape), random_state=0).fit(self.embeddings)
        return _two(_each_known(fitted.transform, embeddings)), _two(fitted.transform(self.embeddings))

    def umap(self, embeddings: Points) -> tuple[Points, Points]:
        """Map as `pca` does, by UMAP learned from all embeddings (McInnes et al., arXiv 1802.03426).

        It needs the package umap-learn.
        """
        if not has_umap():
            raise ImportError("a UMAP map needs umap-learn: pip install 'skjepa[umap]'")
        known = np.isfinite(embeddings).all(axis=1)
        everyone = np.concatenate([self.embeddings, embeddings[known]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tensorflow, numba, and the single thread that a seed needs
            from umap import UMAP

            made = UMAP(n_neighbors=min(15, len(everyone) - 1), init="pca", random_state=0).fit_transform(everyone)
        placed = np.full((len(embeddings), 2), np.nan)
        placed[known] = made[len(self.embeddings) :]
        return placed, made[: len(self.embeddings)].astype(np.float64)


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return find_spec("umap") is not None


def _each_known(transform, rows: Points) -> Points:
    known = np.isfinite(rows).all(axis=1)
    if not known.any():
        return np.full((len(rows), 2), np.nan)
    made = transform(rows[known])
    full = np.full((len(rows), made.shape[1]), np.nan)
    full[known] = made
    return full


def _two(points: Points) -> Points:
    """Add a second axis of zeros where embeddings have a single number."""
    return points if points.shape[1] == 2 else np.column_stack([points[:, 0], np.zeros(len(points))])
