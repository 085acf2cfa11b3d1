"""Seed the random numbers of torch, NumPy and `random`, which belong to the whole process, for a while."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def own_random_numbers(seed: int | None = None) -> Iterator[None]:
    """Seed all random numbers within a ``with`` block, if a seed is given, and restore the caller's state afterwards.

    Only one thread is inside at a time, since two would draw from each other's numbers.
    """
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
        python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - third-party code draws from it
        try:
            if seed is not None:
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
                random.seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
