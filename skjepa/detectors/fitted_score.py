"""What one fit of a detector learned: the encoder, the score model and their settings."""

import warnings
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from skjepa.encoders.encoder import Encoder
from skjepa.extraction.batches.pooling import is_positions
from skjepa.extraction.extraction import Extraction
from skjepa.extraction.store.settings import Settings
from skjepa.inspection.findings import GROUPS_ARE_GIVEN, Diagnosis
from skjepa.jacobian.directions import Directions
from skjepa.persistence.folder import portable
from skjepa.scores.layered import OUTPUT, AnyScore, LayeredScore


@portable
@dataclass
class FittedScore:
    """What one model has learned, and of which extractions it can judge.

    Attributes
    ----------
    model : ScoreModel or LayeredScore
    encoder : Encoder or None
        Where it was trained on the samples.
    settings : dict
        Of the extraction learned from.
    diagnosis : Diagnosis
        Of the samples learned from.
    directions : Directions or None
        Where they were learned from the samples.
    terms : dict of name -> array of shape (n_samples,)
        Of the score, of the samples learned from, each in ascending order.
    """

    model: Annotated[AnyScore, "n=m K"]  # of fewer samples, where a share was trimmed
    encoder: Annotated[Encoder, "d"] | None
    settings: Settings
    diagnosis: Annotated[Diagnosis, "n K"]
    directions: Annotated[Directions, "K"] | None
    terms: dict[str, Annotated[NDArray[np.float64], "n"]]

    def portable_check(self) -> None:
        if self.model.seen is not None and len(self.model.seen.embeddings) > self.diagnosis.n_samples:
            raise ValueError(f"the model has seen more than the {self.diagnosis.n_samples} samples of the diagnosis")
        if self.terms.keys() != self.model.term_names:
            raise ValueError(f"these are not the terms of {self.model.formula!r}: {', '.join(self.terms)}")
        if self.diagnosis.formula != self.model.formula:
            raise ValueError(f"the diagnosis is of formula {self.diagnosis.formula!r}")
        spectrum = self.model.spectrum
        counted = 0 if spectrum is None else min(self.model.rank, self.diagnosis.n_singular_values)
        if spectrum is not None and spectrum.coef_.shape[1] != counted:
            raise ValueError(f"{counted} singular values are counted, the spectrum has {spectrum.coef_.shape[1]}")
        if isinstance(self.model, LayeredScore):
            read = self.settings.get("layers") or ()
            if missing := [name for name in self.model.chain.deviations if name not in (OUTPUT, *read)]:
                raise ValueError(f"the model is of layers that the settings do not name: {missing[0]!r}")
            if (self.model.local is not None) != any(map(is_positions, read)):
                raise ValueError("a local model goes with positions among the layers of the settings")
        if self.settings["n_components"] not in (None, self.diagnosis.n_components):
            raise ValueError(f"settings have n_components = {self.settings['n_components']}")


def warn_of_near_copies(diagnosis: Diagnosis) -> None:
    for finding in diagnosis.findings:
        if finding.name == "near copies" and not GROUPS_ARE_GIVEN.get():
            warnings.warn(f"{finding.message}; {finding.advice}", stacklevel=4)


def warn_if_collapsed(scores: NDArray[np.float64], extraction: Extraction) -> None:
    if np.ptp(scores) > 1e-9 * (1 + np.abs(scores).max()):
        return
    z = extraction.embeddings
    ranks = (
        ""
        if extraction.singular_values is None
        else (f"; median numerical rank of the Jacobian: {int(np.median(extraction.numerical_rank))}")
    )
    rank = int(np.linalg.matrix_rank(z - z.mean(axis=0), tol=1e-6 * (np.abs(z).max() + np.finfo(float).tiny) * len(z)))
    warnings.warn(
        f"all {len(scores)} scores are equal: the encoder is collapsed or linear on these samples, or they are copies "
        f"of one another (rank of the embeddings: {rank} of {z.shape[1]}{ranks})",
        stacklevel=3,
    )
