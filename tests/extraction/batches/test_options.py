"""`RunOptions`: checked once, the same for functions, detectors and the command line."""

import os

import pytest

from skjepa import EmbeddingTransformer, JEPAScoreDetector
from skjepa.extraction.batches.options import RunOptions


@pytest.mark.parametrize(
    ("given", "error", "named"),
    [
        ({"on_error": "ignore"}, ValueError, "on_error must be one of 'raise', 'skip'; got 'ignore'"),
        ({"memory_budget": 0}, ValueError, "memory_budget must be at least 1; got 0"),
        ({"memory_budget": 1.5}, TypeError, "memory_budget must be an integer; got 1.5"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be at least 1; got 0"),
        ({"n_jobs": "two"}, TypeError, "n_jobs must be an integer; got 'two'"),
    ],
)
def test_what_is_not_allowed_is_named(given, error, named):
    with pytest.raises(error, match=named):
        RunOptions(**given)


@pytest.mark.parametrize(("n_jobs", "threads"), [(None, 1), (3, 3), (-1, os.cpu_count())])
def test_threads_that_read(n_jobs, threads):
    assert RunOptions(n_jobs=n_jobs).reading_threads == threads


@pytest.mark.parametrize("kind", [JEPAScoreDetector, EmbeddingTransformer])
def test_an_estimator_and_its_options_say_the_same(kind):
    run = RunOptions("cpu", 10**6, 2, "skip", True)
    estimator = kind(**run.parameters)
    assert RunOptions.of(estimator) == run
    assert RunOptions.of(estimator, progress=False) == RunOptions("cpu", 10**6, 2, "skip", False)
