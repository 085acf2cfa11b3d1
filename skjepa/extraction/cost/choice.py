"""Check `method`, choose what "auto" stands for, and find the output directions and the name of a method."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from skjepa._utils.validation import check_choice
from skjepa.encoders.encoder import Encoder, FingerprintError
from skjepa.extraction.cost.pass_cost import PassCost, duration
from skjepa.extraction.store.store import settings_of
from skjepa.jacobian.directions import DEFAULT_SHARE, Directions, check_number_of_directions, random_directions
from skjepa.jacobian.pass_method import PassMethod

METHODS = ("auto", "forward", "exact", "sketch")

AUTO_PASSES = 64
"""Most backward passes per image that `method="auto"` makes; for vectors it makes none."""

AUTO_GFLOP = 20.0
"""Most 10^9 operations per image that those passes may take, about a quarter of a second of one core."""

SKETCHES = (16, 4)
"""Numbers of random directions to try if K passes exceed the time budget."""


@dataclass(frozen=True)
class Choice:
    """Hold what "auto" chose.

    Attributes
    ----------
    method : {"exact", "sketch", "forward"}
    n_directions : int or None
        Number of directions of a sketch.
    reason : str
        Reason for the user, in one sentence.
    """

    method: str
    n_directions: int | None
    reason: str


def check_method(method: str | Directions, n_directions: int | None) -> None:
    """Raise ValueError for a method or n_directions that `skjepa.extract` does not support."""
    check_number_of_directions(n_directions)
    if isinstance(method, Directions):
        if n_directions not in (None, method.n_directions):
            raise ValueError(
                f"got n_directions={n_directions} with Directions that have {method.n_directions}: leave n_directions "
                "out"
            )
        return
    if isinstance(method, str) and method == "subspace":
        raise ValueError(
            "method='subspace' is for detectors, which learn its directions in fit; here give the Directions that "
            "learn_directions returns as method"
        )
    check_choice("method", method, METHODS)
    if method != "sketch" and n_directions is not None:
        raise ValueError(
            f"got n_directions={n_directions} with method={method!r}; n_directions is for method='sketch': leave it out"
        )


def output_directions(
    encoder: Encoder, method: str | Directions, n_directions: int | None, n_components: int, seed: int
) -> tuple[str, Tensor | None]:
    """Return the name of a method in the settings, and its output directions (K, m); None for all outputs."""
    if isinstance(method, Directions):
        if method.encoder not in (None, encoder.fingerprint):
            raise FingerprintError(
                f"the directions were learned with another encoder than {encoder.name!r}: fingerprint "
                f"{str(method.encoder)[:12]}, expected {encoder.fingerprint[:12]}. Learn them again with this encoder"
            )
        if len(method.components) != n_components:
            raise ValueError(
                f"got directions of {len(method.components)} outputs; the encoder has {n_components}: draw or learn "
                "directions for this encoder"
            )
        chosen, name = method, method.method
    elif method == "sketch":
        m = n_directions or max(1, n_components // DEFAULT_SHARE)
        chosen, name = random_directions(n_components, m, seed=seed), str(PassMethod("sketch", m))
    else:
        return method, None
    return name, torch.from_numpy(chosen.components).to(encoder.dtype)


def by_operations(n_components: int, gflop: Callable[[], float], *, is_vector: bool, has_views: bool) -> Choice:
    """Choose the method for "auto" without a time budget, by counts that are the same on every machine.

    Parameters
    ----------
    n_components : int
        Number K of encoder outputs.
    gflop : callable
        Returns the 10^9 operations of a forward pass per image; a backward pass to the input takes about as many. Only
        called if K alone does not decide.
    is_vector, has_views : bool
        Whether samples are vectors, for which no backward pass is made, and whether there are random views, for which
        all are made.
    """
    if has_views:
        return Choice("exact", None, "random views need all backward passes")
    if is_vector:
        return Choice("forward", None, "for vectors backward passes bring no gain over the hidden layers")
    if n_components > AUTO_PASSES:
        return Choice("forward", None, f"K = {n_components} backward passes per image are more than {AUTO_PASSES}")
    operations = n_components * gflop()
    passes = f"K = {n_components} backward passes per image take {operations:.3g} GFLOP"
    if operations > AUTO_GFLOP:
        return Choice("forward", None, f"{passes}, more than {AUTO_GFLOP:g}")
    return Choice("exact", None, f"{passes}, at most {AUTO_GFLOP:g}")


def begun_with(store: str | os.PathLike | None) -> Choice | None:
    """Return the method of a store that already exists, which "auto" keeps; None if there is none."""
    settings = None if store is None else settings_of(Path(store))
    if settings is None:
        return None
    method = PassMethod.parse(settings["method"])
    return Choice(method.kind, method.n_directions, f"the store {store} was begun with it")


def by_time(
    cost: PassCost | None,
    time_budget: float,
    *,
    is_vector: bool = False,
    has_views: bool = False,
    needs_passes: bool = False,
) -> Choice:
    """Choose the method for "auto" within a time budget: as many passes as fit into it on this machine.

    Raises
    ------
    TimeBudgetError
        If even the cheapest choice takes longer: the forward pass alone, or 4 passes if a score `needs_passes`.
    """
    if cost is None:
        return Choice("forward", None, "none of the first samples could be read, so no pass could be timed")
    if has_views or is_vector:
        return by_operations(cost.n_components, lambda: 0.0, is_vector=is_vector, has_views=has_views)
    offers = [offer for offer in offered(cost.n_components) if offer[2] or not needs_passes]
    fitting = [offer for offer in offers if cost.seconds(offer[2]) <= time_budget]
    if not fitting:
        cost.require(time_budget, offers[-1][2])
    method, n_directions, n_passes = fitting[0]
    passes = f"{n_passes} backward passes per image" if n_passes else "the forward pass alone"
    takes = f"about {duration(cost.seconds(n_passes))} for {cost.n_samples} images on this machine"
    return Choice(method, n_directions, f"{passes}: {takes}, the budget is {duration(time_budget)}")


def offered(n_components: int) -> Iterator[tuple[str, int | None, int]]:
    """Yield the methods to choose from, most expensive first, with n_directions and the number of passes."""
    yield "exact", None, n_components
    for m in SKETCHES:
        if m < n_components:
            yield "sketch", m, m
    yield "forward", None, 0
