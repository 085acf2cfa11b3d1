"""What is kept: exactly the share asked for, whatever the order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skjepa.curation.rules import prune_scores

collections = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.one_of(st.integers(-3, 3).map(float), st.just(np.nan)), min_size=n, max_size=n),
        st.lists(st.sampled_from("abc"), min_size=n, max_size=n),
        st.randoms(use_true_random=False),
    )
)


@settings(deadline=None)
@given(collections, st.integers(1, 99), st.booleans())
def test_the_kept_are_exactly_the_top_share_of_each_class_in_any_order(collection, percent, per_class):
    scores, classes, random = collection
    ids = [f"{i:02d}" for i in range(len(scores))]
    pruned = prune_scores(ids, scores, keep=percent / 100, classes=classes, per_class=per_class)
    for name in set(classes) if per_class else [None]:
        members = [i for i in range(len(ids)) if name in (None, classes[i]) and not np.isnan(scores[i])]
        kept = [i for i in members if pruned.kept[i]]
        dropped = [i for i in members if not pruned.kept[i]]
        assert len(kept) == -(-percent * len(members) // 100)  # integers: no rounding of its own
        assert all((-scores[i], ids[i]) < (-scores[j], ids[j]) for i in kept for j in dropped)
    assert not pruned.kept[np.isnan(scores)].any()
    assert sum(row["kept"] for row in pruned.counts().values()) == pruned.kept.sum()
    order = list(range(len(ids)))
    random.shuffle(order)
    again = prune_scores(
        [ids[i] for i in order],
        [scores[i] for i in order],
        keep=percent / 100,
        classes=[classes[i] for i in order],
        per_class=per_class,
    )
    assert set(again.kept_ids) == set(pruned.kept_ids)


def test_copies_are_named_and_left_out():
    ids, contents = ["b", "a", "c", "d"], ["x", "x", "y", "x"]
    whole = prune_scores(ids, [3, 3, 1, 3], keep=0.75, contents=contents)
    assert dict(whole.copy_of) == {0: "a", 3: "a"}
    assert whole.kept_ids == ["b", "a", "d"]
    assert prune_scores(ids, [3, 3, 1, 3], keep=0.75, contents=contents, drop_copies=True).kept_ids == ["a", "c"]


def test_counts_and_table():
    pruned = prune_scores(
        ["cat/1", "cat/2", "dog/1"], [1, np.nan, 0], keep=0.5, classes=["cat", "cat", "dog"], errors={1: "broken"}
    )
    assert pruned.counts() == {
        "cat": {"images": 2, "kept": 1, "dropped": 0, "unreadable": 1},
        "dog": {"images": 1, "kept": 0, "dropped": 1, "unreadable": 0},
    }
    rows = pruned.table().to_pydict()
    assert rows["kept"] == [True, False, False]
    assert rows["score"] == [1, None, 0]
    assert rows["error"] == [None, "broken", None]
    assert rows["p_value"] == rows["copy_of"] == [None] * 3


def test_bad_scores_are_one_sentence():
    for scores, message in (([1.0], "one score per sample"), ([1.0, np.inf], "the score of 'b' is infinite")):
        with pytest.raises(ValueError, match=message):
            prune_scores(["a", "b"], scores, keep=0.5)
    with pytest.raises(ValueError, match="needs p-values"):
        prune_scores(["a"], [1.0], target_fpr=0.5)
    with pytest.raises(ValueError, match="p_values must hold one p-value per sample"):
        prune_scores(["a"], [1.0], target_fpr=0.5, p_values=[0.1, 0.2])
