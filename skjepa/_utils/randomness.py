"""Random numbers of one's own: what torch, NumPy and `random` draw belongs to the whole process."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def own_random_numbers(seed: int | None = None) -> Iterator[None]:
    """Context that draws what the seed says, if there is one; after it the caller's random numbers go on as before.

    One thread at a time is inside: two would draw from each other's numbers.
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
