"""Hold the result of one fit of a detector: the encoder, the score model and their settings."""

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
    """Hold one fitted score model, with the settings that an extraction must have to be scored by it.

    Attributes
    ----------
    model : ScoreModel or LayeredScore
    encoder : Encoder or None
        The encoder that was trained on the fit samples; None for a frozen one.
    settings : dict
        Settings of the extraction of the fit samples.
    diagnosis : Diagnosis
        Diagnosis of the fit samples.
    directions : Directions or None
        The directions that were learned from the fit samples, if any.
    terms : dict of name -> array of shape (n_samples,)
        The terms of the scores of the fit samples, each in ascending order.
    """

    model: Annotated[AnyScore, "n=m K"]  # m < n where a share of the fit samples was trimmed
    encoder: Annotated[Encoder, "d"] | None
    settings: Settings
    diagnosis: Annotated[Diagnosis, "n K"]
    directions: Annotated[Directions, "K"] | None
    terms: dict[str, Annotated[NDArray[np.float64], "n"]]

    def portable_check(self) -> None:
        if self.model.seen is not None and len(self.model.seen.embeddings) > self.diagnosis.n_samples:
            raise ValueError(f"the model holds more fit samples than the diagnosis, {self.diagnosis.n_samples}")
        if self.terms.keys() != self.model.term_names:
            raise ValueError(f"the terms {', '.join(self.terms)} do not belong to formula {self.model.formula!r}")
        if self.diagnosis.formula != self.model.formula:
            raise ValueError(f"the diagnosis has formula {self.diagnosis.formula!r}, the model {self.model.formula!r}")
        spectrum = self.model.spectrum
        counted = 0 if spectrum is None else min(self.model.rank, self.diagnosis.n_singular_values)
        if spectrum is not None and spectrum.coef_.shape[1] != counted:
            raise ValueError(f"the spectrum has {spectrum.coef_.shape[1]} singular values, the model counts {counted}")
        if isinstance(self.model, LayeredScore):
            read = self.settings.get("layers") or ()
            if missing := [name for name in self.model.chain.deviations if name not in (OUTPUT, *read)]:
                raise ValueError(f"the model reads layer {missing[0]!r}, which the settings do not name")
            if (self.model.local is not None) != any(map(is_positions, read)):
                raise ValueError("a local model and positions among the layers of the settings must come together")
        if self.settings["n_components"] not in (None, self.diagnosis.n_components):
            raise ValueError(
                f"the settings have n_components = {self.settings['n_components']}, the diagnosis "
                f"{self.diagnosis.n_components}"
            )


def warn_of_near_copies(diagnosis: Diagnosis) -> None:
    """Warn where the diagnosis found near copies and no groups were given."""
    for finding in diagnosis.findings:
        if finding.name == "near copies" and not GROUPS_ARE_GIVEN.get():
            warnings.warn(f"{finding.message}; {finding.advice}", stacklevel=4)


def warn_if_collapsed(scores: NDArray[np.float64], extraction: Extraction) -> None:
    """Warn where all scores are equal, with the ranks that help to find the reason."""
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
        f"all {len(scores)} scores are equal: the encoder is collapsed or linear on these samples, or the samples are "
        f"copies of one another (rank of the embeddings: {rank} of {z.shape[1]}{ranks}). Call diagnose(), and give "
        "another encoder or different samples",
        stacklevel=3,
    )
