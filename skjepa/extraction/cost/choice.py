"""Which backward passes a method makes, what it is called in the settings, and what "auto" chooses."""

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
"""`method="auto"` makes at most so many backward passes per image, and none for vectors."""

AUTO_GFLOP = 20.0
"""Nor more than take so many 10^9 operations per image, about a quarter of a second of one core."""

SKETCHES = (16, 4)
"""Numbers of random directions that are offered where K passes take too long."""


@dataclass(frozen=True)
class Choice:
    """What "auto" chose.

    Attributes
    ----------
    method : {"exact", "sketch", "forward"}
    n_directions : int or None
        Of a sketch.
    reason : str
        One sentence for the user.
    """

    method: str
    n_directions: int | None
    reason: str


def check_method(method: str | Directions, n_directions: int | None) -> None:
    """Refuse what `skjepa.extract` does not know; raises ValueError."""
    check_number_of_directions(n_directions)
    if isinstance(method, Directions):
        if n_directions not in (None, method.n_directions):
            raise ValueError(f"method has {method.n_directions} directions, n_directions is {n_directions}")
        return
    if isinstance(method, str) and method == "subspace":
        raise ValueError(
            "method='subspace' learns its directions from normal samples, in a detector's fit; here pass what "
            "learn_directions returns as method"
        )
    check_choice("method", method, METHODS)
    if method != "sketch" and n_directions is not None:
        taken = "takes all" if method == "exact" else "makes no backward pass"
        raise ValueError(f"n_directions is for method='sketch'; method={method!r} {taken}")


def output_directions(
    encoder: Encoder, method: str | Directions, n_directions: int | None, n_components: int, seed: int
) -> tuple[str, Tensor | None]:
    """What the method is called in the settings, and its cotangents (K, m) in the encoder's arithmetic."""
    if isinstance(method, Directions):
        if method.encoder not in (None, encoder.fingerprint):
            raise FingerprintError(
                f"the directions are of another encoder than {encoder.name!r}: fingerprint "
                f"{str(method.encoder)[:12]}, expected {encoder.fingerprint[:12]}"
            )
        if len(method.components) != n_components:
            raise ValueError(f"the directions are of {len(method.components)} outputs, the encoder has {n_components}")
        chosen, name = method, method.method
    elif method == "sketch":
        m = n_directions or max(1, n_components // DEFAULT_SHARE)
        chosen, name = random_directions(n_components, m, seed=seed), str(PassMethod("sketch", m))
    else:
        return method, None
    return name, torch.from_numpy(chosen.components).to(encoder.dtype)


def by_operations(n_components: int, gflop: Callable[[], float], *, is_vector: bool, has_views: bool) -> Choice:
    """What "auto" chooses without a time budget: by numbers that are the same on every machine.

    Parameters
    ----------
    n_components : int
        K.
    gflop : callable
        Returns the 10^9 operations of a forward pass per image; a backward pass to the input takes about as many. Only
        called where K alone does not decide.
    is_vector, has_views : bool
        Of the samples: vectors get no backward pass, random views all of them.
    """
    if has_views:
        return Choice("exact", None, "random views need all backward passes")
    if is_vector:
        return Choice("forward", None, "for vectors backward passes add nothing to the hidden layers")
    if n_components > AUTO_PASSES:
        return Choice("forward", None, f"K = {n_components} backward passes per image are more than {AUTO_PASSES}")
    operations = n_components * gflop()
    passes = f"K = {n_components} backward passes per image take {operations:.3g} GFLOP"
    if operations > AUTO_GFLOP:
        return Choice("forward", None, f"{passes}, more than {AUTO_GFLOP:g}")
    return Choice("exact", None, f"{passes}, at most {AUTO_GFLOP:g}")


def begun_with(store: str | os.PathLike | None) -> Choice | None:
    """What "auto" goes on with: the method of a store that was begun; None where there is none."""
    settings = None if store is None else settings_of(Path(store))
    if settings is None:
        return None
    method = PassMethod.parse(settings["method"])
    return Choice(method.kind, method.n_directions, f"the store was begun with it: {store}")


def by_time(
    cost: PassCost | None,
    time_budget: float,
    *,
    is_vector: bool = False,
    has_views: bool = False,
    needs_passes: bool = False,
) -> Choice:
    """What "auto" chooses within a time budget: as many passes as fit into it on this machine.

    Raises
    ------
    TimeBudgetError
        Even the cheapest takes longer: the forward pass alone, or 4 passes where a score `needs_passes`.
    """
    if cost is None:
        return Choice("forward", None, "none of the first samples could be read, to measure what a pass takes")
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
    """Methods to choose from, dearest first, with n_directions and the number of passes."""
    yield "exact", None, n_components
    for m in SKETCHES:
        if m < n_components:
            yield "sketch", m, m
    yield "forward", None, 0
