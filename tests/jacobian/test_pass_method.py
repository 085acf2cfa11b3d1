"""What the meta of an `Extraction` says of its pass: the same text on disk as ever, read in one place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skjepa.jacobian.directions import random_directions
from skjepa.jacobian.pass_method import PassMethod


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (PassMethod("exact"), "exact"),
        (PassMethod("sketch", 16), "sketch of 16 directions"),
        (PassMethod("subspace", 8, "0123456789abcdef"), "subspace of 8 directions, 0123456789abcdef"),
    ],
)
def test_text_on_disk(method, text):
    assert str(method) == text
    assert PassMethod.parse(text) == method


@given(
    st.sampled_from(["sketch", "subspace"]),
    st.integers(1, 10**6),
    st.none() | st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
)
def test_read_back(kind, m, fingerprint):
    method = PassMethod(kind, m, fingerprint)
    assert PassMethod.parse(str(method)) == method


@pytest.mark.parametrize("text", [None, "", "exact", "by hand"])
def test_what_is_not_known_counts_whole(text):
    assert PassMethod.parse(text) == PassMethod("exact")


def test_directions_name_themselves():
    directions = random_directions(6, 2)
    parsed = PassMethod.parse(directions.method)
    assert (parsed.kind, parsed.n_directions) == ("subspace", 2)
    assert directions.fingerprint.startswith(parsed.fingerprint)
