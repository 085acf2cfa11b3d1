from itertools import combinations

import numpy as np
import pytest

from skjepa.evaluation.pareto import pareto_figure, pareto_front
from skjepa.evaluation.plotting import save_figure


@pytest.mark.parametrize(
    ("seconds", "auroc", "expected"),
    [
        ([1, 2, 3], [0.6, 0.7, 0.8], [True, True, True]),
        ([1, 2, 3], [0.8, 0.7, 0.6], [True, False, False]),
        ([1.0, 1.05], [0.7, 0.8], [False, True]),  # costs that near are equal
        ([1.0, 1.2], [0.7, 0.8], [True, True]),
        ([1.0, 1.05], [0.8, 0.8], [True, False]),  # of equal ones the faster
        ([1, 1], [0.8, 0.8], [True, True]),
        ([0.1, 1], [0.5, 0.6], [False, True]),  # a coin is free
        ([1, 2], [0.3, 0.4], [False, False]),
    ],
)
def test_front(seconds, auroc, expected):
    assert pareto_front(seconds, auroc).tolist() == expected


def names_at(figure):
    return [(text.get_text(), text.get_window_extent()) for text in figure.axes[0].texts if text.get_text()]


def test_every_name_can_be_read(tmp_path):
    rng = np.random.default_rng(0)
    cost = {f"a detector of length {i}": 0.002 * (1 + 0.01 * i) for i in range(12)} | {"slow": 0.1, "fast": 0.0001}
    auroc = {name: 0.6 + 0.02 * rng.uniform() for name in cost} | {"slow": 0.95, "fast": 0.4}
    figure = pareto_figure(cost, auroc, n_sets=3)
    save_figure(figure, tmp_path / "pareto.png")
    places = names_at(figure)
    assert sorted(name for name, _ in places) == sorted(cost)
    assert not [(a, b) for (a, one), (b, other) in combinations(places, 2) if one.overlaps(other)]
    inside = figure.bbox
    assert all(box.x0 >= inside.x0 and box.x1 <= inside.x1 for _, box in places)


def test_the_line_passes_through_the_front():
    seconds, auroc = {"c": 0.004, "a": 0.001, "b": 0.002, "d": 0.003}, {"c": 0.9, "a": 0.7, "b": 0.8, "d": 0.75}
    line = pareto_figure(seconds, auroc, n_sets=1).axes[0].lines[1].get_xydata()
    assert line[:-1].tolist() == [[1, 0.7], [2, 0.7], [2, 0.8], [4, 0.8], [4, 0.9]]
    assert line[-1, 0] > 4
    assert line[-1, 1] == 0.9


@pytest.mark.parametrize("auroc", [0.9, 0.3])
def test_one_detector_draws(auroc):
    assert [name for name, _ in names_at(pareto_figure({"kNN": 0.002}, {"kNN": auroc}, n_sets=1))] == ["kNN"]
